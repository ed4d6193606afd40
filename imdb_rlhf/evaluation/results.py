"""The results of one policy on test prompts: what `summary.json` and `imdb_rlhf.measure` both report."""

from typing import Any

import pandas as pd

from imdb_rlhf.config.stages import EvaluationConfig
from imdb_rlhf.evaluation.evaluate import interval, test_metrics
from imdb_rlhf.evaluation.stats import bootstrap_mean, win_rates


def results(frame: pd.DataFrame, reference: pd.DataFrame, config: EvaluationConfig) -> dict[str, Any]:
    """Reward, KL, lengths and win rate of a policy, and the reward of the reference.

    Args:
        frame: the evaluation rows of the policy.
        reference: the rows of the same prompts under the reference.
        config: samples per prompt, and of the intervals.
    """
    test, before = (f[f["split"] == "test"] for f in (frame, reference))
    values, start = test_metrics(test), test_metrics(before)
    return {
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
        **win_rate("win_rate", test, before, config),
    }


def win_rate(key: str, own: pd.DataFrame, other: pd.DataFrame, config: EvaluationConfig) -> dict[str, Any]:
    """How often a sample has the higher log-odds than one of another policy, with its interval over prompts."""
    wins = win_rates(own, other)
    ends = bootstrap_mean(wins, config.bootstrap, config.confidence, config.seed)
    return {key: float(wins.mean()), f"{key}_ci": list(ends)}
