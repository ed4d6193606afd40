"""Causal language models: loading, log-probs and exact KL, sampling."""

from transformers.utils import logging

# Its bars and advice (padding, loss types) are not this program's; errors come as exceptions.
logging.set_verbosity_error()
logging.disable_progress_bar()
