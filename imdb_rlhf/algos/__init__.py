"""Algorithms: batches and a loss each, for the one loop."""

from imdb_rlhf.algos.bon_sft import BonSFT
from imdb_rlhf.algos.cpo import CPO
from imdb_rlhf.algos.distill import Distill
from imdb_rlhf.algos.dpo import DPO
from imdb_rlhf.algos.exo import EXO
from imdb_rlhf.algos.grpo import GRPO
from imdb_rlhf.algos.kto import KTO
from imdb_rlhf.algos.method import PolicyMethod
from imdb_rlhf.algos.online_dpo import OnlineDPO
from imdb_rlhf.algos.orpo import ORPO
from imdb_rlhf.algos.ppo import PPO
from imdb_rlhf.algos.preferred_ft import PreferredFT
from imdb_rlhf.algos.reinforce import Reinforce
from imdb_rlhf.algos.rloo import RLOO
from imdb_rlhf.algos.simpo import SimPO
from imdb_rlhf.algos.unlikelihood import Unlikelihood

# The algorithms that train a policy, by the name that `algo=` takes, in the order of figures and tables.
ALGOS: dict[str, type[PolicyMethod]] = {
    "dpo": DPO,
    "ppo": PPO,
    "unlikelihood": Unlikelihood,
    "preferred_ft": PreferredFT,
    "reinforce": Reinforce,
    "rloo": RLOO,
    "grpo": GRPO,
    "online_dpo": OnlineDPO,
    "kto": KTO,
    "simpo": SimPO,
    "orpo": ORPO,
    "cpo": CPO,
    "exo": EXO,
    "bon_sft": BonSFT,
    "distill": Distill,
}
