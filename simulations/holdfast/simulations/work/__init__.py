"""Who uses a cluster: clients that stream, leave and come back, and operators that deploy, scale and drain."""
