"""Algorithms: batches and a loss each, for the one loop."""

from imdb_rlhf.algos.dpo import DPO

# What trains a policy from groups, by the name that `algo=` takes; `algo=sft` trains nothing beyond the reference.
ALGOS = {"dpo": DPO}
