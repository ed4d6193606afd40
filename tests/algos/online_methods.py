"""The four methods that learn from their own completions at a fixed beta, on the small world of `naive_ppo`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from imdb_rlhf.algos.fixed_beta import FixedBetaMethod
from imdb_rlhf.algos.grpo import GRPO
from imdb_rlhf.algos.online_dpo import OnlineDPO
from imdb_rlhf.algos.reinforce import Reinforce
from imdb_rlhf.algos.rloo import RLOO
from imdb_rlhf.config.online_algos import GRPORun, OnlineDPORun, OnlineRun, ReinforceRun, RLOORun
from imdb_rlhf.training.runtime import Runtime
from tests import tiny
from tests.algos.naive_ppo import MAX_NEW_TOKENS, PROMPTS, score, small

BETA = 0.3


class Kind(NamedTuple):
    """A method, its run and its section."""

    method: type[FixedBetaMethod[Any, Any]]
    run: type[OnlineRun]
    section: Callable[..., Any]


KINDS = {
    "reinforce": Kind(Reinforce, ReinforceRun, tiny.reinforce),
    "rloo": Kind(RLOO, RLOORun, tiny.rloo),
    "grpo": Kind(GRPO, GRPORun, tiny.grpo),
    "online_dpo": Kind(OnlineDPO, OnlineDPORun, tiny.online_dpo),
}


def run_of(name: str, *, seed: int = 0, beta: float = BETA, temperature: float = 1.0, **changes: Any) -> Any:
    """A run of 2 batches of 12 episodes."""
    generation = tiny.generation(MAX_NEW_TOKENS, temperature=temperature)
    kind = KINDS[name]
    return tiny.run(kind.run, seed=seed, beta=beta, generation=generation, **{name: kind.section(**changes)})


def make(name: str, runtime: Runtime | None = None, **changes: Any) -> Any:
    """The method with a policy that is not the reference."""
    run = run_of(name, **changes)
    return KINDS[name].method(tiny.policy(small(1)), small(2), PROMPTS, score, run, runtime or tiny.runtime())


def train(
    algorithm: Any, folder: Path, advance: Callable[[dict[str, float]], None] | None = None, **options: Any
) -> list[dict[str, Any]]:
    """Train to the end with these `tiny.settings`; the logged rows without times."""
    advance = advance or (lambda values: None)
    return tiny.train(algorithm, tiny.settings(**options), folder, algorithm.runtime, advance=advance)
