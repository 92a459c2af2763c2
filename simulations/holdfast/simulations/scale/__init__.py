"""A cluster a thousand times larger than the one that faults are drawn for, over servers that cost little."""
