"""What an algorithm that trains a policy must have beyond what the training loop needs."""

from collections.abc import Mapping, Sequence
from types import FunctionType
from typing import Any, ClassVar, Protocol, Self

from imdb_rlhf.algos.inputs import Inputs
from imdb_rlhf.algos.population import Population
from imdb_rlhf.training.loop import Algorithm, Plain


class PolicyMethod(Algorithm, Protocol):
    """An entry of `ALGOS`.

    Attributes:
        title: its display name in figures and tables.
        colours: name of a method of this algorithm, as `method_name` gives it -> its place in the palette. A method
            without a place gets a free colour.
        period: optimizer steps per batch of fresh episodes, 1 where there are none; evaluations come between batches.
    """

    title: ClassVar[str]
    colours: ClassVar[Mapping[str, int]]
    period: int

    @classmethod
    def from_inputs(cls, inputs: Inputs, run: Any) -> Self:
        """Make the algorithm for a run.

        Raises:
            RunError: there is nothing to train on.
        """
        ...

    @classmethod
    def method_name(cls, config: Mapping[str, Any], variant: str | None) -> str:
        """Return what figures and tables call a finished run.

        Args:
            config: its `config.yaml`.
            variant: what sets it apart from other runs of the algorithm (`Run.variant`).
        """
        ...

    @classmethod
    def population(cls, config: Mapping[str, Any]) -> Population | str:
        """Return the policy that minimises the expected loss, or why none is known.

        Args:
            config: a finished run's `config.yaml`.
        """
        ...

    def log_every(self, steps: int) -> int:
        """Return the steps between rows of metrics, where the trainer is configured to `steps`."""
        ...

    def summary_line(self) -> str:
        """Return what the console says before training starts."""
        ...

    def outcome(self, rewards: Sequence[float]) -> dict[str, Any]:
        """Return `report`, with what follows from the mean validation reward of each evaluation point, in order."""
        ...


def method_members() -> set[str]:
    """The names that the class of an entry of `ALGOS` must have; `module` and `steps` are its objects' own."""
    described = {**vars(Algorithm), **vars(PolicyMethod)}
    methods = {name for name, value in described.items() if isinstance(value, FunctionType | classmethod)}
    return {name for name in methods if not name.startswith("_")} | {"stage", "title", "colours", "period"}


class Method(Plain):
    """Default implementations for `PolicyMethod`."""

    title: ClassVar[str]
    colours: ClassVar[Mapping[str, int]] = {}

    @classmethod
    def method_name(cls, config: Mapping[str, Any], variant: str | None) -> str:
        """Return the title, with the variant if there is one."""
        return cls.title if variant is None else f"{cls.title} ({variant})"

    @classmethod
    def population(cls, config: Mapping[str, Any]) -> Population | str:
        """Return that none is known."""
        return "the optimum of its expected loss has no closed form here"

    def log_every(self, steps: int) -> int:
        """Return `steps`."""
        return steps

    def outcome(self, rewards: Sequence[float]) -> dict[str, Any]:
        """Return the report as it is."""
        return self.report()
