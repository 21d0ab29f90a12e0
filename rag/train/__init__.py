"""Data in, models out: each module trains one kind, and reports what it reaches beside a trivial baseline."""
