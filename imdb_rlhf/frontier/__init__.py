"""Reward over KL of many finished runs: read, compared, measured and drawn."""
