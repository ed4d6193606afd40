"""The names of methods in figures and tables, their order, and how they are drawn."""

import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from imdb_rlhf.config.keys import ALGORITHMS, PLACES
from imdb_rlhf.frontier.finished import FinishedRun
from imdb_rlhf.runs.kinds import KINDS, method_name, palette_places

# Keys of a configuration that do not make another method: runs that differ in them share a name. Places are none
# either, but for the preference file: see `_values`.
NO_METHOD = re.compile(
    r"(seed|plan|objective|baselines|algo|keep_model|ppo\.preset|target_kl|own_model\.name|data\.bos|sft\.seed"
    r"|model\.init_seed)$"
    r"|(logger|paths|trainer|launcher|hub|evaluation|reservoir)\."
)
PREFERENCES = "data.preferences"
# Okabe and Ito, "Color Universal Design" (2008), without black, which is the ink of axes, optimum and best-of-N.
# Yellow comes last: it is faint on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
# matplotlib's code and plotly's symbol of one shape.
MARKERS = (
    ("o", "circle"),
    ("s", "square"),
    ("^", "triangle-up"),
    ("D", "diamond"),
    ("v", "triangle-down"),
    ("P", "cross"),
    ("X", "x"),
)


class Knob(NamedTuple):
    """What pictures and tables call the key that a sweep varies.

    Attributes:
        sign: before its value: "β = 0.1".
        one, many: after a number of its values: "4 targets".
    """

    sign: str
    one: str
    many: str


KNOBS = {
    "beta": Knob("β", "value of β", "values of β"),
    "alpha": Knob("α", "value of α", "values of α"),
    "lam": Knob("λ", "value of λ", "values of λ"),
    "target_kl": Knob("target KL", "target", "targets"),
    "n": Knob("N", "value of N", "values of N"),
}


def knob_of(key: str) -> Knob:
    """The words for a knob; an own algorithm's is called by its key."""
    return KNOBS.get(key, Knob(key, f"value of {key}", f"values of {key}"))


def setting_label(key: str | None, values: Sequence[float | None]) -> str:
    """Name one or several settings of a method: "β = 0.1", "β = 5 … 0.05"; empty for a method without a knob.

    Args:
        key: the knob.
        values: in the order to show; of more than two the first and the last are named.
    """
    known = [f"{value:g}" for value in values if value is not None]
    if key is None or not known:
        return ""
    shown = ", ".join(known) if len(known) <= 2 else f"{known[0]} … {known[-1]}"
    return f"{knob_of(key).sign} = {shown}"


def prompts_only(setting: Mapping[str, Any]) -> bool:
    """Whether a setting's interval says nothing of other seeds; pictures and tables tell it from the others."""
    return str(setting["covers"]) == "prompts"


def seeds_of(setting: Mapping[str, Any]) -> str:
    """How many runs a setting is the mean of: "seed 3", "5 seeds", "15 runs from 3 references"."""
    seeds, references = setting["seeds"], setting.get("references", 1)
    if references > 1:
        return f"{len(seeds)} runs from {references} references"
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds"


def method_names(runs: Sequence[FinishedRun]) -> dict[Path, str]:
    """Run folder -> the name of its method in figures and tables.

    Runs of one algorithm that differ in a key besides knob and seed are different methods, with that key in their
    names.
    """
    plain = {run.path: _registered_name(run) for run in runs}
    names: dict[Path, str] = {}
    for name in dict.fromkeys(plain.values()):
        members = [run for run in runs if plain[run.path] == name]
        keys = {key for run in members for key in run.flat if not NO_METHOD.match(key)}
        keys -= {key for run in members for key in run.knob_keys} | (PLACES - {PREFERENCES})
        values = {key: _values(key, members) for key in sorted(keys)}
        # a run of an earlier version lacks keys that came later: it had what one value of them stands for
        known = {
            key: {v for v, m in zip(column, members, strict=True) if key in m.flat} for key, column in values.items()
        }
        differing = [key for key, found in known.items() if len(found) > 1]
        for at, run in enumerate(members):
            difference = ", ".join(f"{_short(key, differing)}={values[key][at]}" for key in differing)
            names[run.path] = f"{name} ({difference})" if difference else name
    return names


def _values(key: str, runs: Sequence[FinishedRun]) -> list[str]:
    """What runs have for a key, as names show it.

    A preference file is what it holds, if all runs recorded that: where files differ in content, though not in place, a
    hash tells them apart.
    """
    shown = [str(run.flat.get(key)) for run in runs]
    if key != PREFERENCES or any(run.flat.get(key) and "preferences" not in run.summary for run in runs):
        return shown
    contents = [str(run.summary.get("preferences")) for run in runs]
    first = {content: shown[contents.index(content)] for content in dict.fromkeys(contents)}
    alike = [content for content, place in first.items() if list(first.values()).count(place) > 1]
    names = {content: f"{place}@{content[:8]}" if content in alike else place for content, place in first.items()}
    return [names[content] for content in contents]


def place_of(algo: str) -> int:
    """The place of an algorithm in the order of figures and tables; last for one that is not registered here."""
    return list(KINDS).index(algo) if algo in KINDS else len(KINDS)


def has_policy(algo: str) -> bool:
    """Whether runs of an algorithm end in a policy, which is a point of the frontier."""
    return algo not in ALGORITHMS or ALGORITHMS[algo].has_policy


def _registered_name(run: FinishedRun) -> str:
    """The name that its algorithm gives a run; the algorithm's own name where it is not registered here."""
    return method_name(run.algo, run.config, run.summary["variant"]) if run.algo in KINDS else run.algo


def _short(key: str, among: Sequence[str]) -> str:
    """The last word of a key, unless another of the keys ends in it too."""
    last = key.rpartition(".")[2]
    return last if sum(other.rpartition(".")[2] == last for other in among) == 1 else key


class Style(NamedTuple):
    """How a method is drawn.

    Attributes:
        colour: as `#rrggbb`.
        marker: matplotlib's code.
        symbol: plotly's name of the same shape.
    """

    colour: str
    marker: str
    symbol: str


def style(method: int | str) -> Style:
    """The style of a method, by name or by its place in the palette.

    A name without a place of its own always gets the same style. Past the last colour the colours repeat with other
    markers.
    """
    if isinstance(method, str):
        places = palette_places()
        method = places.get(method, len(places) + zlib.crc32(method.encode()))
    lap, place = divmod(method, len(PALETTE))
    return Style(PALETTE[place], *MARKERS[(place + lap) % len(MARKERS)])


def styles(methods: Iterable[str]) -> dict[str, Style]:
    """Name -> style of the methods in one picture.

    A name with a place in the palette keeps its style. If it occurs only with an addition, such as "DPO (labels=...)",
    the first of these has its style. Any other name whose colour is taken gets the next free colour or, if none is
    left, the next free pair of colour and marker.
    """
    names, places = list(dict.fromkeys(methods)), palette_places()
    chosen = {name: style(name) for name in names if name in places}
    taken = set(chosen)
    for name in names:
        plain = name.rpartition(" (")[0]
        if name not in chosen and plain in places and plain not in taken:
            chosen[name] = style(plain)
            taken.add(plain)
    every = [style(place) for place in range(len(PALETTE) * len(MARKERS))]
    for name in names:
        if name not in chosen:
            candidates, colours = [style(name), *every], {used.colour for used in chosen.values()}
            free = [candidate for candidate in candidates if candidate.colour not in colours] or [
                candidate for candidate in candidates if candidate not in chosen.values()
            ]
            chosen[name] = (free or candidates)[0]
    return {name: chosen[name] for name in names}
