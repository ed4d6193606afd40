"""The measured programs, a function each; `python -m benchmarks.programs NAME JSON` runs one."""
