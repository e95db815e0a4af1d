"""Closed loop: one episode, its measures, and what many of them say."""
