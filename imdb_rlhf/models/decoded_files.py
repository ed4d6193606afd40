"""The folder of a policy that is decoded from several models: what `model/` of such a run holds.

`decoding.json` says how they are put together; `reference/` is a causal LM with its tokenizer; `value/` is the network
of a guided policy (`value.save_value`), `policy/` the causal LM of a realigned one.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from imdb_rlhf.artifacts.files import write_json
from imdb_rlhf.errors import RunError
from imdb_rlhf.models import policy as policies
from imdb_rlhf.models.mixtures import DecodedPolicy, Guided, Realigned
from imdb_rlhf.models.policy import Policy
from imdb_rlhf.models.value import load_value

FACTS, REFERENCE, NETWORK, POLICY = "decoding.json", "reference", "value", "policy"


def save_decoded(
    folder: Path, reference: Policy, card: str, facts: dict[str, Any], *, value: Path | None, policy: Policy | None
) -> None:
    """Write the models, how they are put together, and the model card.

    Args:
        folder: is made.
        reference: the model that is tilted or mixed.
        card: README.md.
        facts: `temperature` and `max_new_tokens` of sampling; `beta` of a guided policy, `lam` of a realigned one.
        value: the folder of a guided policy's network.
        policy: the other model of a realigned one.
    """
    folder.mkdir(parents=True)
    policies.save(reference, folder / REFERENCE, card, facts["temperature"])
    if value is not None:
        shutil.copytree(value, folder / NETWORK)
    if policy is not None:
        policies.save(policy, folder / POLICY, card, facts["temperature"])
    write_json(folder / FACTS, facts)
    (folder / "README.md").write_text(card)


def is_decoded(folder: Path) -> bool:
    """Whether a folder holds a policy that is decoded from several models."""
    return (folder / FACTS).is_file()


def load_decoded(folder: Path, attention: str, device: torch.device) -> tuple[DecodedPolicy, dict[str, Any]]:
    """Load what `save_decoded` wrote, frozen, in float32.

    Args:
        folder: of the policy.
        attention: transformers' attention implementation.
        device: where the models are to be.

    Returns:
        The policy, and `facts` of `save_decoded`.

    Raises:
        RunError: a file is missing or damaged.
    """
    try:
        facts = json.loads((folder / FACTS).read_text())
        temperature, guided = float(facts["temperature"]), "beta" in facts
        strength = float(facts["beta"] if guided else facts["lam"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RunError(f"{folder / FACTS} cannot be read ({error}); make the run again") from error
    reference = policies.load(folder / REFERENCE, attention, "reference")
    policies.freeze(reference.lm.to(device))
    if guided:
        value = load_value(folder / NETWORK, reference.lm, attention)
        return DecodedPolicy(Guided(reference.lm, value, strength, temperature), reference.tokenizer), facts
    other = policies.freeze(policies.load(folder / POLICY, attention, "policy").lm.to(device))
    return DecodedPolicy(Realigned(reference.lm, other, strength), reference.tokenizer), facts
