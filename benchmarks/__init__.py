"""How fast the package is, and how fast others are beside it: `python -m benchmarks`."""
