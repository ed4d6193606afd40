"""The hours as a table, and what they rest on, for a terminal and as Markdown."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.table import Table

from benchmarks.hours_rates import Rate, Results, command, setting, shape
from benchmarks.hours_work import Work
from benchmarks.stages_work import Sizes
from benchmarks.table import number
from imdb_rlhf.config.run import Run

REWARD = "true reward"  # how its line begins


@dataclass
class Line:
    """A line of the table.

    Attributes:
        label: what is done.
        times: how often.
        work: in all of them; None where seconds are taken as they were measured.
        rate: that it is done at; None where it was not measured, or where there is no work.
        seconds: that it takes; None where they are not known.
        value: PPO's value network; None elsewhere.
    """

    label: str
    times: int
    work: Work | None
    rate: Rate | None
    seconds: float | None
    value: str | None = None


HEAD = ("stage", "times", "work", "model operations", "measured rate", "that is", "hours")


def cells(line: Line) -> tuple[str, ...]:
    """A line's texts under HEAD."""
    work, rate = line.work, line.rate
    hours = "not measured" if line.seconds is None else clock(line.seconds)
    if work is None:
        return line.label, str(line.times), "", "", "as measured" if line.seconds else "not timed", "", hours
    return (
        line.label,
        str(line.times),
        f"{work.amount:,.0f} {work.unit}",
        "" if work.operations is None else f"{number(work.operations / 1e12)} T",
        "" if rate is None else f"{rate.operations / 1e12:,.3g} T/s over {rate.seconds:,.3g} s",
        "" if not line.seconds else f"{number(work.amount / line.seconds)} {work.unit}/s",
        hours,
    )


def clock(seconds: float) -> str:
    """Hours with three digits that count, and no more than a thousandth."""
    hours = seconds / 3600
    if hours < 0.1:
        return f"{hours:.3f}" if hours >= 0.0005 or not hours else "<0.001"
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"


def total(found: Sequence[Line]) -> str:
    """All hours in a sentence."""
    seconds = sum(line.seconds for line in found if line.seconds is not None)
    least = "at least " if any(line.seconds is None for line in found) else ""
    return f"{least}{clock(seconds)} hours"


def unmeasured(found: Sequence[Line], model: str) -> list[str]:
    """What hours are not known, and what measures them; one sentence a command.

    Args:
        found: all lines.
        model: to be measured.
    """
    of: dict[str, list[str]] = {}
    for line in found:
        if line.seconds is None and line.work is not None:
            way = f"`{command(model, line.work.stage, line.value)}` measures it"
            if line.work.operations is None:
                way = "its work does not follow from the configuration"
            of.setdefault(way, []).append(line.label)
    return [f"not measured: {', '.join(labels)}; {way}." for way, labels in of.items()]


def assumptions(runs: Sequence[Run], found: Results, sizes: Sizes, made: Sequence[Line]) -> list[str]:
    """What the hours rest on, a sentence each; what makes them more or less certain first."""
    run, said = runs[0], []
    if sizes != found.sizes:
        said.append(
            f"Measured with another model: {found.model} ({shape(found.sizes)}), and the work is of {run.model.name} "
            f"({shape(sizes)}); a larger model's operations a second are other ones."
        )
    states = " (different ones)" if len(found.commits) > 1 else ""
    said.append(f"Measured at commit {', '.join(found.commits)}{states}.")
    if found.side_by_side > 1:
        said.append(f"Measured with up to {found.side_by_side} runs side by side, which slow each other down.")
    prompts, new = run.data.prompts, run.generation.max_new_tokens
    said += [
        "Hours are model operations over the operations a second that were measured in such a stage, in which loading "
        "and saving are: the shorter it was measured, the more they weigh.",
        f"Prompts of {prompts.min_tokens} to {prompts.max_tokens} tokens evenly, completions of {new} (none ends "
        f"early), SFT rows of {run.sft.max_tokens}: limits, which real texts stay below (and measured ones may have).",
        "Rewards of a prompt's completions all differ, so that every pair is there; no PPO batch is cut short.",
        "One run after the other in one process each; artifacts that runs share are made once. Data, loading, results "
        "and start-up take as long as they were measured to.",
    ]
    if not found.reward_included and any(line.label.startswith(REWARD) for line in made):
        said.append(
            f"{run.reward.name} is taken to score a text as fast as a reward model of the policy's size scored "
            "completions (learned_scores): the stages were measured with a reward that is no such model."
        )
    wanted = asdict(run)
    for key, values in found.settings.items():
        here = setting(wanted, key)
        if any(value != here for value in values):
            measured = " and ".join("null" if value is None else f"{value}" for value in values)
            said.append(f"Measured with {key}={measured}, and the work is of {'null' if here is None else here}.")
    untimed = [line.label for line in made if line.work is None and not line.seconds]
    if untimed:
        said.append(f"No seconds were saved of {', '.join(untimed)} (too few for a row, or not timed): taken as 0.")
    return [*said, *_of_lines(made)]


def _of_lines(made: Sequence[Line]) -> list[str]:
    """What the rates of single lines rest on; lines of which the same is to be said in one sentence."""
    of: dict[str, list[str]] = {}
    for line in made:
        if line.rate is None or line.work is None:
            continue
        borrowed = line.rate.stage != line.work.stage and not line.label.startswith(REWARD)
        parts = [f"at the rate of {line.rate.stage}, not measured itself"] if borrowed else []
        parts += [line.rate.differs] if line.rate.differs else []
        if parts:
            of.setdefault("; ".join(parts), []).append(line.label)
    return [f"{', '.join(labels)}: {said}." for said, labels in of.items()]


def terminal(found: Sequence[Line]) -> Table:
    """The lines as a table for a terminal."""
    table = Table(pad_edge=False)
    for name in HEAD:
        right = name in ("times", "work", "model operations", "hours")
        table.add_column(name, justify="right" if right else "left", no_wrap=name == "hours")
    for line in found:
        table.add_row(*cells(line), style="red" if line.seconds is None else None)
    table.add_section()
    table.add_row("in all", "", "", "", "", "", total(found).removesuffix(" hours"))
    return table


def markdown(head: str, found: Sequence[Line], below: Sequence[str]) -> str:
    """The same as Markdown, with what stands above and below it."""
    body = [HEAD, ("---", *["---:"] * (len(HEAD) - 1)), *map(cells, found)]
    table = "\n".join("| " + " | ".join(row) + " |" for row in body)
    return f"# Hours\n\n{head}\n\n{table}\n\n" + "\n".join(f"- {sentence}" for sentence in below) + "\n"
