"""PPO's policy with its value head, which reads the policy's states or those of a network of its own."""

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from imdb_rlhf.config.ppo import ValueNetwork
from imdb_rlhf.models.logprobs import completion_mask, output_layer, states_and_layer, states_before, token_logprobs


class ActorCritic(nn.Module):
    """A causal LM whose forward returns log-probs of completion tokens and the values of the states before them.

    The head is linear and starts at zero. A network of its own starts as a copy of the policy's layers; if the policy's
    network is shared, the value loss moves the policy too.
    """

    def __init__(self, lm: PreTrainedModel, temperature: float, value: ValueNetwork) -> None:
        super().__init__()
        self.lm, self.temperature = lm, temperature
        self.critic = deepcopy(lm.base_model) if value == ValueNetwork.own else None
        width = output_layer(lm).weight.shape[1]
        self.head = nn.Linear(width, 1, device=lm.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, ids: Tensor, starts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probs and values, (rows, time) float32 each, at the completions' tokens and 0 elsewhere.

        The value at a token is that of the state before it. Arguments as in `logprobs.Rows`.
        """
        mask = completion_mask(ids, starts, lengths)
        states, layer = states_and_layer(self.lm, ids, lengths, mask)
        logprobs = token_logprobs(states, layer, ids[mask], self.temperature)
        if self.critic is not None:
            states = states_before(self.critic, ids, lengths, mask)
        with torch.autocast(ids.device.type, enabled=False):
            values = F.linear(states.float(), self.head.weight, self.head.bias)[:, 0]
        blank = torch.zeros(ids.shape, dtype=torch.float32, device=ids.device)
        return blank.masked_scatter(mask, logprobs), blank.masked_scatter(mask, values)
