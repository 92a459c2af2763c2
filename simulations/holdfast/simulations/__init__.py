"""Production actors in a simulated world: virtual time, drawn faults, checked invariants."""
