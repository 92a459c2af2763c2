"""A cluster in a world: its servers, nodes, gateways and replicas, and the places where production code touches it."""
