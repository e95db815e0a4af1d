"""GRPO: rows, rewards, trainers, checkpoints."""
