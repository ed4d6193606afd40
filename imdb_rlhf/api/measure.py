"""One model measured in one call."""

from typing import Any

from transformers import PreTrainedTokenizerBase

from imdb_rlhf.api.prompts import Prompts
from imdb_rlhf.api.results import Measurement
from imdb_rlhf.api.rewards import RewardFunction
from imdb_rlhf.api.world import Model, World


def measure(
    model: Model,
    reference: Model,
    tokenizer: PreTrainedTokenizerBase | None,
    prompts: Prompts,
    reward: RewardFunction,
    **sampling: Any,
) -> Measurement:
    """How much reward a model has, and how far it is from its reference.

    To measure several models, make the `World` once: `World(reference, ...).measure(model)` samples the reference once.

    Args:
        model: a causal LM of transformers, in memory or as a folder or Hub id.
        reference: the model that KL and win rate are measured from.
        tokenizer: of both; None loads the one beside a reference that is not in memory.
        prompts: texts, or rows of token ids.
        reward: from a list of texts (prompt + completion) to as many finite numbers.
        sampling: the keyword arguments of `World`: `samples`, `max_new_tokens`, `temperature`, `seed`, `device`, ...

    Raises:
        ConfigError: an argument is out of range, or the prompts cannot be used.
        RunError: a model cannot be used, or a number is nan or infinite.
    """
    return World(reference, tokenizer, prompts, reward, **sampling).measure(model)
