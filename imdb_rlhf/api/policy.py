"""The policy of a finished run, of any kind, with a `generate` of its own."""

from pathlib import Path

import torch

from imdb_rlhf.api.models import ATTENTION, load
from imdb_rlhf.api.prompts import Prompts, rows_of
from imdb_rlhf.config.data import Bos
from imdb_rlhf.errors import ConfigError
from imdb_rlhf.evaluation.evaluate import completion_text
from imdb_rlhf.models import policy as policies
from imdb_rlhf.models.decoded_files import is_decoded, load_decoded
from imdb_rlhf.models.mixtures import DecodedPolicy
from imdb_rlhf.models.policy import Policy
from imdb_rlhf.models.sampling import batches_by_length, sample, uniforms
from imdb_rlhf.models.tokens import decode, first_token

NEW_TOKENS = 48  # of a model that does not say how long its completions are


class LoadedPolicy:
    """A policy to sample from: one causal LM, or several models that are decoded together.

    Attributes:
        next_token: its distribution over the next token.
        temperature: that its numbers were measured at, the default of `generate`.
        max_new_tokens: likewise.
    """

    def __init__(self, policy: Policy | DecodedPolicy, temperature: float, max_new_tokens: int) -> None:
        self.policy, self.next_token = policy, policy.next_token
        self.temperature, self.max_new_tokens = temperature, max_new_tokens

    def generate(
        self,
        prompts: Prompts,
        samples: int = 1,
        max_new_tokens: int | None = None,
        seed: int = 0,
        batch_size: int = 256,
    ) -> list[list[str]]:
        """Sample completions, without top-k or top-p.

        A prompt's completions are a function of the seed, its place in the list and its tokens.

        Args:
            prompts: texts, or rows of token ids.
            samples: per prompt.
            max_new_tokens: most tokens of a completion; None is `self.max_new_tokens`.
            seed: of the samples.
            batch_size: completions sampled at once.

        Returns:
            Per prompt, the texts of its completions without the prompt.

        Raises:
            ConfigError: the prompts cannot be used, or a number is below 1.
        """
        new = self.max_new_tokens if max_new_tokens is None else max_new_tokens
        for name, number in (("samples", samples), ("max_new_tokens", new), ("batch_size", batch_size)):
            if number < 1:
                raise ConfigError(f"{name}={number} is below 1")
        reference, tokenizer = self.next_token.models[0], self.policy.tokenizer
        bos_id = first_token(tokenizer, str(reference.config.model_type), Bos.auto, "the policy")
        rows = rows_of(prompts, "prompts", tokenizer, reference, new, bos_id)
        random = uniforms(seed, "generate", range(len(rows)), samples, new)
        owners = [(prompt, which) for prompt in range(len(rows)) for which in range(samples)]
        texts = [[""] * samples for _ in rows]
        for batch in batches_by_length([len(rows[prompt]) for prompt, _ in owners], batch_size):
            keys = [owners[at] for at in batch]
            prompt_ids = [rows[prompt] for prompt, _ in keys]
            draws = torch.tensor([random[prompt, which].tolist() for prompt, which in keys], dtype=torch.float64)
            ids = sample(self.next_token, prompt_ids, draws, self.policy.eos_id, self.temperature).ids
            wholes = decode(tokenizer, [[*prompt, *own] for prompt, own in zip(prompt_ids, ids, strict=True)])
            for (prompt, which), begin, whole in zip(keys, decode(tokenizer, prompt_ids), wholes, strict=True):
                texts[prompt][which] = completion_text(begin, whole)
        return texts


def load_policy(folder: str | Path, device: str | torch.device = "cpu") -> LoadedPolicy:
    """Load the policy of a finished run, in float32.

    Args:
        folder: of the run or of its `model/`, of any causal LM, or a Hub id.
        device: where it is to be.

    Raises:
        RunError: it cannot be used.
    """
    place = Path(folder).expanduser()
    place = place / "model" if (place / "model").is_dir() else place
    if is_decoded(place):
        policy, facts = load_decoded(place, ATTENTION, torch.device(device))
        return LoadedPolicy(policy, float(facts["temperature"]), int(facts["max_new_tokens"]))
    plain = load(place if place.is_dir() else folder, "folder")
    plain.lm.to(torch.device(device))
    policies.freeze(plain.lm)
    defaults = plain.lm.generation_config
    temperature = getattr(defaults, "temperature", None) or 1.0
    return LoadedPolicy(plain, float(temperature), getattr(defaults, "max_new_tokens", None) or NEW_TOKENS)
