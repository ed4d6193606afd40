"""`report.html`: the frontier and its runs in one file."""
