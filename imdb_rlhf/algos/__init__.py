"""Algorithms: batches and a loss each, for the one loop."""
