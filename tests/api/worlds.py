"""A world of letters that the tests of the API share: tiny models whose every number can be worked out plainly."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from imdb_rlhf import World
from tests import tiny

PROMPTS = ["bc", "de", "bcd", "k"]
VALIDATION = ["cb", "ed"]
NEW = 3  # tokens after a prompt; EOS is "a"


def share_of_vowels(texts: list[str]) -> list[float]:
    """A reward that a text's letters decide."""
    return [sum(letter in "aeiou" for letter in text) / len(text) for text in texts]


def models() -> tuple[PreTrainedModel, PreTrainedModel]:
    """A policy and a reference that are far from each other."""
    return tiny.scattered_gpt2(1), tiny.scattered_gpt2(2)


def world(reference: PreTrainedModel | None = None, **changes: object) -> World:
    """The world of `PROMPTS`; `changes` are arguments of `World`."""
    arguments = {"max_new_tokens": NEW, "samples": 3, "bootstrap": 200, "validation_prompts": VALIDATION} | changes
    return World(reference or models()[1], tiny.tokenizer(), PROMPTS, share_of_vowels, **arguments)  # type: ignore[arg-type]


def log_softmax(lm: PreTrainedModel, row: list[int]) -> Tensor:
    """(time, vocabulary) by the model's own forward, of one row alone."""
    with torch.no_grad():
        return torch.log_softmax(lm(input_ids=torch.tensor([row])).logits[0].double(), -1)


def brute(lm: PreTrainedModel, reference: PreTrainedModel, prompt: list[int], completion: list[int]) -> list[float]:
    """The exact KL of the visited steps, and log pi - log ref of the completion."""
    row = [*prompt, *completion]
    own, other = log_softmax(lm, row), log_softmax(reference, row)
    steps = range(len(prompt) - 1, len(row) - 1)
    kl = sum(float((own[at].exp() * (own[at] - other[at])).sum()) for at in steps)
    return [kl, sum(float(own[at, row[at + 1]] - other[at, row[at + 1]]) for at in steps)]


def enumerated(lm: PreTrainedModel, reference: PreTrainedModel, prompt: list[int], new: int) -> tuple[float, float]:
    """The mean reward and the KL of a prompt's completions, over all of them."""
    tokenizer = tiny.tokenizer()
    reward = kl = 0.0
    open_rows: list[tuple[list[int], float]] = [([], 1.0)]
    for length in range(new):
        grown = []
        for done, mass in open_rows:
            own, other = (log_softmax(model, [*prompt, *done])[-1] for model in (lm, reference))
            kl += mass * float((own.exp() * (own - other)).sum())
            for token, share in enumerate(own.exp().tolist()):
                if token == tokenizer.eos_token_id or length == new - 1:
                    (value,) = share_of_vowels([tokenizer.decode([*prompt, *done, token], skip_special_tokens=True)])
                    reward += mass * share * value
                else:
                    grown.append(([*done, token], mass * share))
        open_rows = grown
    return reward, kl
