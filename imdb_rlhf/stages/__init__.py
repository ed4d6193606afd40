"""One file per stage: what its key hashes, how it is made, its console line, its size, and how it is opened."""
