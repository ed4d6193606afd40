"""Every family through the whole experiment: as the model that SFT starts from, and as the reference itself."""

from pathlib import Path

import pytest

from imdb_rlhf.models import policy as policies
from tests.command import train
from tests.experiments import TINY, one_line, runs, summary_of, well
from tests.models.families import FAMILIES, make
from tests.models.test_contract import MAMBA, other

TEXTS = ["This film is a delight from start to finish.", "The plot drags, and the jokes are dull.", "I loved it!"]
STEPS = ["policy.steps=3", "policy.optim.lr=1e-2", "policy.optim.warmup_steps=0"]
QUICK = ["Gemma 2"]  # what its logits are differs most from GPT-2's
slow = [name for name in FAMILIES if name not in QUICK]


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in slow)])
def test_a_family_goes_the_whole_way(name: str, tmp_path: Path) -> None:
    lm = make(name, vocabulary=310, spread=0.1)
    tokenizer = policies.train_tokenizer(TEXTS, 300, 310)
    if name.startswith("Gemma"):  # trained with it
        tokenizer.bos_token = "<|unused0|>"
    policies.save(policies.Policy(lm, tokenizer), tmp_path / "model", "A card.", 1.0)
    attention = f"model.attention={lm.config._attn_implementation}"
    folder = f"paths.outputs={tmp_path / 'outputs'}"
    for words in (
        ["model=pretrained", f"model.path={tmp_path / 'model'}", "algo=dpo", *STEPS],
        ["model=pretrained", "model.path=none", f"sft.path={tmp_path / 'model'}", "algo=ppo", "ppo.episodes=32"],
    ):
        well(train(*TINY, attention, folder, *words))
    dpo, ppo = (summary_of(runs(tmp_path / "outputs", start)[0]) for start in ("dpo", "ppo"))
    assert dpo["kl"] > 1e-3 and ppo["kl"] > -1e-3
    assert abs(dpo["kl"] - dpo["kl_k1"]) < 2
    assert policies.load(runs(tmp_path / "outputs", "dpo")[0] / "model", lm.config._attn_implementation).lm.config


@pytest.mark.parametrize("key", ["sft.path", "own_model.path", "model.path"])
def test_a_model_that_is_read_otherwise_is_refused_before_anything_is_made(key: str, tmp_path: Path) -> None:
    lm = other("mamba", **{**MAMBA, "vocab_size": 310})
    policies.save(policies.Policy(lm, policies.train_tokenizer(TEXTS, 300, 310)), tmp_path / "model", "A card.", 1.0)
    words = {
        "sft.path": ["model=pretrained", "model.path=none", "algo=dpo", "model.attention=eager"],
        "own_model.path": ["algo=own_model"],
        "model.path": ["model=pretrained", "algo=dpo", "model.attention=eager"],
    }[key]
    answer = train(*TINY, f"paths.outputs={tmp_path / 'outputs'}", *words, f"{key}={tmp_path / 'model'}")
    one_line(answer, 1, f"failed: {key}={tmp_path / 'model'}: MambaForCausalLM cannot be read token by token")
    left = [path for path in (tmp_path / "outputs" / "artifacts").rglob("*") if path.suffix != ".lock"]
    assert [path.name for path in left] == ["checked"]
