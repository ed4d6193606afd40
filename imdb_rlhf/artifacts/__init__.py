"""What stages made, in folders named by the hash of their inputs: whole or absent."""
