"""What befalls a cluster: the kinds of faults, which of them a run has and when, and what each does."""
