"""Our programs of value-guided sampling: training a value beside DPO, and sampling with it beside the reference."""

from copy import deepcopy

import numpy as np
import torch

from benchmarks.operations import Sizes, bare, sampled
from benchmarks.programs import package
from benchmarks.programs.package import NEVER, configured, load_policy, sizes_of, train
from benchmarks.programs.program import Record, Setup
from benchmarks.workload import K
from imdb_rlhf.algos.value import Rewarded, ValueLearning
from imdb_rlhf.config.decoding import GuidedRun
from imdb_rlhf.models.mixtures import Guided
from imdb_rlhf.models.policy import freeze
from imdb_rlhf.models.sampling import sample, uniforms
from imdb_rlhf.models.value import ActionValue, make_value
from imdb_rlhf.training.runtime import Runtime

BETA = 0.1


def _value(setup: Setup, network: str) -> tuple[GuidedRun, Runtime, ActionValue]:
    """A fresh value network of the configured size on the workload's reference."""
    run, runtime = configured(setup, GuidedRun, "algo=guided", f"value.network={network}")
    lm = load_policy(setup, "reference").lm.to(runtime.device)
    centres = torch.linspace(0, 1, run.value.bins)
    return run, runtime, make_value(lm, centres, run.value.rank, 0, own=network == "own")


def head_operations(sizes: Sizes, value: ActionValue, states: float, entries: float) -> float:
    """Operations of the head: its map of `states` states, and its products with `entries` tokens after each."""
    bins, rank = value.head.bins, value.head.rank
    return 2 * states * bins * (rank + 1) * (sizes.width + entries)


def dpo(setup: Setup) -> Record:
    """DPO's step as `package.dpo` measures it, per distinct completion."""
    record = package.dpo(setup)
    record.work, record.unit = float(record.facts["distinct"]), "completions"
    return record


def value(setup: Setup, network: str, batch: int = 64) -> Record:
    """Steps of the value's training on the workload's completions."""
    run, runtime, fresh = _value(setup, network)
    data = setup.data()
    completions = data["completions"][:batch]
    prompts = [data["prompts"][at // K] for at in range(len(completions))]
    bins = np.arange(len(completions)) % run.value.bins
    rewarded = Rewarded(prompts, completions, bins)
    algorithm = ValueLearning(fresh, rewarded, len(completions), float(setup.repetitions + 1), 0)
    laps = train(setup, algorithm, run.value.optim, runtime)
    sizes, lengths = sizes_of(data), np.array([(len(p), len(c)) for p, c in zip(prompts, completions, strict=True)])
    layers = (3 if network == "own" else 1) * float(bare(sizes, lengths).sum())
    operations = layers + 3 * head_operations(sizes, fresh, float(lengths[:, 1].sum()), 1)
    return Record(laps.seconds(), float(len(completions)), "completions", operations)


def generate(setup: Setup, network: str, batch: int = 64, new: int = 48) -> Record:
    """Completions of the guided policy through the package's sampler."""
    run, runtime, fresh = _value(setup, network)
    reference = freeze(deepcopy(fresh.lm))
    guided = Guided(reference, fresh.requires_grad_(False).eval(), BETA, run.generation.temperature)
    data, drawn = setup.data(), list[int]()
    prompts = data["prompts"][:batch]

    def once() -> None:
        ids = np.arange(len(drawn) * len(prompts), (len(drawn) + 1) * len(prompts)).tolist()
        random = uniforms(0, "benchmark", ids, 1, new)[:, 0]
        with torch.no_grad(), runtime.autocast():
            drawn.append(sum(map(len, sample(guided, prompts, random, NEVER).ids)))

    seconds = setup.timed(once)
    assert set(drawn) == {len(prompts) * new}, "a sampler stopped early"
    sizes, rows = sizes_of(data), np.array([(len(prompt), new) for prompt in prompts])
    tokens = float(len(prompts) * new)
    operations = float(sampled(sizes, rows).sum()) + head_operations(sizes, fresh, tokens, sizes.vocabulary)
    if network == "own":
        operations += float(bare(sizes, rows).sum())
    return Record(seconds, tokens, "tokens", operations, setup.peak_bytes())
