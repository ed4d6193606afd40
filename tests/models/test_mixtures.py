"""Policies of several models: read token by token they say what they say of whole rows, by plain logits."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from imdb_rlhf.models.logprobs import Rows, completion_mask
from imdb_rlhf.models.mixtures import Guided, Realigned
from imdb_rlhf.models.next_token import NextToken, all_logprobs, next_token
from imdb_rlhf.models.value import make_value
from tests import tiny
from tests.models.test_value import CENTRES, scattered

TEMPERATURE, BETA, LAM = 0.7, 0.4, 0.3
LENGTHS = [2, 5, 1, 5]


def llama(seed: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    sizes = {"vocab_size": 19, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, initializer_range=0.3)).eval()


def guided(reference: PreTrainedModel, own: bool) -> Guided:
    value = make_value(deepcopy(reference) if own else reference, CENTRES, 3, 0, own=own)
    scattered(value.head)
    if own:
        with torch.no_grad():
            for weight in value.lm.parameters():
                weight.mul_(0.9)
    return Guided(reference, value.requires_grad_(False).eval(), BETA, TEMPERATURE)


@torch.no_grad()
def logits_by_hand(policy: NextToken, row: list[int]) -> Tensor:
    """(vocabulary,) of the token after a row, from the models' own forward."""
    logits = [lm(input_ids=torch.tensor([row])).logits[0, -1] for lm in policy.models]
    if isinstance(policy, Realigned):
        return (1 - LAM) * logits[0] + LAM * logits[1]
    assert isinstance(policy, Guided)
    state = policy.value.lm.base_model(input_ids=torch.tensor([row])).last_hidden_state[0, -1:]
    bins = policy.value.head(state.expand(19, -1), torch.arange(19)).log_softmax(-1)
    return logits[0] + TEMPERATURE * (bins + CENTRES / BETA).logsumexp(-1)


def policies() -> dict[str, NextToken]:
    reference = tiny.gpt2(0, spread=0.3)
    return {
        "own": guided(reference, own=True),
        "shared": guided(reference, own=False),
        "own, another family": guided(llama(0), own=True),
        "realigned": Realigned(reference, tiny.gpt2(1, spread=0.3), LAM),
        "realigned with another family": Realigned(reference, llama(1), LAM),
    }


@pytest.mark.parametrize("name", policies())
def test_token_by_token_it_says_what_whole_rows_say(name: str) -> None:
    """Prompts of several lengths in one batch, rows dropped and reordered on the way."""
    policy = policies()[name]
    random = torch.Generator().manual_seed(0)
    texts = [torch.randint(1, 19, (length + 12,), generator=random).tolist() for length in LENGTHS]
    padded = Rows.of([text[:length] for text, length in zip(texts, LENGTHS, strict=True)], [()] * len(LENGTHS))
    reader = policy.open(len(LENGTHS), max(LENGTHS) + 6)
    ids, starts = reader.begin(padded.ids, padded.lengths)
    compared = 0
    rows = list(range(len(LENGTHS)))
    with torch.no_grad():
        for column in range(ids.shape[1], max(LENGTHS) + 4):
            logits, following = reader.read(ids), []
            for at, row in enumerate(rows):
                seen = LENGTHS[row] + column - int(starts[row])
                if seen >= LENGTHS[row]:
                    assert torch.allclose(logits[at], logits_by_hand(policy, texts[row][:seen]), atol=1e-3)
                    compared += 1
                following.append(texts[row][seen])
            if column == max(LENGTHS) + 1:
                kept = [3, 0]
                reader.keep(torch.tensor(kept))
                rows, following = [rows[at] for at in kept], [following[at] for at in kept]
            ids = torch.tensor(following)[:, None]
    assert compared >= 10


@pytest.mark.parametrize("name", policies())
def test_log_probs_of_whole_rows_are_those_of_plain_logits(name: str) -> None:
    """At the temperature that it was made for."""
    policy = policies()[name]
    rows = Rows.of([[3], [4, 5, 6]], [[7, 8, 0], [9, 2]])
    mask = completion_mask(rows.ids, rows.starts, rows.lengths)
    with torch.no_grad():
        states = policy.states(rows.ids, rows.lengths, mask)
        logprobs = all_logprobs(policy, states, TEMPERATURE)
    prefixes = [[3], [3, 7], [3, 7, 8], [4, 5, 6], [4, 5, 6, 9]]
    wanted = [(logits_by_hand(policy, prefix) / TEMPERATURE).log_softmax(-1) for prefix in prefixes]
    assert torch.allclose(logprobs, torch.stack(wanted), atol=2e-4)


def test_a_causal_lm_is_its_own_distribution() -> None:
    lm = tiny.gpt2()
    policy = next_token(lm)
    assert list(policy.models) == [lm] and policy.vocabulary == 19 and next_token(policy) is policy
