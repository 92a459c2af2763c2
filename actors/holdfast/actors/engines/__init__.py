"""What generates tokens inside a replica. `base.py` says what an engine is."""
