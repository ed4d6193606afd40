"""A run's result as the console shows it: `summary.json` in words; keys that do not apply may be absent or None."""

from collections.abc import Iterator, Mapping
from typing import Any

from imdb_rlhf.tracking.formats import decimals, duration, number, with_interval


def title(summary: Mapping[str, Any]) -> str:
    """Name the run: method, knob, seed, step and evaluation prompts."""
    knob, variant = summary.get("knob"), summary.get("variant")
    name = str(summary["algo"]) + (f" ({variant})" if variant else "")
    parts = [name + (f" {knob['name']}={knob['value']}" if knob else "")]
    parts += [f"{name} {summary[name]}" for name in ("seed", "step") if summary.get(name) is not None]
    if summary.get("prompts") is not None:
        each = summary.get("samples_per_prompt")
        parts.append(f"{summary['prompts']} prompts" + (f" x {each} samples" if each is not None else ""))
    return ", ".join(parts)


def figures(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each number that the run's summary has, in the order to show."""
    reference = summary.get("reference") or {}
    if summary.get("reward") is not None:
        spec = decimals([summary["reward"], reference.get("reward")], 3)
        before = with_interval(reference.get("reward"), reference.get("reward_ci"), spec)
        reward = with_interval(summary["reward"], summary.get("reward_ci"), spec)
        yield "reward", reward + (f"   reference {before}" if reference.get("reward") is not None else "")
    if summary.get("kl") is not None:
        k1 = f"   k1 {number(summary['kl_k1'], '.3f')}" if summary.get("kl_k1") is not None else ""
        bound = f"at most {number(summary['kl'], '.3f')}" if summary.get("kl_is") == "upper bound" else None
        yield "KL (nats)", bound or with_interval(summary["kl"], summary.get("kl_ci"), ".3f") + k1
    for key, name in (("win_rate", "win rate"), ("win_rate_base", "against base")):
        if summary.get(key) is not None:
            yield name, with_interval(summary[key], summary.get(f"{key}_ci"), ".3f")
    if summary.get("distinct_2") is not None:
        distinct = reference.get("distinct_2")
        before = f"   reference {number(distinct, '.3f')}" if distinct is not None else ""
        yield "distinct-2", number(summary["distinct_2"], ".3f") + before
    yield from _account(summary)
    yield from _control(summary.get("ppo") or {})
    if summary.get("seconds") is not None:
        yield "time", duration(summary["seconds"])


def _account(summary: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """How good the reward model is, in its own run's summary or in that of a run that used it."""
    model = summary if summary.get("accuracy") is not None else summary.get("reward_model") or {}
    if model.get("accuracy") is not None:
        pairs = (
            f" on {model['test_pairs']} pairs of test prompts" if model.get("test_pairs") is not None else " of pairs"
        )
        name = "accuracy" if model is summary else "reward model"
        yield name, with_interval(model["accuracy"], model.get("accuracy_ci"), ".3f") + pairs
    if model is summary and model.get("pearson") is not None:
        ranks = f", of ranks {number(model.get('spearman'), '.3f')}"
        yield "correlation", f"{number(model['pearson'], '.3f')} with the true log-odds{ranks}"
    if model is summary and model.get("calibration_error") is not None:
        yield "calibration", f"{number(model['calibration_error'], '.3f')} mean gap of predicted and observed"


def _control(ppo: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Whether PPO's controller reached its target KL."""
    if ppo.get("target_kl") is None:
        return
    reached = "met within 10 %" if ppo["on_target"] else "missed by more than 10 %"
    yield (
        "target KL",
        f"{ppo['target_kl']:g}, last fifth of training {ppo['kl_last_fifth']:.3f}: {reached}; "
        f"coefficient {ppo['first_kl_coefficient']:.3g} to {ppo['kl_coefficient']:.3g}",
    )
    if ppo.get("missed_because") is not None:
        yield "", ppo["missed_because"]
