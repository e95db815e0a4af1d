"""What a browser shows: one self-contained file of runs and recordings."""
