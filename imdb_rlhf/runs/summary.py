"""`summary.json` and `samples.parquet`: the results of a run."""

import math
from typing import Any

import pandas as pd

from imdb_rlhf.config.run import Run
from imdb_rlhf.evaluation.evaluate import interval, metrics
from imdb_rlhf.evaluation.results import results, win_rate
from imdb_rlhf.rewards import kind_of


def reward_range(run: Run) -> list[float | None]:
    """[infimum, supremum] of the true reward's reporting scale; None where nothing is known."""
    return [end if math.isfinite(end) else None for end in kind_of(run.reward).range]


def summary(
    run: Run,
    name: str,
    frame: pd.DataFrame,
    reference: pd.DataFrame,
    config_hash: str,
    seconds: float,
    stage_seconds: dict[str, float],
    base: pd.DataFrame | None = None,
) -> dict[str, Any]:
    """`summary.json`: the results of a run, on test prompts.

    Args:
        run: its configuration.
        name: its folder's name.
        frame: the reported evaluation point.
        reference: the same prompts under the reference policy.
        config_hash: of everything that the numbers depend on.
        seconds: wall time of the policy's training and evaluation.
        stage_seconds: wall time of the stages before, near 0 where they were reused.
        base: the same prompts under the model before SFT, where it was pretrained.
    """
    config = run.evaluation
    result = {
        "name": name,
        "algo": run.algo,
        "variant": run.variant,
        "knob": None if run.knob is None else {"name": run.knob[0], "value": run.knob[1]},
        "seed": run.seed,
        "step": int(frame["step"].iloc[0]),
        **results(frame, reference, config),
        "reward_name": run.reward.name,
        "reward_range": reward_range(run),
        "data_name": run.data.name,
        "seconds": seconds,
        "stage_seconds": stage_seconds,
        "config_hash": config_hash,
    }
    if base is not None:
        test, other = (f[f["split"] == "test"] for f in (frame, base))
        result |= win_rate("win_rate_base", test, other, config)
        result["base"] = {
            "reward": metrics(base)["eval/reward"],
            "reward_ci": interval(base, "reward", config),
            "kl": metrics(base)["eval/kl"],
            "kl_ci": interval(base, "kl", config),
        }
    return result


def learned_reward(report: dict[str, Any]) -> dict[str, Any]:
    """The account of the reward model that a run used."""
    return {"accuracy": report["accuracy"], "accuracy_ci": report["accuracy_ci"], "pearson": report["pearson"]}


def reward_model(run: Run, name: str, report: dict[str, Any], config_hash: str, seconds: float) -> dict[str, Any]:
    """`summary.json` of `algo=reward_model`: its account, on the reference's samples of test prompts."""
    return {
        "name": name,
        "algo": run.algo,
        "knob": None,
        "variant": run.variant,
        "seed": run.seed,
        "step": report["kept_step"],
        **report,
        "reward_name": run.reward.name,
        "data_name": run.data.name,
        "seconds": seconds,
        "config_hash": config_hash,
    }


def samples(frame: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """`samples.parquet`: before and after, a row per sample of a test prompt, with the same random numbers.

    `log_ratio` is log pi - log ref of the policy's completion, nats.
    """
    keys = ["split", "prompt_id", "sample_id"]
    before = reference[[*keys, "completion", "reward", "reward_logit"]]
    before = before.rename(
        columns={"completion": "reference", "reward": "reference_reward", "reward_logit": "reference_reward_logit"}
    )
    after = frame[[*keys, "prompt", "completion", "reward", "reward_logit", "kl", "kl_k1"]]
    after = after.rename(
        columns={
            "completion": "policy",
            "reward": "policy_reward",
            "reward_logit": "policy_reward_logit",
            "kl_k1": "log_ratio",
        }
    )
    joined = after.merge(before, on=keys, validate="one_to_one")  # inner: best-of-N may have fewer draws per prompt
    return joined[joined["split"] == "test"].drop(columns="split").reset_index(drop=True)


def shown(table: pd.DataFrame, count: int = 6) -> list[dict[str, Any]]:
    """The first sample of evenly spaced prompts, for the console's table."""
    first = table[table["sample_id"] == 0]
    rows = first.iloc[:: max(1, len(first) // count)].head(count).to_dict("records")
    return [{str(key): value for key, value in row.items()} for row in rows]
