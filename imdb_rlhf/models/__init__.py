"""Causal language models: loading, log-probs and exact KL, sampling."""

from transformers.utils import logging

# The console shows this program's progress, not transformers' bars and advice; errors come as exceptions.
logging.set_verbosity_error()
logging.disable_progress_bar()
