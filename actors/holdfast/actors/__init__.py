"""The async shells around the core: nodes, controller, replicas, and the wire between gateway and replica."""
