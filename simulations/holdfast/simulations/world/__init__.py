"""What there is without a cluster: virtual time, whose turn it is, processes, the network between hosts, and guards."""
