"""Hours by hand: amounts of the paper's configuration, operations of a small one, rates of made-up results."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import __main__ as command
from benchmarks import hours, hours_rates, hours_table, hours_work
from benchmarks.hours_rates import Measured, Results
from benchmarks.hours_work import Work
from benchmarks.stages_work import Sizes
from imdb_rlhf.config.run import Run
from imdb_rlhf.errors import ConfigError

SIZES = Sizes(1, 4, 10)
LAYER, LOGITS = 2 * 12 * 4**2, 2 * 4 * 10  # operations a token: the layer without attention, the output layer
TINY = ["experiment=smoke", "data.prompts.min_tokens=3", "data.prompts.max_tokens=3", "generation.max_new_tokens=2"]


def read(tokens: int, logits: int) -> int:
    """Operations of a row."""
    return tokens * LAYER + 4 * 4 * tokens**2 + logits * LOGITS


# a completion of 2 tokens after a prompt of 3: drawn, scored, read by a scalar head
DRAWN, SCORED, BARE = read(4, 2), read(5, 2), read(5, 0)


def run_of(*words: str) -> Run:
    (run,) = hours_work.composed([[*TINY, *words]])
    return run


# --- the paper --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def paper() -> list[Run]:
    return hours_work.composed(hours_work.jobs_of(["sweep=frontier", "experiment=paper"]))


def test_the_papers_runs_are_the_sweeps(paper: list[Run]) -> None:
    names = [(run.algo, run.variant) for run in paper]
    assert [(name, names.count(name)) for name in dict.fromkeys(names)] == [
        (("dpo", None), 4),
        (("unlikelihood", None), 4),
        (("ppo", "learned, paper"), 4),
        (("ppo", "ground_truth, paper"), 4),
        (("ppo", "ground_truth, trl_2023"), 4),
        (("preferred_ft", None), 2),
    ]
    knobs = [run.knob[1] for run in paper if run.knob is not None]
    assert knobs == [0.05, 0.1, 1, 5, 0.05, 0.1, 0.5, 1, *[3, 6, 9, 12] * 3]
    assert hours_work.sizes_of(vars(paper[0].model)) == Sizes(36, 1280, 50257)


def test_artifacts_are_made_once(paper: list[Run]) -> None:
    shared = hours_work.artifacts(paper)
    assert [stage for stage, _ in shared] == [
        *["data", "sft", "groups", "reference", "base", "reward_model", "reservoir", "learned_scores"]
    ]
    other = hours_work.composed([["experiment=paper", "algo=dpo", "groups.k=2"]])
    assert [stage for stage, _ in hours_work.artifacts([*paper[:2], *other])].count("groups") == 2


def test_amounts_of_the_paper(paper: list[Run]) -> None:
    sizes = Sizes(36, 1280, 50257)
    made = {stage: hours_work.of_artifact(stage, run, sizes) for stage, run in hours_work.artifacts(paper)[1:]}
    # 24,488 rows (512 are kept back) in batches of 64 are 383 steps; one pass, 512 tokens a row
    assert (made["sft"].amount, made["sft"].unit) == (383 * 64 * 512, "tokens")
    assert (made["groups"].amount, made["groups"].unit) == (25_000 * 4, "completions")
    assert made["reference"].amount == made["base"].amount == 1024 * 4
    assert made["reservoir"].amount == made["learned_scores"].amount == 1024 * 128
    assert (made["reward_model"].amount, made["reward_model"].unit) == (3 * 0.9 * 150_000, "pairs")
    assert (made["groups"].texts, made["reservoir"].texts, made["reward_model"].texts) == (100_000, 131_072, 0)
    found = {(run.algo, run.variant): hours_work.of_policy(run, sizes) for run in paper}
    # 6 pairs of 25,000 prompts in batches of 64: 2,343.75 steps; 23 evaluations, one more at the end
    for algo, unit in (("dpo", "pairs"), ("unlikelihood", "pairs"), ("preferred_ft", "rows")):
        training, evaluations = found[algo, None]
        assert (training.stage, training.amount, training.unit) == (f"{algo}: training", 2344 * 64, unit)
        assert (evaluations.amount, evaluations.texts) == (24 * 4096, 24 * 4096)
    # an evaluation every 25 batches, of 1,024 episodes or of TRL's 256
    for variant, points, texts in (
        ("learned, paper", 8, 0),
        ("ground_truth, paper", 8, 204_800),
        ("ground_truth, trl_2023", 32, 204_800),
    ):
        training, evaluations = found["ppo", variant]
        assert (training.amount, training.unit, training.texts) == (204_800, "episodes", texts)
        assert evaluations.amount == points * 4096


# --- operations -------------------------------------------------------------------------------------------------------


def test_operations_of_artifacts() -> None:
    prompts = ["data.prompts.train=7", "data.prompts.validation=2", "data.prompts.test=3", "evaluation.samples=4"]
    words = [*prompts, "groups.k=3", "data.sft_reviews=20", "sft.epochs=1", "sft.batch_size=5", "sft.max_tokens=6"]
    model = ["reward_model.epochs=2", "reward_model.validation=0.25", "reward_model.evaluations=3"]
    run = run_of("algo=best_of_n", "n=2", "reservoir.samples=8", *words, *model)
    # 2 rows are kept back; 18 make 4 batches of 5
    assert hours_work.of_artifact("sft", run, SIZES) == Work("sft", 120, "tokens", (3 * 20 + 2) * read(6, 5))
    assert hours_work.of_artifact("groups", run, SIZES) == Work("groups", 21, "completions", 21 * (DRAWN + SCORED), 21)
    expected = Work("reference", 20, "samples", 20 * (DRAWN + 2 * SCORED), 20)
    assert hours_work.of_artifact("reference", run, SIZES) == expected
    assert hours_work.of_artifact("reservoir", run, SIZES).operations == 40 * (DRAWN + SCORED)
    assert hours_work.of_artifact("learned_scores", run, SIZES).operations == 40 * BARE
    # two passes over three quarters of 21 completions; the rest is read at 3 evaluations and twice for the scale
    trained = hours_work.of_artifact("reward_model", run, SIZES)
    assert trained.operations == pytest.approx((3 * 2 * 0.75 + 5 * 0.25) * 21 * BARE)
    assert trained.amount == pytest.approx(2 * 0.75 * 7 * 3)
    assert hours_work.of_artifact("two_label", run, SIZES).operations is None


def test_prompts_have_every_length_equally_often() -> None:
    run = run_of("algo=dpo", "data.prompts.min_tokens=2", "data.prompts.max_tokens=4", "data.prompts.train=1")
    mean = sum(read(p + 1, 2) + read(p + 2, 2) for p in (2, 3, 4)) / 3
    assert hours_work.of_artifact("groups", run, SIZES).operations == pytest.approx(4 * mean)


def test_distinct_completions_of_each_batch() -> None:
    # all 6 pairs of each prompt in a batch of their own: 4 completions, 3 of which win
    prompts = ["data.prompts.train=5", "data.prompts.validation=2", "data.prompts.test=3", "evaluation.samples=4"]
    words = [*prompts, "policy.batch_size=6", "policy.epochs=2", "policy.steps=null", "evaluation.every=4"]
    training, evaluations = hours_work.of_policy(run_of("algo=dpo", *words), SIZES)
    assert training == Work("dpo: training", 60, "pairs", 3 * 10 * 4 * SCORED)
    assert evaluations.amount == 3 * 5 * 4  # after steps 4, 8 and 10
    assert evaluations.operations == pytest.approx(60 * (DRAWN + 2 * SCORED))
    training, _ = hours_work.of_policy(run_of("algo=preferred_ft", *words), SIZES)
    assert training == Work("preferred_ft: training", 60, "rows", 3 * 10 * 3 * SCORED)
    # all pairs in each batch, whatever the order
    whole = run_of("algo=unlikelihood", "data.prompts.train=5", "policy.batch_size=30", "policy.steps=7")
    assert hours_work.of_policy(whole, SIZES)[0] == Work("unlikelihood: training", 210, "pairs", 3 * 7 * 20 * SCORED)
    rankings = run_of("algo=dpo", "dpo.loss=plackett_luce")
    assert hours_work.of_policy(rankings, SIZES)[0].operations is None
    assert hours_work.of_policy(run_of("algo=sft"), SIZES) == []


def test_operations_of_ppo() -> None:
    words = ["algo=ppo", "ppo.episodes=50", "ppo.batch_size=16", "ppo.minibatch_size=8", "ppo.epochs=2"]
    own = run_of(*words, "ppo.reward=ground_truth", "ppo.value=own", "evaluation.every=2")
    training, evaluations = hours_work.of_policy(own, SIZES)
    # 3 batches; sampled, scored twice, valued, trained on twice
    expected = 48 * (DRAWN + 2 * SCORED + BARE + 2 * 3 * (SCORED + BARE))
    assert training == Work("ppo: training", 48, "episodes", expected, 48)
    points = evaluations.amount / ((own.data.prompts.validation + own.data.prompts.test) * own.evaluation.samples)
    assert points == 2
    shared = run_of(*words, "ppo.reward=learned", "ppo.value=shared")
    expected = 48 * (DRAWN + 2 * SCORED + BARE + 2 * 3 * SCORED)
    assert hours_work.of_policy(shared, SIZES)[0] == Work("ppo: training", 48, "episodes", expected, 0)


# --- rates ------------------------------------------------------------------------------------------------------------


def measured(stage: str, seconds: float, operations: float | None, batch: int = 64, value: str = "") -> Measured:
    return Measured(stage, 1, seconds, operations, "bf16", None, (batch,), (value,) if value else ())


def found_of(*stages: Measured, reward: bool = False) -> Results:
    return Results("a GPU", "x", SIZES, ("abc",), ("python train.py",), stages, reward, 1, {"groups.k": (4,)})


def test_rates_are_of_the_nearest_measurements() -> None:
    found = found_of(
        measured("sft", 10.0, 100.0),
        measured("sft", 30.0, 500.0),
        measured("sft", 1.0, 7.0, batch=8),
        measured("ppo: training", 2.0, 8.0, batch=64, value="own"),
        measured("ppo: training", 4.0, 8.0, batch=1024, value="shared"),
        measured("dpo: training", 0.0, 8.0),
    )
    rate = found.rate("sft", 64)
    assert rate is not None and (rate.operations, rate.seconds, rate.differs) == (15.0, 40.0, "")
    rate = found.rate("sft", 16)  # twice 8, a quarter of 64
    assert rate is not None and rate.operations == 7.0 and rate.differs == "batches of 8, here 16"
    rate = found.rate("ppo: training", 1024, "own")  # the network counts for more than the batch
    assert rate is not None and rate.operations == 4.0 and rate.differs == "batches of 64, here 1,024"
    rate = found.rate("ppo: training", 1024, "shared")
    assert rate is not None and rate.operations == 2.0 and not rate.differs
    assert found.rate("dpo: training", 64) is None  # in no time at all


def test_a_stage_that_was_not_measured_has_the_rate_of_its_like() -> None:
    found = found_of(measured("dpo: training", 2.0, 8.0), measured("reference", 3.0, 9.0))
    for stage, operations in (("preferred_ft: training", 4.0), ("ppo: evaluations", 3.0), ("reservoir", 3.0)):
        rate = found.rate(stage, 64)
        assert rate is not None and rate.operations == operations
    for stage in ("ppo: training", "sft", "reward_model", "learned_scores"):
        assert found.rate(stage, 64) is None


# --- lines ------------------------------------------------------------------------------------------------------------


def test_lines_of_a_small_sweep() -> None:
    words = ["reward=siebert", "data.prompts.train=5", "policy.batch_size=6", "policy.steps=10", "groups.batch_size=64"]
    runs = [run_of("algo=dpo", *words, f"beta={beta}") for beta in (0.1, 0.2)]
    other = Measured("start-up", 2, 8.0, None, None, None, (), ())
    found = found_of(
        measured("groups", 2.0, 1e3), measured("dpo: training", 4.0, 1e3, batch=6), measured("data", 3.0, None), other
    )
    shared = [("data", runs[0]), ("groups", runs[0])]
    made = {line.label: line for line in hours.lines(runs, shared, found, SIZES)}
    seconds = {name: line.seconds for name, line in made.items()}
    assert seconds["data"] == 3.0
    assert seconds["groups"] == pytest.approx(20 * (DRAWN + SCORED) / 500)
    assert seconds["dpo: training"] == pytest.approx(2 * 3 * 10 * 4 * SCORED / 250)
    assert made["dpo: training"].times == 2
    assert seconds["start and end of a process"] == 2 * 4.0
    assert seconds["dpo: evaluations"] is None and seconds["true reward (siebert)"] is None
    # the texts of groups and evaluations, each by a model that nobody measured
    reward = made["true reward (siebert)"].work
    assert reward is not None and reward.operations == pytest.approx(reward.amount * BARE)
    evaluated = made["dpo: evaluations"].work
    assert evaluated is not None and reward.amount == 20 + evaluated.amount
    included = hours.lines(runs, shared, found_of(*found.stages, reward=True), SIZES)
    assert not [line for line in included if line.label.startswith("true reward")]
    said = hours_table.unmeasured(list(made.values()), "gpt2-random")
    assert len(said) == 2 and said[0].startswith("not measured: dpo: evaluations; `python -m benchmarks stages")
    assert "model=gpt2-random" in said[0] and "algo=dpo" in said[0] and "algo=best_of_n" in said[1]
    assert hours_table.total(list(made.values())).startswith("at least ")


def test_cells() -> None:
    work = Work("sft", 7200.0, "tokens", 36e12)
    line = hours_table.Line("sft", 1, work, hours_rates.Rate("sft", 5e9, 12.0, ""), 7200.0)
    expected = ("sft", "1", "7,200 tokens", "36 T", "0.005 T/s over 12 s", "1 tokens/s", "2")
    assert hours_table.cells(line) == expected
    texts = [hours_table.clock(hours * 3600) for hours in (0, 0.0001, 0.0123, 1.234, 12.34, 1234)]
    assert texts == ["0.000", "<0.001", "0.012", "1.23", "12.3", "1,234"]


@pytest.mark.parametrize("words", hours_rates.MEASURING.values())
def test_what_measures_a_stage_composes(words: str) -> None:
    given = f"{hours_rates.command('gpt2-large-random')} {words}".split()
    assert given[:4] == ["python", "-m", "benchmarks", "stages"]
    (run,) = hours_work.composed(hours_work.jobs_of(given[4:]))
    (paper,) = hours_work.composed([["experiment=paper", "model=gpt2-large-random", f"algo={run.algo}"]])
    assert run.model == paper.model and run.groups.batch_size == paper.groups.batch_size  # type: ignore[attr-defined]
    assert run.trainer.micro_batch == paper.trainer.micro_batch and run.sft.batch_size == paper.sft.batch_size


# --- results and the command ------------------------------------------------------------------------------------------


@pytest.fixture
def result(tmp_path: Path) -> Callable[..., Path]:
    """A saved result of every kind of stage at 1 T/s, and more seconds than the operations of one."""

    def make(name: str, words: str = "experiment=smoke algo=dpo", device: str = "a GPU", **stages: float) -> Path:
        rows = [
            {
                "stage": stage.replace("__", ": "),
                **{"count": 1, "seconds": seconds, "amount": 1, "unit": "steps", "operations": seconds * 1e12},
                **{"precision": "bf16", "threads": None},
            }
            for stage, seconds in stages.items()
        ]
        account = {"command": f"python train.py {words}", "wall": 9.0, "slots": 1, "runs": 1, "rows": rows}
        folder = tmp_path / name
        folder.mkdir()
        whole: dict[str, Any] = {"device": device, "commit": "abc", "accounts": [account]}
        (folder / "stages.json").write_text(json.dumps(whole))
        return folder

    return make


def test_the_papers_hours_from_two_results(
    result: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = "experiment=rehearsal model=gpt2-large-random"
    preferences = result("one", f"{model} algo=dpo", sft=3.0, groups=4.0, reference=5.0, dpo__training=6.0)
    stages = {"ppo__training": 2.0, "reward_model": 2.0, "learned_scores": 2.0}
    ppo = result("two", f"{model} algo=ppo", **stages)
    words = ["hours", str(preferences), str(ppo / "stages.json"), "--out", str(tmp_path / "out"), "--name", "h"]
    assert command.main(words) == 0
    found = json.loads((tmp_path / "out" / "h" / "results.json").read_text())
    assert found["device"] == "a GPU" and not found["not_measured"]
    assert found["measured"]["layers"] == 36 and found["command"].startswith("python -m benchmarks hours ")
    seconds = {row["label"]: row["seconds"] for row in found["rows"]}
    assert found["hours"] == pytest.approx(sum(seconds.values()) / 3600)
    # every operation at 1 T/s: 204,800 episodes of 5 tokens on average and 48
    weights, logits = 2 * 36 * 12 * 1280**2, 2 * 1280 * 50257
    lengths = range(2, 9)

    def rows(back: int, scored: bool) -> float:
        each = [(p + 48 - back) * (weights + 4 * 36 * 1280 * (p + 48 - back)) + scored * 48 * logits for p in lengths]
        return sum(each) / 7

    once = rows(1, True) + 2 * rows(0, True) + rows(0, False)
    expected = 4 * 204_800 * (once + 4 * 3 * (rows(0, True) + rows(0, False)))
    assert seconds["ppo (ground_truth, paper): training"] == pytest.approx(expected / 1e12)
    learned = expected + 4 * 204_800 * rows(0, False)
    assert seconds["ppo (learned, paper): training"] == pytest.approx(learned / 1e12)
    assert seconds["groups"] == pytest.approx(1e5 * (rows(1, True) + rows(0, True)) / 1e12)
    assert seconds["true reward (siebert)"] > seconds["learned_scores"]
    table = (tmp_path / "out" / "h" / "table.md").read_text()
    assert "22 runs of experiment=paper, sweep=frontier, on a GPU" in table and "600,064 pairs" in table
    assert "unlikelihood: training, preferred_ft: training: at the rate of dpo: training" in table
    assert "ppo.value=own, here shared, which `algo=ppo ppo=trl_2023" in table
    assert "saved:" in capsys.readouterr().out


def test_what_was_not_measured_is_told_with_the_command(
    result: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = result("one", sft=3.0)
    assert command.main(["hours", str(folder), "--out", str(tmp_path / "out"), "--name", "h"]) == 1
    found = json.loads((tmp_path / "out" / "h" / "results.json").read_text())
    assert [row["label"] for row in found["rows"] if row["rate"]] == ["sft"]
    assert any("reward_model" in line and "algo=ppo" in line for line in found["not_measured"])
    assert any("trl_2023" in line and "ppo=trl_2023" in line.partition(";")[2] for line in found["not_measured"])
    assert all("model=gpt2-large-random" in line for line in found["not_measured"])
    assert any(line.startswith("Measured with another model: tiny") for line in found["assumed"])
    differences = [line for line in found["assumed"] if line.startswith("Measured with sft.max_tokens=")]
    assert len(differences) == 1 and differences[0].endswith("and the work is of 512.")
    assert any(line.startswith("No seconds were saved of data, loading and results") for line in found["assumed"])
    assert "at least" in capsys.readouterr().out


def test_runs_that_were_only_read_tell_their_configuration(tmp_path: Path) -> None:
    run = tmp_path / "out" / "runs" / "x"
    run.mkdir(parents=True)
    config = {
        **{"algo": "dpo", "model": {"name": "mine", "layers": 1, "width": 4, "vocabulary": 10}, "sft": {}},
        **{"reward": {"name": "lexicon"}, "trainer": {"processes": 1}, "policy": {"batch_size": 3}},
    }
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    row = {"stage": "dpo: training", "count": 1, "seconds": 2.0, "operations": 8.0, "precision": "bf16", "threads": 2}
    account = {"command": str(tmp_path / "out"), "slots": 1, "rows": [row]}
    file = tmp_path / "stages.json"
    file.write_text(json.dumps({"device": "d", "commit": "c", "accounts": [account]}))
    with pytest.raises(ConfigError, match="where no run is any more"):
        hours_rates.read([file])
    (run / "DONE").write_text("{}")
    found = hours_rates.read([file])
    assert (found.device, found.model, found.sizes) == ("d", "mine", SIZES)
    assert found.stages == (Measured("dpo: training", 1, 2.0, 8.0, "bf16", 2, (3,), ()),)


def test_refusals(result: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = result("first", sft=1.0)
    elsewhere = result("elsewhere", device="a CPU", sft=1.0)
    larger = result("larger", "experiment=smoke model.width=64", sft=1.0)
    gone = result("gone", "experiment=smoke beta=-1", sft=1.0)
    several = result("several", "experiment=smoke trainer.processes=2", sft=1.0)
    judged = result("judged", "experiment=smoke reward=two_label", sft=1.0)
    for name, text in (
        ("bare", '{"device": "d", "commit": "c", "accounts": [{}]}'),
        ("short", (first / "stages.json").read_text().replace('"count": 1, ', "")),
    ):
        (tmp_path / f"{name}.json").write_text(text)
    (tmp_path / "other.json").write_text('{"rows": []}')
    (tmp_path / "empty").mkdir()
    for words, said in (
        ([], "no result to read rates from: first run `python -m benchmarks stages experiment=rehearsal"),
        ([first, elsewhere], "results of two devices"),
        ([first, larger], "results of two models: "),
        ([first, larger], f"{larger / 'stages.json'} of tiny (1 layers, width 64, vocabulary 400)"),
        ([gone], "beta=-1"),
        ([tmp_path / "other.json"], "is no result of `python -m benchmarks stages`"),
        ([tmp_path / "empty"], "holds no stages.json"),
        ([tmp_path / "nowhere"], "is not there"),
        ([several], "is of runs in 2 processes"),
        ([first, judged], "results of two true rewards: "),
        ([tmp_path / "bare.json"], "bare.json is damaged (KeyError: 'command')"),
        ([tmp_path / "short.json"], "short.json is damaged (KeyError: 'count')"),
    ):
        with pytest.raises(SystemExit) as refused:
            command.main(["hours", *map(str, words), "--out", str(tmp_path / "out")])
        error = capsys.readouterr().err.splitlines()[-1]
        assert refused.value.code == 2 and said in error
    assert not (tmp_path / "out").exists()
