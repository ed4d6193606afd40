"""The model card beside a saved model: metadata that the Hub indexes, and what a reader needs to judge and use it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from imdb_rlhf.artifacts.files import plain
from imdb_rlhf.config.model import PretrainedModel, ScratchModel
from imdb_rlhf.config.places import hashed
from imdb_rlhf.config.run import NOT_IN_HASH, Run
from imdb_rlhf.data import hub
from imdb_rlhf.data.card import TAG, assembled, citation, texts_of
from imdb_rlhf.data.split_files import format_of


@dataclass(frozen=True)
class Published:
    """What is known of a model only when it goes to the Hub.

    Attributes:
        repository: its own, NAMESPACE/NAME.
        preferences: the dataset that it was trained on, where that is pushed too.
        report: the Space with its frontier, where that is pushed too.
        licence: that the publisher states, or that its base model's card states.
        licence_from: whose statement that is.
        revision: the branch that it is pushed to; None is main.
    """

    repository: str
    preferences: str | None = None
    report: str | None = None
    licence: str | None = None
    licence_from: str = "the publisher"
    revision: str | None = None


@dataclass(frozen=True)
class Measured:
    """A number of a card's table.

    Attributes:
        kind: the metric's id.
        name: in words.
        value: of this model.
        ends: of its interval, where it has one.
        reference: the same of the reference, where it has one.
        digits: shown after the point.
    """

    kind: str
    name: str
    value: float
    ends: tuple[float, float] | None = None
    reference: float | None = None
    digits: int = 3

    @property
    def shown(self) -> str:
        """The value with its interval."""
        value, *ends = (f"{number:z.{self.digits}f}" for number in (self.value, *(self.ends or ())))
        return f"{value} [{', '.join(ends)}]" if ends else value


def base_model(run: Run) -> str | None:
    """The Hub id of the model that a run starts from; None for a folder, which has none, and for random weights."""
    if run.sft.path is not None:
        path: str | None = run.sft.path
    else:
        path = run.model.path if isinstance(run.model, PretrainedModel) else None
    return None if path is None or hub.is_folder(path) else path


def card(
    run: Run, method: str, result: Mapping[str, Any] | None, bos: str | None, published: Published | None = None
) -> str:
    """Write the model card of a policy or of a reward model.

    Args:
        run: the run that made it.
        method: what the method is called.
        result: the keys of `summary.json`; None for the reference, as its stage leaves it for many runs.
        bos: the token that rows begin with, if any.
        published: what is known when it goes to the Hub; None for the card beside a saved model.
    """
    from huggingface_hub import ModelCardData

    subject = _Subject(run, method, result, published)
    texts, base, is_policy = texts_of(run.data), base_model(run), subject.is_policy
    numbers = [] if result is None else measured(result)
    sources = [texts.hub_id, _brought(run), None if published is None else published.preferences]
    data = ModelCardData(
        base_model=base,
        base_model_relation=None if base is None or subject.is_copy else "finetune",
        datasets=[source for source in sources if source is not None] or None,
        language=texts.language,
        library_name="transformers",
        license=None if published is None else published.licence,
        pipeline_tag="text-generation" if is_policy else "text-classification",
        tags=[TAG, "rlhf", *([] if is_policy else ["reward-model"]), *([subject.algo] if is_policy else [])],
        model_name=subject.name if numbers else None,
        eval_results=_eval_results(run, numbers, is_policy) or None,
    )
    parts = [f"# {subject.name}", _what(subject)]
    if result is not None and numbers:
        parts.append(_results(run, result, numbers))
    parts += [_use(run, bos, is_policy, published), _training(subject), _licence(published), citation(texts)]
    return assembled(data, "\n\n".join(part for part in parts if part))


def measured(result: Mapping[str, Any]) -> list[Measured]:
    """The numbers of a summary that its card shows."""
    if "kl" not in result:  # of a reward model
        names = {"accuracy": "accuracy on pairs of completions", "pearson": "correlation with the true reward"}
        known = {key: name for key, name in names.items() if result[key] is not None}
        return [Measured(key, name, result[key], _ends(result, key)) for key, name in known.items()]
    reference = result["reference"]
    reward = f"true reward ({result['reward_name']}), mean"
    kl = "KL to the reference, exact, nats per sequence"
    wins = "win rate against the reference, by the true reward"
    return [
        Measured("reward", reward, result["reward"], _ends(result, "reward"), reference["reward"]),
        Measured("kl", kl, result["kl"], _ends(result, "kl"), 0.0),
        Measured("win_rate", wins, result["win_rate"], _ends(result, "win_rate"), 0.5),
        Measured("length", "length, tokens per completion", result["length"], None, reference["length"], 1),
        Measured("distinct_2", "distinct-2", result["distinct_2"], None, reference["distinct_2"]),
    ]


def _ends(result: Mapping[str, Any], key: str) -> tuple[float, float] | None:
    ends = result.get(f"{key}_ci")
    return None if ends is None else (float(ends[0]), float(ends[1]))


@dataclass(frozen=True)
class _Subject:
    """What a card is about; its attributes are the arguments of `card`."""

    run: Run
    method: str
    result: Mapping[str, Any] | None
    published: Published | None

    @property
    def algo(self) -> str:
        return "sft" if self.result is None else self.run.algo

    @property
    def is_policy(self) -> bool:
        """Whether it writes text; a reward model scores it."""
        return self.result is None or "kl" in self.result

    @property
    def is_copy(self) -> bool:
        """Whether it is the model that the run started from, as it was."""
        return self.algo == "sft" and self.run.sft.path is not None

    @property
    def knob(self) -> str:
        knob = None if self.result is None else self.run.knob
        return "" if knob is None else f"{knob[0]}={knob[1]:g}"

    @property
    def name(self) -> str:
        if self.published is not None:
            return self.published.repository.partition("/")[2]
        seed = self.run.sft.seed if self.algo == "sft" else self.run.seed
        return ", ".join(word for word in (self.method, self.knob, f"seed {seed}") if word)

    @property
    def config(self) -> dict[str, Any]:
        """The keys that it depends on, without places: those say where something is stored on one machine."""
        keys = {key: value for key, value in hashed(self.run).items() if key not in NOT_IN_HASH}
        keys |= self.run.hashed_instead
        return keys if self.result is not None else {key: keys[key] for key in ("model", "data", "sft", "trainer")}


def _brought(run: Run) -> str | None:
    """The Hub id of the preferences that a run was given; None where it was given none, or a file or a folder."""
    path = run.data.preferences
    if path is None or hub.is_folder(path) or format_of(Path(path)) is not None or Path(path).expanduser().is_file():
        return None
    return path


def _eval_results(run: Run, numbers: list[Measured], is_policy: bool) -> list[Any]:
    from huggingface_hub import EvalResult

    texts = texts_of(run.data)
    prompts = run.data.prompts
    return [
        EvalResult(
            task_type="text-generation" if is_policy else "text-classification",
            task_name="Text generation" if is_policy else "Preference prediction",
            dataset_type=texts.hub_id or texts.name,
            dataset_name=f"{texts.hub_id or texts.name}, {prompts.test} test prompts",
            dataset_revision=texts.revision,
            dataset_split="test",
            metric_type=number.kind,
            metric_name=number.name,
            metric_value=number.value,
            metric_args=None
            if number.ends is None
            else {"confidence": run.evaluation.confidence, "interval": list(number.ends)},
        )
        for number in numbers
    ]


# --- sections


def _what(subject: _Subject) -> str:
    run, base = subject.run, base_model(subject.run)
    if base is not None:
        start = f"[{base}](https://huggingface.co/{base})"
    elif isinstance(run.model, ScratchModel) and run.sft.path is None:
        model = run.model
        start = f"a GPT-2 with random weights (layers {model.layers}, width {model.width})"
    else:
        start = "a pretrained model that was read from a folder"
    tuned = f"fine-tuned on {texts_of(run.data).description}"
    reference = f"{start}, {tuned if run.sft.path is None else 'used as it is'}"
    if not subject.is_policy:
        return (
            f"A reward model: one score per text, trained to prefer what `reward={run.reward.name}` scores higher. It "
            f"learned from completions of one reference policy: {reference}."
        )
    if subject.algo == "sft":
        return f"The reference policy of a preference-tuning experiment: {reference}."
    return (
        f"A policy trained by **{subject.method}**{subject.knob and f' with {subject.knob}'} to write film reviews "
        f"that a true reward (`reward={run.reward.name}`) scores high, without moving far from its reference: "
        f"{reference}. The experiment asks how much reward a method buys for each nat of KL."
    )


def _results(run: Run, result: Mapping[str, Any], numbers: list[Measured]) -> str:
    if "kl" in result:
        intro = f"On {result['prompts']} test prompts, {result['samples_per_prompt']} samples each"
    else:
        intro = f"On the reference's samples of {run.data.prompts.test} test prompts"
    intro += f"; in brackets {100 * run.evaluation.confidence:g} % intervals over prompts."
    lines = ["## Results", "", intro, "", "| metric | this model | reference |", "| --- | --- | --- |"]
    for number in numbers:
        reference = "" if number.reference is None else f"{number.reference:.{number.digits}f}"
        lines.append(f"| {number.name} | {number.shown} | {reference} |")
    return "\n".join(lines)


def _use(run: Run, bos: str | None, is_policy: bool, published: Published | None) -> str:
    place = '"."' if published is None else f'"{published.repository}"'
    if published is not None and published.revision is not None:
        place += f', revision="{published.revision}"'
    begin = "add no special tokens in front" if bos is None else f"begin with `{bos}`"
    if not is_policy:
        return (
            "## Use\n\n```python\nfrom transformers import AutoModelForSequenceClassification\n\n"
            f"model = AutoModelForSequenceClassification.from_pretrained({place})\n```\n\n"
            f"Its one logit is the score of prompt + completion, read at the last token; right-pad, and {begin}. "
            "`normalisation.json` has the mean and the scale that PPO subtracts and divides by."
        )
    new = run.generation.max_new_tokens
    if run.one_model:
        how = (
            "from transformers import pipeline\n\n"
            f'generate = pipeline("text-generation", model={place})\n'
            f'generate("This film", max_new_tokens={new})\n```\n\n'
        )
    else:
        how = (
            'from imdb_rlhf import load_policy\n\npolicy = load_policy(".")\n'
            'policy.generate(["This film"])\n```\n\n'
            "It is two models that are decoded together, as `decoding.json` says, and not one that `from_pretrained` "
            "loads: `reference/` is a causal LM, and beside it is the network that steers it.\n\n"
        )
    return (
        f"## Use\n\n```python\n{how}"
        f"The numbers are of samples at temperature {run.generation.temperature:g} without top-k or top-p, at most "
        f"{new} new tokens, after prompts of {run.data.prompts.min_tokens} to {run.data.prompts.max_tokens} tokens. "
        f"Right-pad, and {begin}.\n\nIt was made to measure a method: it knows film reviews alone, and was taught to "
        "please a reward, not to be right."
    )


def _training(subject: _Subject) -> str:
    lines, published = ["## Training", "", "By imdb_rlhf, with this configuration:", ""], subject.published
    text = yaml.safe_dump(plain(subject.config), sort_keys=False, allow_unicode=True)
    lines += ["<details><summary>configuration</summary>", "", "```yaml", text.rstrip(), "```", "", "</details>"]
    if published is not None and published.preferences is not None:
        link = f"https://huggingface.co/datasets/{published.preferences}"
        lines += ["", f"Completions that it, or its reward model, learned from: [{published.preferences}]({link})."]
    if published is not None and published.report is not None:
        link = f"https://huggingface.co/spaces/{published.report}"
        lines += ["", f"Its place among other runs, reward over KL: [{published.report}]({link})."]
    return "\n".join(lines)


def _licence(published: Published | None) -> str:
    if published is None:
        return ""
    if published.licence is None:
        return "## Licence\n\nThe publisher of this model states none."
    return f"## Licence\n\n`{published.licence}`, as {published.licence_from} states."
