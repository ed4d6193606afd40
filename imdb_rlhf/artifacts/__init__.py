"""The results of stages, in folders named by the hash of their inputs: whole or absent."""
