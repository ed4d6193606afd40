"""Every file of conf/ composes to typed values and explains its keys, and no option is dead."""

import ast
import re
from dataclasses import MISSING, fields, is_dataclass
from itertools import product
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from omegaconf import OmegaConf

from imdb_rlhf import cli, typed_run
from imdb_rlhf.config import machine
from imdb_rlhf.config.algos import DPOLoss, DPORun, PPORun, SFTRun
from imdb_rlhf.config.data import EmbeddedData, ImdbData, PromptsConfig
from imdb_rlhf.config.keys import ALGORITHMS, CLASSES, SCHEMAS, owners
from imdb_rlhf.config.machine import LoggerConfig, TrainerConfig, WandbLogger
from imdb_rlhf.config.model import Attention, PretrainedModel, ScratchModel
from imdb_rlhf.config.optim import AdamWConfig, RMSpropConfig
from imdb_rlhf.config.ppo import PPOConfig
from imdb_rlhf.config.reward import ClassifierReward, LexiconReward, Objective, OwnReward, RewardSource, TwoLabelReward
from imdb_rlhf.config.run import Run
from imdb_rlhf.config.stages import Labels, ReservoirConfig
from imdb_rlhf.errors import ConfigError
from tests.command import composed, refusal, run_of

CONF = typed_run.CONF
FILES = sorted(path.relative_to(CONF) for path in CONF.rglob("*.yaml"))
SWEEPS = sorted(typed_run.SWEEPS.glob("*.yaml"))


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


ALGOS, EXPERIMENTS = choices("algo"), choices("experiment")


def needs(group: str, name: str) -> list[str]:
    """What a choice cannot do without: a value for each key that its file, or one that it chooses, leaves open."""

    def walk(node: Any, at: str) -> list[str]:
        if isinstance(node, dict):
            return [word for key, value in node.items() for word in walk(value, f"{at}.{key}" if at else str(key))]
        return [f"{at}=mine.py:score"] if node == "???" else []

    file = CONF / group / f"{name}.yaml"
    content: Any = OmegaConf.to_container(OmegaConf.load(file)) if file.exists() else {}
    words = walk(content, "" if group in ("algo", "experiment") else group)
    for choice in content.get("defaults", []):
        if isinstance(choice, dict):
            words += [
                word
                for key, value in choice.items()
                if str(key).startswith("override /")
                for word in needs(str(key).removeprefix("override /"), str(value))
            ]
    return words


def test_needs():
    assert needs("reward", "own") == ["reward.function=mine.py:score"]
    assert needs("algo", "own_model") == ["own_model.path=mine.py:score"]
    assert needs("experiment", "imdb_pretrained") == ["model.path=mine.py:score"]
    assert needs("algo", "dpo") == needs("data", "imdb") == needs("experiment", "imdb_cpu") == []


def sections(experiment: str) -> dict[str, Any]:
    """What an experiment changes in single algorithms."""
    file = CONF / "experiment_algo" / f"{experiment}.yaml"
    content = OmegaConf.to_container(OmegaConf.load(file))
    assert isinstance(content, dict)
    return {str(algo): section for algo, section in content.items()}


def commands_of(file: Path) -> list[list[str]]:
    """The commands that read a file of conf/."""
    group, name = file.parent.as_posix(), file.stem
    if group == "optim":
        places = [["optim@sft.optim"], ["optim@policy.optim"], ["reward=two_label", "optim@reward.optim"]]
        places += [["algo=reward_model", "optim@reward_model.optim"]]
        own = ("ppo", "reinforce", "rloo", "grpo", "online_dpo")  # they set AdamW's own keys
        places += [[f"algo={algo}", f"optim@{algo}.optim"] for algo in own] if name == "adamw" else []
        return [[*before, f"{place}={name}"] for *before, place in places]
    if group == "experiment_algo":  # a section per algorithm; all are composed below, each with every experiment
        algo = next(iter(sections(name)))
        return [[f"experiment={name}", f"algo={algo}", *needs("experiment", name)]]
    if group not in ("algo", "experiment") and (algorithms := owners(group)) and len(algorithms) == 1:
        return [[f"algo={algorithms[0]}", f"{group}={name}"]]
    if group in (".", "stage"):  # always there
        return [[]]
    return [[f"{group}={name}", *needs(group, name)]]


@pytest.mark.parametrize("file", FILES, ids=str)
def test_every_file_composes(file):
    commands = commands_of(file)
    assert commands, f"no command reads conf/{file}"
    for overrides in commands:
        choices = composed(*overrides, hydra=True).hydra.runtime.choices
        chosen = {(group.partition("@")[0], name) for group, name in choices.items()}
        group, name = file.parent.as_posix(), file.stem
        name = f"{name}_{overrides[1].removeprefix('algo=')}" if group == "experiment_algo" else name
        assert group in (".", "stage") or (group, name) in chosen
        run = run_of(*overrides)
        assert isinstance(run, Run)
        typed(run)


def typed(node: Any) -> None:
    """No piece of a run is left as a plain dictionary, and every value has its field's type."""
    hints = get_type_hints(type(node))
    for field in fields(node):
        value = getattr(node, field.name)
        assert not isinstance(value, dict), field.name
        if isinstance(hints[field.name], type):
            assert isinstance(value, hints[field.name]), field.name
        if is_dataclass(value):
            typed(value)


# Runs that each file of sweeps/ stands for, counted by hand.
SIZES = {
    "frontier": 22,
    "beta": 13,
    "kl_target": 16,
    "seeds": 155,
    "optimizer": 37,
    "labels": 17,
    "length": 15,
    "smoke": 6,
    "pretrained": 9,
}


def jobs_of(file: Path) -> list[list[str]]:
    """The jobs of a sweep: of each line the product of its values."""
    jobs = []
    for line in OmegaConf.select(OmegaConf.load(file), "grids"):
        words = [word.partition("=") for word in line.split()]
        missing = [word for key, _, name in words if key == "experiment" for word in needs(key, name)]
        each = ([f"{key}={value}" for value in values.split(",")] for key, _, values in words)
        jobs += [[*job, *missing] for job in product(*each)]
    return jobs


@pytest.mark.parametrize("file", SWEEPS, ids=lambda file: file.stem)
def test_every_job_of_every_sweep_composes(file):
    jobs = jobs_of(file)
    if file.stem == "seeds":  # they differ in the seed, whose every value the other sweeps' jobs could have
        jobs = [job for job in jobs if "seed=4" in job]
    runs = [run_of(*job) for job in jobs]
    named = [[word.removeprefix("algo=") for word in job if word.startswith("algo=")] for job in jobs]
    assert [[run.algo] for run in runs] == named, "a job does not name its algorithm, or another is run"
    assert len({repr(run) for run in runs}) == len(jobs), "a job stands twice"


@pytest.mark.parametrize("file", sorted((typed_run.SWEEPS / "wandb").glob("*.yaml")), ids=lambda file: file.stem)
def test_a_wandb_agents_command_composes(file):
    """With the parameters' ends, as an agent gives them."""
    sweep: Any = OmegaConf.to_container(OmegaConf.load(file))
    ends = {
        key: [parameter["min"], parameter["max"]] if "min" in parameter else parameter["values"]
        for key, parameter in sweep["parameters"].items()
    }
    assert (sweep["program"], sweep["metric"]["name"]) == ("train.py", "reward")
    assert sweep["command"][:3] == ["${env}", "${interpreter}", "${program}"]
    for at in (0, -1):
        given = [f"{key}={values[at]}" for key, values in ends.items()]
        words = [word for part in sweep["command"][3:] for word in (given if part == "${args_no_hyphens}" else [part])]
        run = run_of(*words)
        assert isinstance(run, DPORun) and run.beta == ends["beta"][at]
        assert isinstance(run.logger, WandbLogger) and run.logger.mode == "online"


def test_an_agents_sweep_is_no_choice_of_sweep():
    from hydra.core.config_store import ConfigStore

    composed()
    assert set(ConfigStore.instance().list("sweep")) == {f"{file.stem}.yaml" for file in SWEEPS}


def test_several_loggers():
    both = run_of("logger=[tensorboard,wandb]").logger
    assert isinstance(both, WandbLogger) and both.others == ["tensorboard"]
    assert run_of("logger=[wandb,tensorboard]").logger == both
    three = run_of("logger=[mlflow,trackio]", "logger.tensorboard=true").logger
    assert type(three) is LoggerConfig and three.others == ["tensorboard", "mlflow", "trackio"]
    assert run_of("logger=none").logger.others == []


@pytest.mark.parametrize("words", ["logger=tensorbord", "logger=[wandb,tensorbord]"])
def test_a_wrong_logger_is_refused_with_the_choices(words):
    message = refusal(words)
    assert "did you mean logger=tensorboard?" in message
    assert message.endswith("there are mlflow, none, tensorboard, trackio, wandb")


def test_a_tracker_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setattr(machine, "find_spec", lambda name: None if name == "mlflow" else True)
    machine.check_trackers(run_of("logger=[wandb,tensorboard]").logger)
    with pytest.raises(ConfigError, match="^logger=mlflow: its package is not installed; pip install mlflow$"):
        machine.check_trackers(run_of("logger=[wandb,mlflow]").logger)


def test_the_sizes_of_the_sweeps():
    sizes = {file.stem: len(jobs_of(file)) for file in SWEEPS}
    assert sizes.items() >= SIZES.items()
    for file in SWEEPS:
        comment = file.read_text().partition("grids:")[0]
        assert all(int(number) == sizes[file.stem] for number in re.findall(r"\b(\d+) runs\b", comment)), file


def test_frontier_is_the_papers_22_runs():
    runs = [run_of(*job) for job in jobs_of(typed_run.SWEEPS / "frontier.yaml")]
    knobs: dict[tuple[str, str | None], list[float | None]] = {}
    for run in runs:
        knobs.setdefault((run.algo, run.variant), []).append(run.knob[1] if run.knob else None)
    targets = [3.0, 6.0, 9.0, 12.0]
    assert knobs == {
        ("dpo", None): [0.05, 0.1, 1.0, 5.0],
        ("unlikelihood", None): [0.05, 0.1, 0.5, 1.0],
        ("ppo", "learned, small"): targets,
        ("ppo", "ground_truth, small"): targets,
        ("ppo", "ground_truth, trl_2023"): targets,
        ("preferred_ft", None): [None, None],
    }
    assert [run.seed for run in runs] == [0] * 21 + [1]


@pytest.mark.parametrize("algo", ALGOS)
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_with_every_algorithm(experiment, algo):
    run = run_of(f"experiment={experiment}", f"algo={algo}", *needs("experiment", experiment), *needs("algo", algo))
    assert run.algo == algo
    assert type(run).__name__.lower() == f"{algo.replace('_', '')}run"
    assert type(run) is ALGORITHMS[algo]
    typed(run)


@pytest.mark.parametrize("reward", choices("reward"))
@pytest.mark.parametrize("data", choices("data"))
def test_choices_go_together(data, reward):
    chosen = [f"data={data}", "model=gpt2", f"reward={reward}"]
    run = run_of(*chosen, *needs("data", data), *needs("reward", reward))
    assert (run.data.name, run.model.name, run.reward.name) == (data, "gpt2", reward)


@pytest.mark.parametrize(
    ("overrides", "place", "wanted"),
    [
        ([], "", DPORun),
        (["algo=sft"], "", SFTRun),
        (["algo=reward_model"], "reward_model.objective", Objective),
        (["algo=ppo"], "ppo", PPOConfig),
        (["algo=ppo"], "ppo.optim", AdamWConfig),
        (["algo=ppo"], "reward_model.optim", AdamWConfig),
        (["algo=ppo", "ppo.reward=ground_truth"], "ppo.reward", RewardSource),
        (["algo=best_of_n"], "reservoir", ReservoirConfig),
        (["algo=best_of_n"], "best_of_n.selector", RewardSource),
        (["algo=unlikelihood"], "policy.optim", RMSpropConfig),
        (["dpo.loss=ipo"], "dpo.loss", DPOLoss),
        ([], "model", ScratchModel),
        (["model=gpt2-large-random"], "model", ScratchModel),
        (["model=gpt2-large"], "model", PretrainedModel),
        ([], "data", EmbeddedData),
        (["data=imdb"], "data", ImdbData),
        ([], "data.prompts", PromptsConfig),
        ([], "reward", LexiconReward),
        (["reward=siebert"], "reward", ClassifierReward),
        (["reward=two_label"], "reward", TwoLabelReward),
        (["reward=two_label"], "reward.optim", AdamWConfig),
        (["reward=own", "reward.function=a.py:f"], "reward", OwnReward),
        ([], "sft.optim", AdamWConfig),
        ([], "policy.optim", RMSpropConfig),
        (["optim@policy.optim=adamw"], "policy.optim", AdamWConfig),
        (["optim@sft.optim=rmsprop"], "sft.optim", RMSpropConfig),
        ([], "logger", WandbLogger),
        (["logger=none"], "logger", LoggerConfig),
        ([], "pairs.labels", Labels),
        ([], "model.attention", Attention),
        ([], "trainer", TrainerConfig),
    ],
)
def test_nested_types(overrides, place, wanted):
    value: Any = run_of(*overrides)
    for name in filter(None, place.split(".")):
        value = getattr(value, name)
    assert type(value) is wanted


def test_values_that_readme_and_paper_state():
    run = run_of()
    assert isinstance(run, DPORun)
    assert (run.algo, run.beta, run.seed, run.knob) == ("dpo", 0.1, 0, ("beta", 0.1))
    assert (run.groups.k, run.data.prompts.min_tokens, run.data.prompts.max_tokens) == (4, 2, 8)
    paper = run_of("experiment=paper")
    assert isinstance(paper, DPORun)
    stated = (paper.policy.batch_size, paper.policy.optim.name, paper.policy.optim.lr, paper.policy.optim.warmup_steps)
    assert stated == (64, "rmsprop", 1e-6, 150)
    assert run_of("algo=sft").knob is None
    assert run_of("data=imdb").data.prompts.train == 25_000


@pytest.mark.parametrize(
    ("overrides", "knob", "variant"),
    [
        (["algo=unlikelihood", "alpha=0.05"], ("alpha", 0.05), None),
        (["algo=preferred_ft"], None, None),
        (["algo=reward_model"], None, None),
        (["algo=reward_model", "reward_model.objective=best_of_k"], None, "best_of_k"),
        (["algo=best_of_n", "n=8"], ("n", 8), "learned"),
        (["algo=best_of_n", "best_of_n.selector=ground_truth"], ("n", 16), "ground_truth"),
        (["algo=ppo", "ppo=paper"], ("target_kl", 6.0), "learned, paper"),
        (["algo=ppo", "ppo.reward=ground_truth", "target_kl=9"], ("target_kl", 9.0), "ground_truth, small"),
        (["algo=ppo", "target_kl=null", "ppo.kl_coefficient=0.2"], ("kl_coefficient", 0.2), "learned, small"),
        (["dpo.loss=hinge"], ("beta", 0.1), "hinge"),
        (["algo=own_model", "own_model.path=owner/name"], None, "owner/name"),
        (["algo=own_model", "own_model.path=owner/name", "own_model.name=mine"], None, "mine"),
    ],
)
def test_what_tells_methods_and_their_strengths_apart(overrides, knob, variant):
    run = run_of(*overrides)
    assert (run.knob, run.variant) == (knob, variant)


@pytest.mark.parametrize("preset", choices("ppo"))
def test_presets_set_the_optimisation_and_leave_the_rest(preset):
    run, small = run_of("algo=ppo", f"ppo={preset}"), run_of("algo=ppo", "ppo=small")
    assert isinstance(run, PPORun) and isinstance(small, PPORun)
    for name in ("reward", "scale", "kl_coefficient", "rollout_batch_size", "missing_eos_penalty", "early_stop_kl"):
        assert getattr(run.ppo, name) == getattr(small.ppo, name), name
    assert (run.reward_model, run.reservoir, run.groups) == (small.reward_model, small.reservoir, small.groups)


def test_what_the_papers_of_ppo_state():
    # arXiv 2305.18290, appendix: 1,024 episodes a step. lm-human-preferences: target 6, 0.15 over 10,000 episodes.
    paper, ziegler, trl = (run_of("algo=ppo", f"ppo={name}") for name in ("paper", "ziegler", "trl_2023"))
    assert isinstance(paper, PPORun) and isinstance(ziegler, PPORun) and isinstance(trl, PPORun)
    assert (paper.ppo.batch_size, paper.ppo.normalize) == (1024, True)
    assert (ziegler.target_kl, ziegler.ppo.initial_kl_coefficient, ziegler.ppo.horizon) == (6.0, 0.15, 10_000)
    for run in (paper, ziegler, trl):
        assert (run.ppo.gamma, run.ppo.lam, run.ppo.policy_clip, run.ppo.value_clip) == (1.0, 0.95, 0.2, 0.2)
        assert (run.ppo.epochs, run.ppo.value_coefficient) == (4, 0.1)
    # TRL's example: AdamW at 1.41e-5, batches of 256 in minibatches of 16, coefficient 0.2
    assert (trl.ppo.optim.lr, trl.ppo.batch_size, trl.ppo.minibatch_size) == (1.41e-5, 256, 16)
    assert (trl.ppo.initial_kl_coefficient, trl.ppo.normalize, trl.ppo.advantage_whitening) == (0.2, False, "minibatch")


@pytest.mark.parametrize(
    ("experiment", "preset"),
    [("default", "small"), ("imdb_cpu", "imdb_cpu"), ("paper", "paper"), ("rehearsal", "paper"), ("smoke", "small")],
)
def test_an_experiment_has_its_preset(experiment, preset):
    run = run_of(f"experiment={experiment}", "algo=ppo")
    changed = run_of(f"experiment={experiment}", "algo=ppo", "ppo=ziegler")
    assert isinstance(run, PPORun) and isinstance(changed, PPORun)
    assert (run.ppo.preset, changed.ppo.preset) == (preset, "ziegler")


def test_default_says_the_values_of_a_default_run():
    text = (CONF / "experiment" / "default.yaml").read_text()
    values = re.findall(r"([a-z_.]+)=(\S+)(?=[ \n])", "".join(re.findall(r"^#   (.*\n)", text, re.M)))
    assert [key for key, _ in values] == [
        "policy.batch_size",
        "policy.optim.lr",
        "policy.optim.warmup_steps",
        "policy.optim.schedule",
        "pairs.min_margin",
    ]
    run = run_of()
    assert run_of(*(f"{key}={value}" for key, value in values)) == run
    paper = run_of("policy.batch_size=64", "policy.optim.lr=1e-6")  # as conf/algo/dpo.yaml and the comment have it
    assert isinstance(paper, DPORun) and isinstance(run, DPORun) and paper.policy != run.policy
    changed = sections("default")["dpo"]
    assert set(changed) == {"policy", "pairs"} and set(changed["pairs"]) == {"min_margin"}
    assert len(changed["policy"]) - 1 + len(changed["policy"]["optim"]) == 4


def test_a_section_changes_its_algorithm_and_no_other():
    for experiment in (file.stem for file in (CONF / "experiment_algo").glob("*.yaml")):
        for algo, section in sections(experiment).items():
            values = OmegaConf.to_container(composed(f"experiment={experiment}", f"algo={algo}"))
            assert contains(values, section), (experiment, algo)


def contains(whole: Any, part: Any) -> bool:
    if isinstance(part, dict):
        return all(key in whole and contains(whole[key], value) for key, value in part.items())
    return bool(str(whole) == str(part))


def test_an_experiment_may_choose_the_algorithm():
    run = run_of("experiment=trl_gpt2_sentiment")
    assert isinstance(run, PPORun) and isinstance(run.reward, ClassifierReward)
    assert (run.ppo.preset, run.ppo.reward, run.ppo.scale) == ("trl_2023", "ground_truth", "logit")
    assert (run.sft.path, run.reward.ranking) == ("lvwerra/gpt2-imdb", "positive_logit")
    assert (run.generation.shortest_limit, run.generation.max_new_tokens) == (4, 15)
    assert run_of("experiment=trl_gpt2_sentiment", "algo=dpo").algo == "dpo"


def test_precedence_is_groups_then_experiment_then_command_line():
    groups, experiment, changed = (
        run_of(*more) for more in (["data=imdb"], ["experiment=imdb_cpu"], ["experiment=imdb_cpu", "sft.max_tokens=90"])
    )
    assert len({groups.sft.max_tokens, experiment.sft.max_tokens, 90}) == 3
    assert changed.sft.max_tokens == 90
    assert (changed.model.name, changed.data.name, changed.reward.name) == ("small", "imdb", "two_label")


def test_what_an_experiment_changes_in_one_algorithm_only():
    run = run_of("experiment=imdb_cpu")
    default = run_of()
    assert isinstance(run, DPORun) and isinstance(default, DPORun)
    assert run.policy.optim.lr != default.policy.optim.lr
    assert run_of("experiment=imdb_cpu", "algo=sft").evaluation.every == run_of("algo=sft").evaluation.every


def test_the_choice_of_a_file_is_its_name():
    for file in FILES:
        group = file.parent.as_posix()
        if group in ("algo", "data", "model", "optim", "reward"):
            values = OmegaConf.to_container(OmegaConf.load(CONF / file))
            assert isinstance(values, dict)
            assert values["algo" if group == "algo" else "name"] == file.stem, file


# --- no dead option, no value in Python


def test_every_type_is_made_by_some_command():
    types: set[type] = set()

    def walk(node: Any) -> None:
        types.update(type(node).__mro__)
        for field in fields(node):
            if is_dataclass(getattr(node, field.name)):
                walk(getattr(node, field.name))

    for file in FILES:
        for overrides in commands_of(file):
            walk(run_of(*overrides))
    assert not {name for name, value in CLASSES.items() if value not in types}
    assert not {name for name, schema in SCHEMAS.items() if schema not in types}


def test_a_field_has_no_default_so_a_file_must_set_it():
    for name, schema in CLASSES.items():
        for field in fields(schema):
            assert field.default is MISSING and field.default_factory is MISSING, f"{name}.{field.name}"


def parts_that_act(path: Path) -> list[ast.AST]:
    """A module; of `config/` what is no check: nobody uses a key that is only checked there."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if path.parent.name != "config":
        return [tree]
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return [node for node in functions if not node.name.startswith(("check", "_"))]


def test_every_field_is_read_somewhere():
    sources = [*Path(cli.__file__).parent.rglob("*.py")]
    read = {
        node.attr
        for path in sources
        for part in parts_that_act(path)
        for node in ast.walk(part)
        if isinstance(node, ast.Attribute)
    }
    names = {(name, field.name) for name, schema in CLASSES.items() for field in fields(schema)}
    assert not {f"{schema}.{name}" for schema, name in names if name not in read}


def test_every_file_holds_only_known_keys():
    """What a composed config holds is what its types have; the reverse of a field that no file sets."""

    def walk(node: Any, at: str) -> None:
        schema = OmegaConf.get_type(node)
        assert is_dataclass(schema), at
        names = {field.name for field in fields(schema)}
        assert set(node) - {"hydra"} == names, at
        for name in names:
            if is_dataclass(OmegaConf.get_type(node, name)) and node[name] is not None:
                walk(node[name], f"{at}{name}.")

    for file in FILES:
        for overrides in commands_of(file):
            walk(composed(*overrides, hydra=True), "")


# --- every key is explained where it gets its value

# Keys whose name is their meaning, and neighbours that the comment above the first of them explains.
PLAIN = {"name", "algo", "model", "data", "reward", "trainer", "logger", "experiment", "defaults", "optim", "prompts"}
PLAIN |= {"policy", "paths", "layers", "width", "heads", "attention", "hub_id", "function", "project", "tags"}
PLAIN |= {"ppo", "preset", "best_of_n", "minibatch_size", "lam", "value_clip", "max_kl_coefficient"}
PLAIN |= {"beta1", "beta2", "eps", "weight_decay", "alpha", "max_tokens", "prompt_splits", "test_splits", "dpo"}
PLAIN |= {"reinforce", "rloo", "grpo", "online_dpo"}


def unexplained(text: str) -> list[str]:
    """Keys of a YAML file without a comment beside them or on the line above; those below `optim` only change."""
    bare, above, inside = [], "", 99
    for line in text.splitlines():
        key = re.match(r"( *)([a-z_0-9]+):", line)
        if key:
            indent = len(key[1])
            inside = indent if key[2] == "optim" else 99 if indent <= inside else inside
            explained = above.lstrip().startswith("#") or " #" in line or key[2] in PLAIN or indent > inside
            if not explained:
                bare.append(key[2])
        above = line
    return bare


def test_what_unexplained_means():
    text = "# A file.\na: 1\nb: 2  # why\nc: 3\noptim:\n  lr: 1\nd:\n  # How many.\n  e: 5\n  f: 6\n"
    assert unexplained(text) == ["c", "d", "f"]


def is_base(file: Path) -> bool:
    """Whether a file gives first values, rather than changing those of another."""
    text = (CONF / file).read_text()
    return not file.parent.name.startswith("experiment") and not re.search(r"^  - [\w-]+$\n  - _self_", text, re.M)


@pytest.mark.parametrize("file", [file for file in FILES if is_base(file)], ids=str)
def test_every_key_is_explained(file):
    text = (CONF / file).read_text().partition("\nhydra:")[0]
    assert not unexplained(text)


@pytest.mark.parametrize("file", FILES, ids=str)
def test_every_file_says_what_it_is(file):
    comments = [line for line in (CONF / file).read_text().splitlines()[:2] if line.startswith("# ")]
    assert any("@package" not in line for line in comments)


# --- to_run


def test_to_run_leaves_the_composed_config_alone():
    config = composed("beta=0.5", hydra=True)
    before = OmegaConf.to_yaml(config)
    run = typed_run.to_run(config)
    assert isinstance(run, DPORun) and run.beta == 0.5
    assert OmegaConf.to_yaml(config) == before


def test_the_stored_config_composes_to_the_same_run():
    run = run_of("experiment=imdb_cpu", "beta=0.25", "data.path=reviews")
    text = OmegaConf.to_yaml(OmegaConf.structured(run))
    again = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(run), OmegaConf.create(text)))
    assert again == run


def test_a_group_that_is_taken_away_is_missed():
    with pytest.raises(ConfigError, match="^reward has no value"):
        run_of("~reward")
