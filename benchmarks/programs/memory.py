"""Our memory of log-probs (and their gradients) and of the exact KL over tokens and vocabulary; inputs are random."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.programs.program import Record, Setup
from imdb_rlhf.models.blocks import OutputLayer
from imdb_rlhf.models.kl import compare
from imdb_rlhf.models.logprobs import Rows, token_logprobs
from imdb_rlhf.models.policy import freeze

ROW = 64  # tokens of a completion that is compared


class Live(TorchDispatchMode):
    """Counts the bytes of all tensors made under it that are still held; exact, whatever the allocator does.

    Memory that a kernel takes for itself while it runs is not seen.

    Attributes:
        now: bytes held.
        most: the most that were held at a time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        before = {leaf.untyped_storage()._cdata for leaf in inputs}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage()._cdata not in before:
                self._take(leaf.untyped_storage())
        return result

    def _take(self, storage: torch.UntypedStorage) -> None:
        name, size = storage._cdata, storage.nbytes()
        if name not in self._known:
            self._known[name] = weakref.ref(storage, lambda _: self._release(name, size))
            self.now += size
            self.most = max(self.most, self.now)

    def _release(self, name: int, size: int) -> None:
        self._known.pop(name, None)
        self.now -= size


def _logprobs(setup: Setup, tokens: int, vocabulary: int, width: int) -> tuple[Callable[[], object], int]:
    """Forward and backward of `token_logprobs`; the work, and the bytes of the gradients that it returns."""
    random = torch.Generator().manual_seed(0)
    hidden, weight = (
        torch.randn(size, width, generator=random).to(setup.device).requires_grad_() for size in (tokens, vocabulary)
    )
    targets = torch.randint(vocabulary, (tokens,), generator=random).to(setup.device)

    def work() -> None:
        hidden.grad = weight.grad = None
        token_logprobs(hidden, OutputLayer(weight), targets).sum().backward()

    return work, 4 * width * (tokens + vocabulary)


def _divergence(setup: Setup, tokens: int, vocabulary: int, width: int) -> tuple[Callable[[], object], int]:
    """`compare` of two models of one narrow layer; it returns three numbers per row."""
    rows = tokens // ROW
    config = GPT2Config(vocab_size=vocabulary, n_positions=ROW + 1, n_embd=width, n_layer=1, n_head=1)
    config._attn_implementation = "eager"
    policy, reference = (freeze(GPT2LMHeadModel(config).to(setup.device)) for _ in range(2))
    ids = torch.randint(vocabulary, (rows, ROW + 1), generator=torch.Generator().manual_seed(0))
    batch = Rows(ids, torch.ones(rows, dtype=torch.int64), torch.full((rows,), ROW + 1)).to(policy.device)
    return lambda: compare(policy, reference, batch), 0


TASKS = {"token_logprobs": _logprobs, "compare": _divergence}


def grid(setup: Setup, task: str, tokens: list[int], vocabularies: list[int], width: int = 64) -> Record:
    """Bytes of tensors above inputs and returned gradients, over a grid; `tokens` are multiples of ROW."""
    began, points = setup.now(), []
    for vocabulary in vocabularies:
        for count in tokens:
            work, returned = TASKS[task](setup, count, vocabulary, width)
            with Live() as live:
                work()
            points.append({"tokens": count, "vocabulary": vocabulary, "above": live.most - returned})
    return Record([setup.now() - began], float(len(points)), "points", facts={"points": points})
