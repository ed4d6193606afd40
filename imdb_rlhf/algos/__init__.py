"""Algorithms: batches and a loss each, for the one loop."""

from typing import Any

from imdb_rlhf.algos.dpo import DPO
from imdb_rlhf.algos.ppo import PPO
from imdb_rlhf.algos.preferred_ft import PreferredFT
from imdb_rlhf.algos.unlikelihood import Unlikelihood

# What trains a policy, by the name that `algo=` takes. sft, reward_model and best_of_n train none beyond the reference.
ALGOS: dict[str, Any] = {"dpo": DPO, "ppo": PPO, "unlikelihood": Unlikelihood, "preferred_ft": PreferredFT}
