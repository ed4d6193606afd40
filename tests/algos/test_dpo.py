"""DPO against a naive per-pair loss and against TRL's trainer."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerBase

from imdb_rlhf.algos.dpo import DPO, Completions, PairBatch
from imdb_rlhf.config import Attention, DPORun, Labels, Order, ScratchModel, Ties
from imdb_rlhf.data.groups import Pairs, draw_pairs, shuffled, to_trl
from imdb_rlhf.errors import RunError
from imdb_rlhf.models.logprobs import Rows, sequence_logprobs
from imdb_rlhf.models.policy import Policy, scratch, train_tokenizer

BETA = 0.3


def gpt2(seed: int, dropout: float = 0.0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    sizes = {"vocab_size": 19, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    return GPT2LMHeadModel(GPT2Config(initializer_range=0.2, bos_token_id=0, eos_token_id=0, **sizes, **rates)).eval()


def policy_of(lm: PreTrainedModel) -> Policy:
    return Policy(lm, cast(PreTrainedTokenizerBase, SimpleNamespace(eos_token_id=0)))


def score(lm: PreTrainedModel, prompt: list[int], completion: list[int], temperature: float = 1.0) -> Tensor:
    """The log-prob of a completion from full logits, without padding."""
    ids = torch.tensor([prompt + completion])
    log_softmax = (lm(input_ids=ids).logits[0, len(prompt) - 1 : -1] / temperature).log_softmax(-1)
    return log_softmax.gather(1, ids[0, len(prompt) :, None]).sum()


def make_groups(prompts: int, reference: PreTrainedModel | None = None, temperature: float = 1.0) -> pd.DataFrame:
    """A group table with 4 completions of each prompt; log-probs of the reference where there is one."""
    random, rows = np.random.default_rng(0), []
    for prompt in range(prompts):
        head = random.integers(1, 19, size=2 + prompt % 4).tolist()
        for which in range(4):
            tail = random.integers(1, 19, size=1 + int(random.integers(7))).tolist()
            tail[0] = 1 + 4 * which + int(random.integers(4))  # so that no two are equal
            with torch.no_grad():
                known = 0.0 if reference is None else float(score(reference, head, tail, temperature))
            rows.append((prompt, which, head, tail, random.normal(), known))
    columns = ["prompt_id", "sample_id", "prompt_ids", "completion_ids", "reward_logit", "ref_logprob"]
    return pd.DataFrame(rows, columns=columns)


def config(**changes: Any) -> Any:
    values = {"labels": Labels.deterministic, "tau": None, "noise": None, "min_margin": 0.0}
    return SimpleNamespace(**{**values, "ties": Ties.drop, "order": Order.prefix, **changes})


def run(batch_size: int = 64, order: Order = Order.prefix, temperature: float = 1.0, **changes: Any) -> DPORun:
    values = {
        "seed": 0,
        "beta": BETA,
        "generation": SimpleNamespace(temperature=temperature),
        "policy": SimpleNamespace(batch_size=batch_size, epochs=1.0, steps=None),
        "dpo": config(order=order),
    }
    return cast(DPORun, SimpleNamespace(**{**values, **changes}))


def naive(lm: PreTrainedModel, groups: pd.DataFrame, pairs: np.ndarray, temperature: float = 1.0) -> Tensor:
    """The mean loss, a pair and a completion at a time (equation 7 of arXiv 2305.18290)."""
    losses = []
    for pair in pairs:
        (ratio_w, ratio_l) = (
            score(lm, row.prompt_ids, row.completion_ids, temperature) - row.ref_logprob
            for row in (groups.iloc[int(index)] for index in pair)
        )
        losses.append(-F.logsigmoid(BETA * (ratio_w - ratio_l)))
    return torch.stack(losses).mean()


def gradients(lm: PreTrainedModel) -> Tensor:
    """All gradients in one vector; they are 0 afterwards."""
    found = torch.cat([p.grad.flatten().clone() for p in lm.parameters() if p.grad is not None])
    lm.zero_grad()
    return found


def run_batch(algorithm: DPO, batch: PairBatch, limit: int | None = None) -> tuple[float, dict[str, float]]:
    """Mean loss and mean metrics of a batch; gradients are left in the model."""
    total, sums = 0.0, dict[str, float]()
    for part in batch.parts(0, 1, limit):
        loss, metrics = algorithm.loss(algorithm.module, part)
        (loss / batch.size).backward()
        total += float(loss.detach()) / batch.size
        for key, value in metrics.items():
            sums[key] = sums.get(key, 0.0) + float(value) / batch.size
    return total, sums


# --- the batch


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("limit", [None, 1, 5])
def test_distinct_completions_and_indices_are_the_naive_loss(limit: int | None, temperature: float) -> None:
    lm, groups = gpt2(1), make_groups(4, gpt2(0), temperature)
    pairs = draw_pairs(groups, config(), 0)
    algorithm = DPO(policy_of(lm), groups, pairs, run(18, temperature=temperature))
    batch = next(algorithm.batches(0))
    assert batch.size == 18
    expected = naive(lm, groups, batch.pairs, temperature)
    expected.backward()
    truth = gradients(lm)
    loss, _ = run_batch(algorithm, batch, limit)
    assert abs(float(expected.detach()) - math.log(2)) > 0.01
    assert loss == pytest.approx(float(expected.detach()), abs=1e-5)
    assert (gradients(lm) - truth).norm() < 1e-4 * truth.norm()


def test_the_metrics_by_hand() -> None:
    lm, groups = gpt2(1), make_groups(2, gpt2(0))
    algorithm = DPO(policy_of(lm), groups, draw_pairs(groups, config(), 0), run())
    pairs = np.array([[0, 1], [5, 6], [6, 7]])
    with torch.no_grad():
        columns = (groups[name].tolist() for name in ("prompt_ids", "completion_ids", "ref_logprob"))
        ratio = np.array([float(score(lm, head, tail)) - known for head, tail, known in zip(*columns, strict=True)])
    h = ratio[pairs[:, 0]] - ratio[pairs[:, 1]]
    assert 0 < (h > 0).sum() < 3
    _, metrics = run_batch(algorithm, PairBatch(algorithm.completions, pairs))
    assert metrics == pytest.approx(
        {
            "train/accuracy": (h > 0).mean(),
            "train/margin": BETA * h.mean(),
            "train/chosen_log_ratio": ratio[pairs[:, 0]].mean(),
            "train/rejected_log_ratio": ratio[pairs[:, 1]].mean(),
        },
        abs=1e-5,
    )


def test_the_order_of_pairs_does_not_change_the_gradient() -> None:
    lm, groups = gpt2(1), make_groups(5, gpt2(0))
    pairs = draw_pairs(groups, config(), 0)
    found = {}
    for order in Order:
        algorithm = DPO(policy_of(lm), groups, pairs, run(len(pairs.rows), order))
        batch = next(algorithm.batches(0))
        loss, _ = run_batch(algorithm, batch, 7)
        found[order] = (loss, gradients(lm), batch.pairs)
    one, other = found[Order.prefix], found[Order.shuffled]
    assert not np.array_equal(one[2], other[2])
    assert sorted(map(tuple, one[2].tolist())) == sorted(map(tuple, other[2].tolist()))  # the same pairs
    assert one[0] == pytest.approx(other[0], abs=1e-6)
    assert (one[1] - other[1]).norm() < 1e-5 * one[1].norm()


def test_a_part_has_each_completion_once() -> None:
    completions = Completions(make_groups(3).assign(ref_logprob=-np.arange(12.0)))
    part = completions.part(np.array([[5, 2], [2, 9], [5, 9]]))
    assert part.pairs.tolist() == [[1, 0], [0, 2], [1, 2]]
    assert part.ref_logprob.tolist() == [-2, -5, -9]
    assert part.rows.starts.tolist() == [len(completions.prompts[i]) for i in (2, 5, 9)]
    for at, row in enumerate((2, 5, 9)):
        whole = completions.prompts[row] + completions.completions[row]
        assert part.rows.ids[at, : part.rows.lengths[at]].tolist() == whole


def test_pairs_of_a_prompt_share_their_completions() -> None:
    groups = make_groups(200)
    pairs = draw_pairs(groups, config(), 0)
    assert len(pairs.rows) == 1200

    def distinct(order: Order) -> list[int]:
        rows = pairs.rows[shuffled(pairs, order, 0, 0)]
        return [len(np.unique(rows[at : at + 64])) for at in range(0, 1152, 64)]

    together, apart = distinct(Order.prefix), distinct(Order.shuffled)
    assert max(together) <= 48
    assert 42 <= np.mean(together) <= 46  # 64 / 6 prompts of 4, and what is cut at both ends
    assert min(apart) > 100


def test_the_first_step_has_a_loss_of_ln_2_with_stored_log_probs() -> None:
    reference, policy = gpt2(0), gpt2(0)
    groups = make_groups(40)
    rows = Rows.of(list(groups["prompt_ids"]), list(groups["completion_ids"]))
    groups["ref_logprob"] = sequence_logprobs(reference, rows).tolist()  # one batch, other padding
    algorithm = DPO(policy_of(policy), groups, draw_pairs(groups, config(), 0), run())
    loss, metrics = run_batch(algorithm, next(algorithm.batches(0)))
    assert loss == pytest.approx(math.log(2), abs=1e-4 * BETA)
    assert abs(metrics["train/margin"]) < 1e-4 * BETA


def test_dropout_is_off() -> None:
    groups = make_groups(3)
    algorithm = DPO(policy_of(gpt2(1, dropout=0.5).train()), groups, draw_pairs(groups, config(), 0), run())
    batch = next(algorithm.batches(0))
    assert run_batch(algorithm, batch)[0] == run_batch(algorithm, batch)[0]


def test_steps_and_batches_are_functions_of_the_configuration() -> None:
    groups = make_groups(10)
    pairs = draw_pairs(groups, config(), 0)
    algorithm = DPO(policy_of(gpt2(0)), groups, pairs, run(24))
    assert algorithm.steps == 3  # 60 pairs
    every = [batch.pairs.tolist() for batch in algorithm.batches(0)]
    assert [batch.pairs.tolist() for batch in algorithm.batches(2)] == every[2:]
    first_epoch = [pair for batch in every for pair in batch][:60]
    assert sorted(first_epoch) == sorted(pairs.rows.tolist())
    wanted = SimpleNamespace(batch_size=24, epochs=1.0, steps=7)
    assert DPO(policy_of(gpt2(0)), groups, pairs, run(policy=wanted)).steps == 7


def test_a_preference_file_brings_its_own_pairs(tmp_path: Path) -> None:
    groups = make_groups(10).assign(reward=0.0, prompt="", completion="", finished=True)
    groups.to_parquet(tmp_path / "groups.parquet")
    drawn = DPO.from_artifacts(policy_of(gpt2(0)), tmp_path, run())
    assert len(drawn.pairs.rows) == 60
    np.savez(tmp_path / "pairs.npz", rows=np.array([[3, 0], [4, 5]]), prompts=np.array([0, 1]))
    (tmp_path / "report.json").write_text('{"dropped": {"empty": 3, "same completion": 0}}')
    brought = DPO.from_artifacts(policy_of(gpt2(0)), tmp_path, run())
    assert brought.pairs.rows.tolist() == [[3, 0], [4, 5]]
    assert brought.remark() == "2 pairs, 1 steps; left out: 3 empty"
    flipped = DPO.from_artifacts(policy_of(gpt2(0)), tmp_path, run(dpo=config(noise=1.0)))
    assert flipped.pairs.rows.tolist() == [[0, 3], [5, 4]]
    groups.assign(ref_logprob=np.nan).to_parquet(tmp_path / "groups.parquet")
    with pytest.raises(RunError, match="not finite"):
        DPO.from_artifacts(policy_of(gpt2(0)), tmp_path, run())


# --- TRL


def trl_trainer(model: PreTrainedModel, tokenizer: Any, table: pd.DataFrame, folder: Path, **changes: Any) -> Any:
    """TRL's trainer of a preference table on the CPU, float32, nothing from outside."""
    trl = pytest.importorskip("trl", reason="trl is not installed")
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    arguments = {
        "output_dir": str(folder),
        "beta": BETA,
        "per_device_train_batch_size": len(table),
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    return trl.DPOTrainer(
        model=model,
        args=trl.DPOConfig(**{**arguments, **changes.pop("args", {})}),
        train_dataset=datasets.Dataset.from_pandas(table[["prompt", "chosen", "rejected"]], preserve_index=False),
        processing_class=tokenizer,
        **changes,
    )


TEXTS = [
    ("The film", " is good.", " is bad and dull."),
    ("The film", " is lovely, truly lovely.", " is bad and dull."),
    ("I saw it twice", "", " and I left."),  # the empty text is EOS alone
    ("A plot", " that is good.", " that is weak, slow and dull!"),
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer([prompt + text for prompt, *texts in TEXTS for text in texts], 290, 290)


def scratch_policy(tokenizer: Any, seed: int) -> Policy:
    sizes = {"layers": 2, "width": 16, "heads": 2, "context": 48, "tokenizer_size": 290, "vocabulary": 290}
    policy = scratch(ScratchModel(name="tiny", attention=Attention.eager, init_seed=seed, **sizes), tokenizer)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.lm.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return policy


def test_loss_and_gradient_are_those_of_trl(tokenizer: Any, tmp_path: Path) -> None:
    reference, policy = scratch_policy(tokenizer, 0), scratch_policy(tokenizer, 1)

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    rows, pairs = [], []
    for at, (prompt, *texts) in enumerate(TEXTS):
        for which, text in enumerate(texts):
            tokens = (encode(prompt), [*encode(text), policy.eos_id])
            assert encode(prompt + text + tokenizer.eos_token) == tokens[0] + tokens[1]  # TRL sees the same tokens
            with torch.no_grad():
                rows.append((at, which, *tokens, 1.0 - which, float(score(reference.lm, *tokens))))
        pairs.append((2 * at, 2 * at + 1))
    columns = ["prompt_id", "sample_id", "prompt_ids", "completion_ids", "reward_logit", "ref_logprob"]
    algorithm = DPO(
        policy,
        pd.DataFrame(rows, columns=columns),
        Pairs(np.array(pairs), np.arange(len(pairs)), {}),
        run(batch_size=len(pairs)),
    )
    loss, _ = run_batch(algorithm, next(algorithm.batches(0)))
    ours = gradients(policy.lm)

    table = pd.DataFrame(TEXTS, columns=["prompt", "chosen", "rejected"])
    trainer = trl_trainer(policy.lm, tokenizer, table, tmp_path, ref_model=reference.lm)
    batch = next(iter(trainer.get_train_dataloader()))
    assert len(batch["input_ids"]) == 2 * len(TEXTS)
    theirs = trainer.compute_loss(trainer.model, batch)
    theirs.backward()

    assert abs(loss - math.log(2)) > 0.01  # the policy is not the reference
    assert loss == pytest.approx(float(theirs.detach()), abs=1e-5)
    expected = gradients(policy.lm)
    assert expected.norm() > 0.01
    assert (ours - expected).norm() < 1e-4 * expected.norm()


def test_trl_trains_on_the_exported_table(tokenizer: Any, tmp_path: Path) -> None:
    rows = [
        (at, which, prompt, text, reward)
        for at, (prompt, chosen, rejected) in enumerate(TEXTS)
        for which, (text, reward) in enumerate([(rejected, -1.5), (chosen, 2.0), (chosen + "!", 0.5), (" so so", 0.5)])
    ]
    groups = pd.DataFrame(rows, columns=["prompt_id", "sample_id", "prompt", "completion", "reward_logit"])
    file = tmp_path / "preferences.parquet"
    to_trl(groups).to_parquet(file, index=False)
    table = pd.read_parquet(file)
    assert len(table) == 4 * 5  # of 6 pairs one is a tie

    policy = scratch_policy(tokenizer, 1)
    before = {name: p.detach().clone() for name, p in policy.lm.named_parameters()}
    args = {"per_device_train_batch_size": 4, "max_steps": 2, "learning_rate": 1e-3, "logging_steps": 1}
    reference = scratch_policy(tokenizer, 1).lm
    trainer = trl_trainer(policy.lm, tokenizer, table, tmp_path / "trl", args=args, ref_model=reference)
    assert trainer.train().global_step == 2
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-4)
    assert math.isfinite(losses[1]) and losses[1] != losses[0]
    assert not all(p.equal(before[name]) for name, p in policy.lm.named_parameters())
