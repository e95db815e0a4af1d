"""This machine: folders and locks, processes, settings, the terminal. Knows nothing of traffic."""
