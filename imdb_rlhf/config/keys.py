"""The keys that exist, the algorithms that have them, and the key or the choice that a misspelt one stands for."""

from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from difflib import SequenceMatcher, get_close_matches
from typing import Any, get_type_hints

from imdb_rlhf.config import (
    algos,
    data,
    decoding,
    families,
    hub,
    machine,
    model,
    online_algos,
    optim,
    ppo,
    preference_algos,
    reward,
    run,
    stages,
)
from imdb_rlhf.config.places import places_of
from imdb_rlhf.config.run import Run

_MODULES = (
    run,
    families,
    algos,
    preference_algos,
    online_algos,
    decoding,
    ppo,
    stages,
    machine,
    hub,
    model,
    data,
    reward,
    optim,
)
# What conf/ names as `/schema/<key>`; each module of this room lists its own.
SCHEMAS: dict[str, type] = {
    name: schema for module in _MODULES for name, schema in getattr(module, "SCHEMAS", {}).items()
}
ALGORITHMS = {name: schema for name, schema in SCHEMAS.items() if issubclass(schema, Run) and schema is not Run}
CLASSES: dict[str, type] = {
    name: value
    for module in _MODULES
    for name, value in vars(module).items()
    if isinstance(value, type) and is_dataclass(value) and value.__module__ == module.__name__
}
# Beginning of a choice of Hydra's -> the package that brings it.
PLUGINS = {
    "hydra/launcher=submitit": "hydra-submitit-launcher",
    "hydra/launcher=joblib": "hydra-joblib-launcher",
    "hydra/launcher=ray": "hydra-ray-launcher",
    "hydra/launcher=rq": "hydra-rq-launcher",
    "hydra/sweeper=optuna": "hydra-optuna-sweeper",
    "hydra/sweeper=ax": "hydra-ax-sweeper",
    "hydra/sweeper=nevergrad": "hydra-nevergrad-sweeper",
}
NOT_A_FIELD = ("experiment", "sweep")  # chosen on the command line as a key is, but no part of a run


def names_of(schema: Any, place: str = "") -> list[str]:
    """The keys of a class, below a place: `policy.optim` gives `policy.optim.lr`."""
    return [f"{place}.{field.name}" if place else field.name for field in fields(schema)]


def owners(key: str) -> list[str]:
    """The algorithms that have the root key with which a key begins."""
    root = key.partition(".")[0]
    return [name for name, schema in ALGORITHMS.items() if root in names_of(schema)]


def unknown_key(key: str, names: Sequence[str], algo: str | None = None, *, shown: str | None = None) -> str:
    """The answer to a key that does not exist.

    Args:
        key: with its place, `policy.step`.
        names: of the keys at that place, each with the place.
        algo: the algorithm, where it is known.
        shown: the key as the user wrote it, with its value.
    """
    start = f"{shown or key}: no such key{f' for algo={algo}' if algo else ''}"
    having = owners(key)
    if algo and having and algo not in having:
        return f"{start}; it belongs to algo={', '.join(having)}; keys of {algo}: {', '.join(names)}"
    hint = _hint(key, names, _every_key(algo))
    return f"{start}; {hint}keys there: {', '.join(names)}"


def unknown_choice(group: str, choice: str, options: Sequence[str]) -> str:
    """The answer to a choice that does not exist: `algo=best-of-n`."""
    package = next((name for start, name in PLUGINS.items() if f"{group}={choice}".startswith(start)), None)
    if package is not None:
        return f"{group}={choice}: its package is not installed; pip install {package}"
    near = closest(choice, options)
    hint = "" if near is None else f"did you mean {group}={near}? "
    return f"{group}={choice}: no such choice; {hint}there are {', '.join(options)}"


def _every_key(algo: str | None) -> list[str]:
    """Every key of an algorithm, or of all, with the keys of all kinds of model, data, reward, ..."""
    schemas = ALGORITHMS.values() if algo is None else [ALGORITHMS[algo]]
    return list(dict.fromkeys(key for schema in schemas for key, _ in _keys_below(schema, "")))


def _keys_below(schema: Any, start: str) -> Iterator[tuple[str, bool]]:
    """The keys of a class and of everything below it, and whether each is a place."""
    hints = get_type_hints(schema)
    for name in names_of(schema):
        yield f"{start}{name}", name in places_of(schema)
        kinds = [kind for kind in CLASSES.values() if isinstance(hints[name], type) and issubclass(kind, hints[name])]
        for kind in kinds:
            yield from _keys_below(kind, f"{start}{name}.")


# The keys of every algorithm and kind that say where something is stored: `model.path`.
PLACES = frozenset(key for schema in ALGORITHMS.values() for key, place in _keys_below(schema, "") if place)


def _hint(key: str, names: Sequence[str], every: Sequence[str]) -> str:
    """Where the key is, or the one that was probably meant; ends in a space unless it is empty."""
    place, _, word = key.rpartition(".")
    if key in every:
        return f"another choice of {place} has it; "
    # 1. spelt well, further down: `max_new_tokens`, `policy.lr`
    start = f"{place}." if place else ""
    below = [other for other in every if other.startswith(start) and f".{other}".endswith(f".{_plain(word)}")]
    if below:
        return f"did you mean {_either(below)}? "
    # 2. misspelt, in the right place: compared without the place, with which all begin
    siblings = [_last(name) for name in names] + ([] if place else list(NOT_A_FIELD))
    near = closest(word, siblings) or next(iter(get_close_matches(word, siblings, 1, cutoff=0.75)), None)
    if near is not None:
        return f"did you mean {start}{near}? "
    # 3. in another place, misspelt perhaps
    near = closest(word, [_last(other) for other in every])
    if near is not None:
        return f"did you mean {_either([other for other in every if _last(other) == near])}? "
    # 4. of another algorithm, misspelt
    roots = {name: algo for algo, schema in ALGORITHMS.items() for name in names_of(schema)}
    near = None if place else closest(word, list(roots))
    return "" if near is None else f"did you mean {near} of algo={roots[near]}? "


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _plain(word: str) -> str:
    return word.lower().replace("-", "_")


def _either(keys: Sequence[str]) -> str:
    shown = list(dict.fromkeys(keys))[:4]
    return " or ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def closest(word: str, candidates: Sequence[str]) -> str | None:
    """The candidate that a misspelt word stands for; None where none is near.

    Upper case and hyphens do not count. Of equally near ones the first that begins with the same letter is taken, since
    a first letter is seldom wrong.
    """
    word = _plain(word)
    slips = 0 if len(word) < 3 else 1 if len(word) < 6 else 2 if len(word) < 10 else 3
    distances = {candidate: edits(word, _plain(candidate)) for candidate in candidates}
    near = [candidate for candidate, distance in distances.items() if distance <= slips]

    def rank(candidate: str) -> tuple[int, bool, float]:
        plain = _plain(candidate)
        return distances[candidate], plain[:1] != word[:1], -SequenceMatcher(None, word, plain).ratio()

    return min(near, key=rank, default=None)


def edits(one: str, other: str) -> int:
    """The edit distance of two words: a letter more, less or replaced, or two neighbours swapped."""
    before: list[int] = []
    above = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        row = [i]
        for j, wanted in enumerate(other, 1):
            least = min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (letter != wanted))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == wanted:
                least = min(least, before[j - 2] + 1)
            row.append(least)
        before, above = above, row
    return above[-1]
