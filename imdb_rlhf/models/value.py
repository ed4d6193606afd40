"""The action value of value-guided sampling: for a state and a next token, a distribution over the final reward.

The head is bilinear in the state before a token and the token: one pass of the network values the whole vocabulary.
"""

import json
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from imdb_rlhf.artifacts.files import write_json
from imdb_rlhf.errors import RunError, first_line
from imdb_rlhf.models.logprobs import completion_mask, output_layer, states_before
from imdb_rlhf.seeds import derive

# (states, bins, entries) logits held at once on a CPU: few enough for its cache.
HELD = {"cpu": 1 << 19, "cuda": 1 << 26}
FAR = 60.0  # range of exponents that one float32 sum holds with room to spare
STEEPNESS = 0.5  # of a fresh head's law of the reward
VALUE, HEAD, LAYERS = "value.json", "head.safetensors", "layers"


class ValueHead(nn.Module):
    """logits_b(s, v) = (A_b s + a_b) . e_v + c_b s + d_b, of bins b of the final reward.

    A fresh head is a reward head's (arXiv 1909.08593) seen as a law: c_b is one random direction times the standardised
    reward of bin b, so the layers learn what moves the reward at once, and not each bin by itself; A, a and d are 0, so
    every next token has the same value.

    Attributes:
        centres: (bins,) float32, the reward that each bin stands for, ascending.
    """

    centres: Tensor

    def __init__(self, width: int, vocabulary: int, centres: Tensor, rank: int, seed: int) -> None:
        """Make a head with weights that are a function of the seed.

        Args:
            width: of the states.
            vocabulary: number of tokens.
            centres: (bins,) rewards.
            rank: width of the tokens' table e.
            seed: of that table and of the direction.
        """
        super().__init__()
        self.bins, self.rank = len(centres), rank
        self.register_buffer("centres", centres.float())
        self.of_state = nn.Linear(width, self.bins * (rank + 1))
        self.of_token = nn.Parameter(torch.empty(vocabulary, rank))
        random = torch.Generator().manual_seed(derive(seed, "value_head"))
        with torch.no_grad():
            self.of_token.normal_(0.0, rank**-0.5, generator=random)
            self.of_state.weight.zero_()
            self.of_state.bias.zero_()
            direction = torch.randn(width, generator=random) * STEEPNESS * (width + 1) ** -0.5
            rewards = (self.centres - self.centres.mean()) / self.centres.std(unbiased=False)
            self.of_state.weight.view(self.bins, rank + 1, width)[:, -1] = rewards[:, None] * direction

    def factors(self, states: Tensor) -> Tensor:
        """(n, bins, rank + 1) float32 of (n, width) states: what multiplies e_v, and last the part without a token."""
        factors = F.linear(states.float(), self.of_state.weight, self.of_state.bias)
        return factors.view(len(states), self.bins, self.rank + 1)

    def forward(self, states: Tensor, tokens: Tensor) -> Tensor:
        """(n, bins) float32 logits of the final reward's bins, of (n, width) states and (n,) int64 next tokens."""
        factors = self.factors(states)
        products = (factors[:, :, :-1] @ self.of_token[tokens][:, :, None])[:, :, 0]
        return products + factors[:, :, -1]

    @torch.no_grad()
    def log_tilt(self, states: Tensor, beta: float, entries: slice) -> Tensor:
        """V(s, v) / beta = log E[exp(r / beta) | s, v], of every token v of a block of the vocabulary.

        Args:
            states: (n, width).
            beta: reward per nat, above 0.
            entries: the block.

        Returns:
            (n, entries) float32.
        """
        table = self.of_token[entries]
        states = states.float()
        tilts = torch.empty(len(states), len(table), device=states.device)
        step = max(1, HELD.get(states.device.type, HELD["cpu"]) // (self.bins * len(table)))
        with torch.autocast(states.device.type, enabled=False):
            for at in range(0, len(states), step):
                factors = self.factors(states[at : at + step])
                logits = (factors[:, :, :-1].reshape(-1, self.rank) @ table.t()).view(len(factors), self.bins, -1)
                logits += factors[:, :, -1:]
                tilts[at : at + step] = _log_mean_exp(logits, self.centres / beta)
        return tilts


def _log_mean_exp(logits: Tensor, exponents: Tensor) -> Tensor:
    """(n, entries) log of the mean of exp(exponent) over bins, of (n, bins, entries) logits and (bins,) exponents."""
    top = exponents.max()
    if float(top - exponents.min()) > FAR:
        return (logits + exponents[:, None]).logsumexp(1) - logits.logsumexp(1)
    # one exponential for both sums: no term that counts is lost, as the likeliest bin's is at least exp(-FAR)
    masses = logits.sub_(logits.amax(1, keepdim=True)).exp_()
    weights = torch.stack([torch.ones_like(exponents), (exponents - top).exp()])
    total, tilted = torch.matmul(weights, masses).log_().unbind(1)
    return tilted - total + top


class ActionValue(nn.Module):
    """A causal LM's layers with a value head, whose forward values the tokens of completions.

    Attributes:
        lm: the layers, as a whole model; its output layer is not used.
        head: the head.
        own: whether the layers are trained with the head, and so differ from the reference's.
    """

    def __init__(self, lm: PreTrainedModel, head: ValueHead, *, own: bool) -> None:
        super().__init__()
        self.lm, self.head, self.own = lm.requires_grad_(own), head, own
        layer = output_layer(lm)
        if layer.weight is not cast(nn.Embedding, lm.get_input_embeddings()).weight:
            cast(nn.Linear, lm.get_output_embeddings()).requires_grad_(False)

    def forward(self, ids: Tensor, starts: Tensor, lengths: Tensor) -> Tensor:
        """(n, bins) float32 logits at the n completion tokens, row by row; arguments as in `logprobs.Rows`."""
        mask = completion_mask(ids, starts, lengths)
        with torch.set_grad_enabled(self.own and torch.is_grad_enabled()):
            states = states_before(self.lm.base_model, ids, lengths, mask)
        with torch.autocast(ids.device.type, enabled=False):
            return cast(Tensor, self.head(states, ids[mask]))


def make_value(lm: PreTrainedModel, centres: Tensor, rank: int, seed: int, *, own: bool) -> ActionValue:
    """Put a fresh head on a model's layers; arguments as in `ValueHead` and `ActionValue`."""
    layer = output_layer(lm)
    head = ValueHead(layer.weight.shape[1], layer.vocabulary, centres, rank, seed).to(lm.device)
    return ActionValue(lm, head, own=own)


# --- files ------------------------------------------------------------------------------------------------------------


def save_value(network: ActionValue, folder: Path) -> None:
    """Write a value network: `value.json`, `head.safetensors`, and its layers, where it has its own, in `layers/`."""
    folder.mkdir(parents=True, exist_ok=True)
    head = network.head
    write_json(folder / VALUE, {"rank": head.rank, "own": network.own, "centres": head.centres.tolist()})
    save_file({name: tensor.contiguous().cpu() for name, tensor in head.state_dict().items()}, folder / HEAD)
    if network.own:
        network.lm.save_pretrained(folder / LAYERS)


def load_value(folder: Path, reference: PreTrainedModel, attention: str) -> ActionValue:
    """Load what `save_value` wrote, frozen, on the reference's device.

    Args:
        folder: of the value network.
        reference: the model that it guides, whose states a head without layers of its own reads.
        attention: transformers' attention implementation, of its own layers.

    Raises:
        RunError: a file is missing or damaged.
    """
    try:
        facts = json.loads((folder / VALUE).read_text())
        lm = reference
        if facts["own"]:
            lm = AutoModelForCausalLM.from_pretrained(
                folder / LAYERS, dtype=torch.float32, attn_implementation=attention, trust_remote_code=False
            ).to(reference.device)
        network = make_value(lm, torch.tensor(facts["centres"]), facts["rank"], 0, own=facts["own"])
        network.head.load_state_dict(load_file(folder / HEAD))
    except Exception as error:
        raise RunError(f"value: {folder} cannot be loaded as a value network: {first_line(error)}") from error
    return network.requires_grad_(False).eval()
