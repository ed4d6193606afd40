"""`frontier.svg` and `frontier.png`: reward over KL of every method, beside the optimum."""
