"""What a run leaves in its folder: evaluations, samples, summary, model card."""

from pathlib import Path
from typing import Any

import pandas as pd

from imdb_rlhf.config.run import Run
from imdb_rlhf.evaluation.evaluate import COLUMNS, interval, metrics
from imdb_rlhf.evaluation.stats import bootstrap_mean, win_rates

PARTS = "evaluations"


def keep_point(folder: Path, frame: pd.DataFrame, step: int) -> None:
    """Write one evaluation point aside, texts included, until the run is finished."""
    (folder / PARTS).mkdir(exist_ok=True)
    part = folder / PARTS / f"step-{step:08d}.parquet"
    frame.to_parquet(part.with_suffix(".part"), index=False)
    part.with_suffix(".part").replace(part)


def points(folder: Path) -> dict[int, pd.DataFrame]:
    """The evaluation points of an unfinished run by step."""
    return {_step_of(part): pd.read_parquet(part) for part in sorted((folder / PARTS).glob("step-*.parquet"))}


def drop_points(folder: Path, after: int) -> None:
    """Delete the evaluation points after a step: the run goes on from there and makes them again."""
    for part in (folder / PARTS).glob("step-*.parquet"):
        if _step_of(part) > after:
            part.unlink(missing_ok=True)


def _step_of(part: Path) -> int:
    return int(part.stem.removeprefix("step-"))


def best_step(found: dict[int, pd.DataFrame]) -> int:
    """The step with the highest mean reward on validation prompts; the earliest of equals."""
    return max(sorted(found), key=lambda step: metrics(found[step])["eval/validation_reward"])


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
    """`summary.json`: what a run came to, on test prompts.

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
    test, before = (f[f["split"] == "test"] for f in (frame, reference))
    values, start = metrics(frame), metrics(reference)
    result = {
        "name": name,
        "algo": run.algo,
        "variant": run.variant,
        "knob": None if run.knob is None else {"name": run.knob[0], "value": run.knob[1]},
        "seed": run.seed,
        "step": int(frame["step"].iloc[0]),
        "reward": values["eval/reward"],
        "reward_ci": interval(frame, "reward", config),
        "reward_logit": values["eval/reward_logit"],
        "kl": values["eval/kl"],
        "kl_ci": interval(frame, "kl", config),
        "kl_k1": values["eval/kl_k1"],
        "kl_k1_ci": interval(frame, "kl_k1", config),
        "kl_per_token": values["eval/kl_per_token"],
        "length": values["eval/length"],
        "eos_rate": values["eval/eos_rate"],
        "distinct_2": values["eval/distinct_2"],
        "prompts": int(test["prompt_id"].nunique()),
        "samples_per_prompt": config.samples,
        "reference": {
            "reward": start["eval/reward"],
            "reward_ci": interval(reference, "reward", config),
            "reward_logit": start["eval/reward_logit"],
            "reward_std": float(before["reward"].std()),
            "length": start["eval/length"],
            "eos_rate": start["eval/eos_rate"],
            "distinct_2": start["eval/distinct_2"],
        },
        **_won("win_rate", test, before, run),
        "reward_name": run.reward.name,
        "data_name": run.data.name,
        "seconds": seconds,
        "stage_seconds": stage_seconds,
        "config_hash": config_hash,
    }
    if base is not None:
        result |= _won("win_rate_base", test, base[base["split"] == "test"], run)
        result["base"] = {
            "reward": metrics(base)["eval/reward"],
            "reward_ci": interval(base, "reward", config),
            "kl": metrics(base)["eval/kl"],
            "kl_ci": interval(base, "kl", config),
        }
    return result


def _won(key: str, mine: pd.DataFrame, other: pd.DataFrame, run: Run) -> dict[str, Any]:
    """How often a sample has the higher log-odds than one of another policy, with its interval over prompts."""
    wins, config = win_rates(mine, other), run.evaluation
    ends = bootstrap_mean(wins, config.bootstrap, config.confidence, config.seed)
    return {key: float(wins.mean()), f"{key}_ci": list(ends)}


def learned_reward(report: dict[str, Any]) -> dict[str, Any]:
    """What a run that used a reward model says of it."""
    return {"accuracy": report["accuracy"], "accuracy_ci": report["accuracy_ci"], "pearson": report["pearson"]}


def reward_model(run: Run, name: str, report: dict[str, Any], config_hash: str, seconds: float) -> dict[str, Any]:
    """`summary.json` of `algo=reward_model`: its account on the reference's samples of test prompts."""
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
    """`samples.parquet`: before and after, a row a sample of a test prompt, with the same random numbers.

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
    joined = after.merge(before, on=keys, validate="one_to_one")  # inner: best-of-N may have fewer draws a prompt
    return joined[joined["split"] == "test"].drop(columns="split").reset_index(drop=True)


def shown(table: pd.DataFrame, count: int = 6) -> list[dict[str, Any]]:
    """The first sample of evenly spaced prompts, for the table that a person reads."""
    first = table[table["sample_id"] == 0]
    rows = first.iloc[:: max(1, len(first) // count)].head(count).to_dict("records")
    return [{str(key): value for key, value in row.items()} for row in rows]


def evaluations(found: dict[int, pd.DataFrame]) -> pd.DataFrame:
    """`evaluations.parquet`: the rows of every point, without texts."""
    return pd.concat([found[step][COLUMNS] for step in sorted(found)], ignore_index=True)
