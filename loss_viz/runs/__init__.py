"""Recorded training runs: weights and losses in memory, in files and in checkpoints."""
