"""Runs of the methods that learn from fixed preferences or groups, beside DPO and the paper's baselines."""

from dataclasses import dataclass
from typing import Annotated

from imdb_rlhf.config.families import LearnedRun, PreferenceRun
from imdb_rlhf.config.ranges import Coefficient, PositiveCoefficient, Range
from imdb_rlhf.config.reward import RewardSource
from imdb_rlhf.config.run import Run
from imdb_rlhf.errors import ConfigError


@dataclass
class BetaRun(PreferenceRun):
    """A method whose knob is beta."""

    beta: PositiveCoefficient

    @property
    def knob(self) -> tuple[str, float] | None:
        """Beta."""
        return "beta", self.beta


@dataclass
class KTOConfig:
    """Weights of KTO's two kinds of examples."""

    lambda_d: Coefficient
    lambda_u: Coefficient

    def check(self, at: str) -> None:
        """Refuse weights that leave nothing to learn from."""
        if not self.lambda_d and not self.lambda_u:
            raise ConfigError(f"{at}lambda_d=0 and {at}lambda_u=0 leave no loss; give one of them a weight")


@dataclass
class KTORun(BetaRun):
    """`algo=kto`: Kahneman-Tversky optimization."""

    kto: KTOConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.policy.batch_size == 1:
            raise ConfigError(
                "policy.batch_size=1 leaves algo=kto no completion of another prompt to estimate the KL from; "
                "use at least 2"
            )


@dataclass
class SimPOConfig:
    """SimPO's target margin."""

    gamma_beta_ratio: Coefficient


@dataclass
class SimPORun(BetaRun):
    """`algo=simpo`: preference optimization on log-probs per token."""

    simpo: SimPOConfig


@dataclass
class CPOConfig:
    """The weight of CPO's likelihood."""

    nll_weight: Coefficient


@dataclass
class CPORun(BetaRun):
    """`algo=cpo`: contrastive preference optimization."""

    cpo: CPOConfig


@dataclass
class EXOConfig:
    """How sure EXO takes labels to be."""

    label_smoothing: Annotated[float, Range(0, 0.4999, above=True)]


@dataclass
class EXORun(BetaRun):
    """`algo=exo`: efficient exact optimization, on pairs (EXO-pref)."""

    exo: EXOConfig


@dataclass
class ORPORun(PreferenceRun):
    """`algo=orpo`: odds ratio preference optimization; the knob is lam, the weight of the odds ratio."""

    lam: Coefficient

    @property
    def knob(self) -> tuple[str, float] | None:
        """Lambda."""
        return "lam", self.lam


@dataclass
class BonSFTConfig:
    """Which reward chooses the best completion."""

    selector: RewardSource


@dataclass
class BonSFTRun(PreferenceRun, LearnedRun):
    """`algo=bon_sft`: supervised fine-tuning on the best of N completions; the knob is n."""

    n: Annotated[int, Range(1, 10**6)]
    bon_sft: BonSFTConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data.preferences is not None:
            raise ConfigError(
                "algo=bon_sft chooses from groups of completions, but data.preferences brings pairs; "
                "use algo=preferred_ft"
            )
        if self.n > self.groups.k:
            raise ConfigError(f"n={self.n} is above groups.k={self.groups.k}; lower the one or raise the other")

    @property
    def knob(self) -> tuple[str, float] | None:
        """N."""
        return "n", self.n

    @property
    def variant(self) -> str | None:
        """The selector."""
        return str(self.bon_sft.selector)

    @property
    def uses_groups(self) -> bool:
        """Always: the best is chosen from them."""
        return True

    @property
    def uses_learned_reward(self) -> bool:
        """Only with bon_sft.selector=learned."""
        return self.bon_sft.selector == RewardSource.learned


# The names under which conf/ finds these classes: `/schema/<key>`.
SCHEMAS: dict[str, type[Run]] = {
    "kto": KTORun,
    "simpo": SimPORun,
    "orpo": ORPORun,
    "cpo": CPORun,
    "exo": EXORun,
    "bon_sft": BonSFTRun,
}
