"""Causal language models: loading, log-probs and exact KL, sampling."""
