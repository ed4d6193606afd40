"""DPO's losses against naive ones, a pair and a completion at a time, and against TRL's trainer."""

import math
from collections.abc import Callable
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

from imdb_rlhf.algos.dpo import DPO
from imdb_rlhf.algos.preferences import PairBatch, RankingBatch
from imdb_rlhf.config.algos import DPOConfig, DPOLoss, DPORun
from imdb_rlhf.config.model import Attention, ScratchModel
from imdb_rlhf.config.stages import Labels, Order, PairsConfig, Ties
from imdb_rlhf.data.pairs import Pairs, draw_pairs, shuffled
from imdb_rlhf.data.preferences import to_trl
from imdb_rlhf.data.rankings import Rankings, draw_rankings
from imdb_rlhf.models.logprobs import Rows, sequence_logprobs
from imdb_rlhf.models.policy import Policy, scratch, train_tokenizer
from tests.tiny import FixedInputs

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


def config(**changes: Any) -> PairsConfig:
    values = {"labels": Labels.deterministic, "tau": None, "noise": None, "min_margin": 0.0}
    return PairsConfig(**{**values, "ties": Ties.drop, "order": Order.prefix, **changes})


def family(loss: DPOLoss = DPOLoss.sigmoid, smoothing: float = 0.0, average: bool = False) -> DPOConfig:
    return DPOConfig(loss=loss, label_smoothing=smoothing, average_logprobs=average)


def run(batch_size: int = 64, order: Order = Order.prefix, temperature: float = 1.0, **changes: Any) -> DPORun:
    values = {
        "seed": 0,
        "beta": BETA,
        "generation": SimpleNamespace(temperature=temperature),
        "policy": SimpleNamespace(batch_size=batch_size, epochs=1.0, steps=None),
        "pairs": config(order=order),
        "dpo": family(),
    }
    return cast(DPORun, SimpleNamespace(**{**values, **changes}))


def ratios(
    lm: PreTrainedModel, groups: pd.DataFrame, rows: Any, temperature: float = 1.0, average: bool = False
) -> list[Tensor]:
    """The log-ratio of each of these rows, a completion at a time; divided by its tokens if so wanted."""
    out = []
    for row in (groups.iloc[int(index)] for index in rows):
        ratio = score(lm, row.prompt_ids, row.completion_ids, temperature) - row.ref_logprob
        out.append(ratio / len(row.completion_ids) if average else ratio)
    return out


def sigmoid(h: Tensor) -> Tensor:
    """Equation 7 of arXiv 2305.18290."""
    return -F.logsigmoid(BETA * h)


def naive(
    lm: PreTrainedModel,
    groups: pd.DataFrame,
    pairs: np.ndarray,
    temperature: float = 1.0,
    average: bool = False,
    loss: Callable[[Tensor], Tensor] = sigmoid,
) -> Tensor:
    """The mean loss, a pair and a completion at a time."""
    losses = []
    for pair in pairs:
        ratio_w, ratio_l = ratios(lm, groups, pair, temperature, average)
        losses.append(loss(ratio_w - ratio_l))
    return torch.stack(losses).mean()


def gradients(lm: PreTrainedModel) -> Tensor:
    """All gradients in one vector; they are 0 afterwards."""
    found = torch.cat([p.grad.flatten().clone() for p in lm.parameters() if p.grad is not None])
    lm.zero_grad()
    return found


def first_batch(algorithm: DPO) -> PairBatch:
    return cast(PairBatch, next(algorithm.batches(0)))


def all_pairs(algorithm: DPO, first: int) -> list[Any]:
    return [cast(PairBatch, batch).pairs.tolist() for batch in algorithm.batches(first)]


def run_batch(algorithm: DPO, batch: Any, limit: int | None = None) -> tuple[float, dict[str, float]]:
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
    batch = first_batch(algorithm)
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
        batch = first_batch(algorithm)
        loss, _ = run_batch(algorithm, batch, 7)
        found[order] = (loss, gradients(lm), batch.pairs)
    one, other = found[Order.prefix], found[Order.shuffled]
    assert not np.array_equal(one[2], other[2])
    assert sorted(map(tuple, one[2].tolist())) == sorted(map(tuple, other[2].tolist()))  # the same pairs
    assert one[0] == pytest.approx(other[0], abs=1e-6)
    assert (one[1] - other[1]).norm() < 1e-5 * one[1].norm()


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
    loss, metrics = run_batch(algorithm, first_batch(algorithm))
    assert loss == pytest.approx(math.log(2), abs=1e-4 * BETA)
    assert abs(metrics["train/margin"]) < 1e-4 * BETA


def test_dropout_is_off() -> None:
    groups = make_groups(3)
    algorithm = DPO(policy_of(gpt2(1, dropout=0.5).train()), groups, draw_pairs(groups, config(), 0), run())
    batch = first_batch(algorithm)
    assert run_batch(algorithm, batch)[0] == run_batch(algorithm, batch)[0]


def test_steps_and_batches_are_functions_of_the_configuration() -> None:
    groups = make_groups(10)
    pairs = draw_pairs(groups, config(), 0)
    algorithm = DPO(policy_of(gpt2(0)), groups, pairs, run(24))
    assert algorithm.steps == 3  # 60 pairs
    every = all_pairs(algorithm, 0)
    assert all_pairs(algorithm, 2) == every[2:]
    first_epoch = [pair for batch in every for pair in batch][:60]
    assert sorted(first_epoch) == sorted(pairs.rows.tolist())
    wanted = SimpleNamespace(batch_size=24, epochs=1.0, steps=7)
    assert DPO(policy_of(gpt2(0)), groups, pairs, run(policy=wanted)).steps == 7


def materials(folder: Path) -> FixedInputs:
    return cast(FixedInputs, SimpleNamespace(policy=policy_of(gpt2(0)), groups=folder))


# --- the other losses of a pair


def conservative(h: Tensor) -> Tensor:
    return -0.8 * torch.log(torch.sigmoid(BETA * h)) - 0.2 * torch.log(torch.sigmoid(-BETA * h))


def robust(h: Tensor) -> Tensor:
    return (-0.8 * torch.log(torch.sigmoid(BETA * h)) + 0.2 * torch.log(torch.sigmoid(-BETA * h))) / 0.6


def ipo(h: Tensor) -> Tensor:
    return (h - 1 / (2 * BETA)) ** 2


def hinge(h: Tensor) -> Tensor:
    return 1 - BETA * h if BETA * h < 1 else 0 * h


@pytest.mark.parametrize("limit", [None, 5])
@pytest.mark.parametrize(
    ("chosen", "loss"),
    [
        (family(DPOLoss.sigmoid, 0.2), conservative),
        (family(DPOLoss.robust, 0.2), robust),
        (family(DPOLoss.ipo), ipo),
        (family(DPOLoss.ipo, average=True), ipo),
        (family(DPOLoss.hinge), hinge),
    ],
)
def test_every_loss_of_pairs_is_the_naive_one(
    chosen: DPOConfig, loss: Callable[[Tensor], Tensor], limit: int | None
) -> None:
    lm, groups = gpt2(1), make_groups(4, gpt2(0))
    algorithm = DPO(policy_of(lm), groups, draw_pairs(groups, config(), 0), run(18, dpo=chosen))
    batch = first_batch(algorithm)
    expected = naive(lm, groups, batch.pairs, average=chosen.average_logprobs, loss=loss)
    expected.backward()
    truth = gradients(lm)
    found, metrics = run_batch(algorithm, batch, limit)
    assert found == pytest.approx(float(expected.detach()), rel=1e-5)
    assert (gradients(lm) - truth).norm() < 1e-4 * truth.norm()
    # the metrics are of whole sequences whatever the loss reads
    with torch.no_grad():
        both = torch.tensor([[float(ratio) for ratio in ratios(lm, groups, pair)] for pair in batch.pairs])
    assert metrics == pytest.approx(
        {
            "train/accuracy": float((both[:, 0] > both[:, 1]).float().mean()),
            "train/margin": float(BETA * (both[:, 0] - both[:, 1]).mean()),
            "train/chosen_log_ratio": float(both[:, 0].mean()),
            "train/rejected_log_ratio": float(both[:, 1].mean()),
        },
        abs=1e-5,
    )


# --- rankings


def chain(lm: PreTrainedModel, groups: pd.DataFrame, ranking: list[int]) -> Tensor:
    """The probability of a ranking as a chain of choices (appendix A.3 of arXiv 2305.18290), negative logarithm."""
    scores = [BETA * ratio for ratio in ratios(lm, groups, ranking)]
    probability = torch.ones(())
    for place in range(len(scores) - 1):
        probability = probability * scores[place].exp() / sum(score.exp() for score in scores[place:])
    return -torch.log(probability)


def uneven() -> tuple[pd.DataFrame, Rankings]:
    """Rankings of 4, 3 and 2 completions, one with equal texts left out."""
    groups = make_groups(5, gpt2(0))
    groups.loc[[5, 9, 10], "reward_logit"] = groups.loc[[4, 8, 8], "reward_logit"].to_numpy()
    texts = groups["completion_ids"].tolist()
    groups["completion_ids"] = [*texts[:19], texts[16]]
    rankings = draw_rankings(groups, config(), 0)
    assert rankings.mask.sum(1).tolist() == [4, 3, 2, 4, 3]
    return groups, rankings


@pytest.mark.parametrize("limit", [None, 1, 2])
def test_plackett_luce_is_the_naive_loss(limit: int | None) -> None:
    groups, rankings = uneven()
    lm = gpt2(1)
    algorithm = DPO(policy_of(lm), groups, rankings, run(5, dpo=family(DPOLoss.plackett_luce)))
    batch = cast(RankingBatch, next(algorithm.batches(0)))
    assert batch.size == 5
    orders = [row[mask].tolist() for row, mask in zip(batch.rankings, batch.mask, strict=True)]
    expected = torch.stack([chain(lm, groups, ranking) for ranking in orders]).mean()
    expected.backward()
    truth = gradients(lm)
    loss, metrics = run_batch(algorithm, batch, limit)
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    found = gradients(lm)
    assert found.isfinite().all()
    assert (found - truth).norm() < 1e-4 * truth.norm()

    with torch.no_grad():
        known = [[float(ratio) for ratio in ratios(lm, groups, ranking)] for ranking in orders]
    right = [
        np.mean([best > next_one for best, next_one in zip(ranking, ranking[1:], strict=False)]) for ranking in known
    ]
    best, worst = (np.mean([ranking[place] for ranking in known]) for place in (0, -1))
    assert 0 < np.mean(right) < 1
    assert metrics == pytest.approx(
        {
            "train/accuracy": np.mean(right),
            "train/margin": BETA * (best - worst),
            "train/chosen_log_ratio": best,
            "train/rejected_log_ratio": worst,
        },
        abs=1e-5,
    )


def test_rankings_of_two_are_pairs() -> None:
    groups = make_groups(6, gpt2(0))
    groups = groups[groups["sample_id"] < 2].reset_index(drop=True)
    lm = gpt2(1)
    pairs = DPO(policy_of(lm), groups, draw_pairs(groups, config(), 0), run(6))
    rankings = DPO(policy_of(lm), groups, draw_rankings(groups, config(), 0), run(6, dpo=family(DPOLoss.plackett_luce)))
    assert pairs.steps == rankings.steps
    expected = run_batch(pairs, next(pairs.batches(0)))
    truth = gradients(lm)
    found = run_batch(rankings, next(rankings.batches(0)))
    assert found[0] == pytest.approx(expected[0], abs=1e-6)
    assert found[1] == pytest.approx(expected[1], abs=1e-6)
    assert (gradients(lm) - truth).norm() < 1e-5 * truth.norm()


def test_plackett_luce_draws_rankings_from_the_artifact(tmp_path: Path) -> None:
    groups = make_groups(10).assign(reward=0.0, prompt="", completion="", finished=True)
    groups.loc[[1, 2, 3, 7], "reward_logit"] = groups.loc[[0, 0, 0, 6], "reward_logit"].to_numpy()
    groups.to_parquet(tmp_path / "groups.parquet")
    algorithm = DPO.from_inputs(materials(tmp_path), run(4, dpo=family(DPOLoss.plackett_luce)))
    assert isinstance(algorithm.drawn, Rankings)
    assert algorithm.summary_line() == "9 rankings, 3 steps; left out: 4 equal rewards, 1 ranking of one"
    every = [cast(RankingBatch, batch).rankings.tolist() for batch in algorithm.batches(0)]
    assert [cast(RankingBatch, batch).rankings.tolist() for batch in algorithm.batches(1)] == every[1:]
    epoch = [ranking for batch in every for ranking in batch][:9]
    assert sorted(epoch) == sorted(algorithm.drawn.rows.tolist()) != epoch


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
    loss, _ = run_batch(algorithm, first_batch(algorithm))
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
