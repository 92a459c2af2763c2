"""The log and the leases: adapters to JetStream and etcd, their in-memory twins, and our own server processes."""
