"""The model card that is saved beside an exported policy."""

from typing import Any

from imdb_rlhf.config.run import Run


def card(run: Run, result: dict[str, Any] | None, bos: str | None) -> str:
    """Write the model card of a run's policy.

    Args:
        run: the run that trained it.
        result: the keys of `summary.json`, or None if the policy was not evaluated.
        bos: the token that rows begin with, if any.
    """
    lines = ["---", "library_name: transformers", "pipeline_tag: text-generation", "---", f"# {run.algo} policy", ""]
    lines += [f"Trained by imdb_rlhf with `algo={run.algo}`, data `{run.data.name}`, true reward `{run.reward.name}`."]
    if result is not None:
        low, high = result["reward_ci"]
        lines += [
            "",
            f"On {result['prompts']} test prompts, {result['samples_per_prompt']} samples each "
            f"({100 * run.evaluation.confidence:g} % intervals over prompts):",
            "",
            f"- reward {result['reward']:.3f} [{low:.3f}, {high:.3f}] (reference {result['reference']['reward']:.3f})",
            f"- KL to the reference {result['kl']:.2f} [{result['kl_ci'][0]:.2f}, {result['kl_ci'][1]:.2f}] "
            "nats per sequence",
        ]
    lines += [
        "",
        f"Sample at temperature {run.generation.temperature:g} without top-k or top-p, at most "
        f"{run.generation.max_new_tokens} new tokens, after prompts of {run.data.prompts.min_tokens} to "
        f"{run.data.prompts.max_tokens} tokens. Right-pad; "
        + ("add no special tokens in front." if bos is None else f"begin with `{bos}`."),
    ]
    return "\n".join(lines) + "\n"
