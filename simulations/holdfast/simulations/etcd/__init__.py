"""A simulated etcd, as the production leases meet it, and what goes wrong within it."""
