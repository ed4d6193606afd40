"""A program a measurement, each a process of its own: ours and the peers', which import nothing of imdb_rlhf."""
