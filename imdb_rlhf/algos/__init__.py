"""Algorithms: batches and a loss each, for the one loop."""

from imdb_rlhf.algos.distill import Distill
from imdb_rlhf.algos.dpo import DPO
from imdb_rlhf.algos.method import PolicyMethod
from imdb_rlhf.algos.ppo import PPO
from imdb_rlhf.algos.preferred_ft import PreferredFT
from imdb_rlhf.algos.unlikelihood import Unlikelihood

# The algorithms that train a policy, by the name that `algo=` takes, in the order of figures and tables.
ALGOS: dict[str, type[PolicyMethod]] = {
    "dpo": DPO,
    "ppo": PPO,
    "unlikelihood": Unlikelihood,
    "preferred_ft": PreferredFT,
    "distill": Distill,
}
