"""What every program reads: one folder of a model and its inputs, the same bytes for all of them.

A folder holds `reference/` and `policy/` (GPT-2 with random weights, float32, made by `save_pretrained`, tokenizer
beside them; the policy is the reference with noise, so that no loss is log 2), and as JSON
`shape` (sizes, source), `groups` (a prompt and 4 completions each, as texts and tokens, the last token EOS),
`pairs` (64 pairs of the first groups, and 64 drawn from 64 groups: winner and loser, [group, completion] each),
`prompts` (tokens, for sampling) and `rows` (tokens, for SFT).
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from filelock import FileLock
from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast, PreTrainedTokenizerBase

from imdb_rlhf.config.data import Br
from imdb_rlhf.data import embedded, imdb
from imdb_rlhf.errors import RunError
from imdb_rlhf.models.policy import train_tokenizer

SEED = 0
NEW = 48  # tokens of a completion
PAIRS, K = 64, 4
PROMPT = (2, 8)  # tokens of a prompt, both ends included
ROW = 96  # tokens of an SFT row
GPT2_VOCABULARY = 50_257
READY = "shape.json"  # written last


@dataclass(frozen=True)
class Shape:
    """The sizes of a GPT-2.

    Attributes:
        name: what it is called here.
        layers, width, heads, vocabulary, context: as in GPT2Config.
        tokenizer: entries that are trained, where the tokenizer is not GPT-2's own; the rest is padding.
        generate_batch: completions sampled at once.
        activation: GPT-2's own name of its GELU by default, as every GPT-2 on the Hub has it.
    """

    name: str
    layers: int
    width: int
    heads: int
    vocabulary: int
    context: int
    tokenizer: int
    generate_batch: int = 64
    activation: str = "gelu_new"


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("toy", 1, 32, 2, 300, 64, 300, generate_batch=16),
        Shape("small", 6, 384, 6, 4096, 128, 4096),
        Shape("mini", 4, 256, 4, GPT2_VOCABULARY, 128, 4096, generate_batch=128),
        Shape("gpt2", 12, 768, 12, GPT2_VOCABULARY, 1024, 4096),
        Shape("gpt2-large", 36, 1280, 20, GPT2_VOCABULARY, 1024, 4096),
    )
}


@dataclass(frozen=True)
class Source:
    """Where texts and GPT-2's tokenizer come from; None of either is generated or trained."""

    reviews: Path | None
    tokenizer: Path | None

    @property
    def words(self) -> str:
        """In words, for a table."""
        return "real reviews" if self.reviews else "generated reviews"


def make(shape: Shape, source: Source, store: Path) -> Path:
    """The folder of a workload, made where it is not there: whole or absent, named by what it holds.

    Args:
        shape: of the model.
        source: of the texts.
        store: where workloads lie.

    Raises:
        RunError: the reviews cannot be read, or too few of them can be used.
    """
    key = json.dumps([asdict(shape), source.words, str(source.reviews), str(source.tokenizer), SEED, NEW, ROW])
    folder = store / f"{shape.name}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    store.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not (folder / READY).exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            _write(shape, source, folder)
    return folder


def _write(shape: Shape, source: Source, folder: Path) -> None:
    texts = list(_texts(source))
    tokenizer = _tokenizer(shape, source, texts)

    def encode(text: str) -> list[int]:
        return cast(list[int], tokenizer(text, add_special_tokens=False)["input_ids"])

    eos = int(tokenizer.eos_token_id)
    rows = [encode(text[: 64 * ROW]) for text in texts[:4000]]
    groups = _groups(rows, PAIRS, eos, encode, lambda ids: cast(str, tokenizer.decode(ids)))
    _dump(folder, "groups", groups)
    _dump(folder, "pairs", pairs(len(groups)))
    _dump(folder, "prompts", [group["prompt_ids"] for group in _prompts(rows, 512)])
    row = min(ROW, shape.context)
    _dump(folder, "rows", [tokens[:row] for tokens in rows if len(tokens) >= row][:1024])
    lm = _model(shape, eos)
    for name in ("reference", "policy"):
        if name == "policy":
            _disturb(lm)
        lm.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    _dump(folder, "shape", asdict(shape) | {"source": source.words, "parameters": lm.num_parameters()})


def _dump(folder: Path, name: str, value: Any) -> None:
    (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")


# --- texts -----------------------------------------------------------------------------------------------------------


def _texts(source: Source) -> Iterator[str]:
    """Texts in an order of their own; generated reviews are short, so four stand together."""
    if source.reviews is None:
        reviews = [review.text for review in embedded.generate(8_000, SEED)]
        yield from (" ".join(reviews[at : at + 4]) for at in range(0, len(reviews), 4))
        return
    frame, _ = imdb.read_split(source.reviews, "train", Br.newline, labels=False, key="--data")
    order = np.random.default_rng(SEED).permutation(len(frame))[:8000]
    yield from (frame["text"].iloc[int(row)] for row in order)


def _tokenizer(shape: Shape, source: Source, texts: Sequence[str]) -> PreTrainedTokenizerBase:
    if shape.vocabulary == GPT2_VOCABULARY and source.tokenizer is not None:
        return cast(PreTrainedTokenizerBase, GPT2TokenizerFast.from_pretrained(source.tokenizer))
    return train_tokenizer(texts, shape.tokenizer, shape.vocabulary)


def _prompts(rows: Sequence[list[int]], count: int) -> list[dict[str, Any]]:
    random = np.random.default_rng(SEED + 1)
    usable = [row for row in rows if len(row) >= PROMPT[1]]
    lengths = random.integers(PROMPT[0], PROMPT[1] + 1, size=count)
    return [{"prompt_ids": row[:length]} for row, length in zip(usable, lengths.tolist(), strict=False)]


def _groups(
    rows: Sequence[list[int]],
    count: int,
    eos: int,
    encode: Callable[[str], list[int]],
    decode: Callable[[list[int]], str],
) -> list[dict[str, Any]]:
    """Prompts with 4 completions each, out of one review's words each, that a tokenizer reads back as they are.

    TRL takes texts and adds EOS; a cut in a word would be other tokens there, so such a cut is not used.
    """
    random = np.random.default_rng(SEED)
    groups: list[dict[str, Any]] = []
    for row in rows:
        length = int(random.integers(PROMPT[0], PROMPT[1] + 1))
        head = row[:length]
        if len(head) < length or encode(decode(head)) != head:
            continue
        found: list[dict[str, Any]] = []
        for _ in range(200):
            if len(found) == K:
                break
            other = rows[int(random.integers(len(rows)))]
            if len(other) < NEW:
                continue
            at = int(random.integers(len(other) - NEW + 1))
            tail = other[at : at + NEW - 1]
            text = decode(tail)
            if text.startswith(" ") and encode(decode(head) + text) == head + tail:
                found.append({"text": text, "ids": [*tail, eos]})
        if len(found) == K:
            groups.append({"prompt": decode(head), "prompt_ids": head, "completions": found})
        if len(groups) == count:
            return groups
    raise RunError(f"{len(groups)} groups of {K} completions could be made and {count} are needed; give more reviews")


def pairs(groups: int) -> dict[str, list[list[list[int]]]]:
    """Winner and loser of 64 pairs, each as [group, completion]; who wins is drawn once for each group.

    Returns:
        "prefix": all 6 pairs of each group, group after group. "shuffled": as many, drawn from the pairs of all groups.
    """
    random = np.random.default_rng(SEED)
    every = []
    for group in range(groups):
        rank = random.permutation(K)  # one order of each group, so that no labels contradict each other
        for first, second in combinations(range(K), 2):
            winner, loser = (first, second) if rank[first] > rank[second] else (second, first)
            every.append([[group, winner], [group, loser]])
    drawn = random.permutation(len(every))[:PAIRS]
    return {"prefix": every[:PAIRS], "shuffled": [every[int(i)] for i in drawn]}


# --- weights ---------------------------------------------------------------------------------------------------------


def config_of(shape: Shape, eos: int) -> GPT2Config:
    """The model's configuration, without dropout: no program times another's random numbers."""
    return GPT2Config(
        vocab_size=shape.vocabulary,
        n_positions=shape.context,
        n_embd=shape.width,
        n_layer=shape.layers,
        n_head=shape.heads,
        activation_function=shape.activation,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=eos,
        eos_token_id=eos,
    )


def _model(shape: Shape, eos: int) -> GPT2LMHeadModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return GPT2LMHeadModel(config_of(shape, eos)).eval()


@torch.no_grad()
def _disturb(lm: GPT2LMHeadModel) -> None:
    """Add noise of the size of the weights themselves: log-ratios of some nats, far above what bf16 rounds off."""
    random = torch.Generator().manual_seed(SEED)
    for parameter in lm.parameters():
        if parameter.ndim >= 2:
            parameter.add_(torch.randn(parameter.shape, generator=random), alpha=0.02)


def with_activation(shape: Shape, activation: str | None) -> Shape:
    """The same shape with another name of its GELU; None leaves it."""
    return shape if activation is None else replace(shape, activation=activation)
