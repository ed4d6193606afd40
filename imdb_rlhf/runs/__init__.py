"""One run: its folder, its training, what it leaves and what the console says of it."""
