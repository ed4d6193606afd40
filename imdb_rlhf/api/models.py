"""Models from outside, live or in a folder: opened, checked, and read without a trace on a training."""

import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from imdb_rlhf.data import hub
from imdb_rlhf.errors import RunError
from imdb_rlhf.models import policy as policies
from imdb_rlhf.models.contract import check_finite, check_output_layer, check_reading, or_refuse
from imdb_rlhf.models.logprobs import output_layer
from imdb_rlhf.models.policy import Policy
from imdb_rlhf.training.precision import choose_float32_products

ATTENTION = "sdpa"  # of a model that is loaded here
T = TypeVar("T")


class Processes:
    """The processes that torch runs this program in, one of them or all of a distributed training.

    Attributes:
        device: the models' device.
        rank: this process's number, from 0.
        world: number of processes.
    """

    def __init__(self, device: torch.device) -> None:
        together = dist.is_available() and dist.is_initialized()
        self.device = device
        self.rank = dist.get_rank() if together else 0
        self.world = dist.get_world_size() if together else 1

    def gather(self, values: Sequence[T]) -> list[T]:
        """All ranks' values, in the order of the ranks, on every rank."""
        if self.world == 1:
            return list(values)
        parts: list[Any] = [None] * self.world
        dist.all_gather_object(parts, list(values))
        return [value for part in parts for value in part]


def load(path: str | Path, name: str, attention: str = ATTENTION) -> Policy:
    """The model and the tokenizer of a folder or a Hub id, in float32 on the CPU, read in every way before it is used.

    Raises:
        RunError: it cannot be used; `name` says which argument it was.
    """
    policy = policies.load(hub.fetch(str(path), None, name), attention, name)
    check_reading(policy.lm, policies.context_length(policy.lm.config), name)
    return policy


def inner(model: Any, name: str) -> PreTrainedModel:
    """The causal LM inside of what a trainer holds: out of DDP, torch.compile and PEFT, whose active adapters stay.

    Raises:
        RunError: it is none, or cannot be read by its layers.
    """
    while isinstance(model, nn.Module) and not isinstance(model, PreTrainedModel):
        if hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
            if any(getattr(config, "is_prompt_learning", False) for config in cast(Any, model).peft_config.values()):
                raise RunError(f"{name} is tuned by prompts (PEFT), which are not in its layers; use an adapter")
            model = cast(Any, model).get_base_model()
        elif hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif isinstance(getattr(model, "module", None), nn.Module):
            model = model.module
        else:
            break
    if not isinstance(model, PreTrainedModel) or model.get_output_embeddings() is None:
        raise RunError(f"{name} is a {type(model).__name__}; give a causal LM of transformers, or the folder of one")
    for parameter in model.parameters():
        if hasattr(parameter, "ds_id") or type(parameter).__name__ == "DTensor" or not parameter.numel():
            raise RunError(f"{name} is spread over processes (FSDP, DeepSpeed ZeRO-3); measure it after the training")
        if not parameter.is_floating_point():
            raise RunError(f"{name} has weights of type {parameter.dtype}; quantised models cannot be measured exactly")
    return model


def check(lm: PreTrainedModel, name: str) -> None:
    """Refuse a live model that is not read as `models/contract.py` takes for granted; it is in float32 and at rest.

    Raises:
        RunError: naming its class and what it does otherwise.
    """
    check_finite(lm, Path(type(lm).__name__), name)
    with _own_forward(lm):
        with or_refuse(f"{name}: {type(lm).__name__} cannot be read without its output layer"):
            check_output_layer(lm, name)
        check_reading(lm, policies.context_length(lm.config), name)


def check_vocabularies(lm: PreTrainedModel, reference: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a model that can sample a token that the reference does not know.

    Raises:
        RunError: naming both sizes.
    """
    own, other = (output_layer(model).vocabulary for model in (lm, reference))
    if own > other:
        raise RunError(
            f"the model has {own} entries and the reference {other}, so that their KL is infinite; give a reference of "
            "the model's vocabulary, or call resize_token_embeddings on the model"
        )
    if own <= max(tokenizer.eos_token_id or 0, 0):
        raise RunError(f"the model has {own} entries, and EOS is token {tokenizer.eos_token_id}; give its tokenizer")


# --- at rest ------------------------------------------------------------------------------------------------------


@contextmanager
def at_rest(*models: PreTrainedModel) -> Iterator[None]:
    """Hold models in evaluation mode and float32, as every policy is evaluated; then leave everything as it was.

    Weights of less precision are replaced meanwhile by float32 copies; the tensors that an optimizer holds are put
    back as they are. Modes of all modules, the random states of Python, NumPy and torch, and torch's choice of float32
    products are restored too, so a training goes on as if nothing had happened.
    """
    with ExitStack() as stack:
        stack.enter_context(_random_states())
        stack.enter_context(_float32_products())
        stack.enter_context(torch.no_grad())
        for lm in {id(lm): lm for lm in models}.values():
            stack.enter_context(_evaluated(lm))
        yield


@contextmanager
def _evaluated(lm: PreTrainedModel) -> Iterator[None]:
    modes = [(module, module.training) for module in lm.modules()]
    tensors: list[Tensor] = [*lm.parameters(), *lm.buffers()]
    stored = [(tensor, tensor.data) for tensor in tensors if tensor.is_floating_point() and tensor.dtype.itemsize < 4]
    lm.eval()
    try:
        for tensor, data in stored:
            tensor.data = data.float()
        yield
    finally:
        for tensor, data in stored:
            tensor.data = data
        for module, mode in modes:
            module.training = mode


@contextmanager
def _random_states() -> Iterator[None]:
    """Keep the random states that a user's reward may draw from."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        for index, state in enumerate(devices):
            torch.cuda.set_rng_state(state, index)


@contextmanager
def _float32_products() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    choose_float32_products()
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def _own_forward(lm: PreTrainedModel) -> Iterator[None]:
    """Take off a forward that a trainer has put around the model's own, such as accelerate's autocast."""
    put_on = vars(lm).pop("forward", None)
    try:
        yield
    finally:
        if put_on is not None:
            cast(Any, lm).forward = put_on
