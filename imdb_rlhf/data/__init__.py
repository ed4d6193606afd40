"""Reviews, prompts, and groups of completions."""
