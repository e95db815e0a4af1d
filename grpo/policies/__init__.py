"""From an observation to a decision: rules and language models."""
