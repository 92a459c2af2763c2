"""The pure heart of Holdfast: what happened, what is, what should be. No I/O, no clock, no randomness."""
