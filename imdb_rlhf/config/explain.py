"""Errors of Hydra and OmegaConf as one line each: the key, the value and the way out."""

import re
from typing import Any

from imdb_rlhf.config.keys import ALGORITHMS, CLASSES, names_of, owners, unknown_choice, unknown_key
from imdb_rlhf.config.machine import TRACKERS
from imdb_rlhf.config.run import Run


def not_listed(file: str, name: str) -> str:
    """The answer to a file of conf/ whose class has no line in `SCHEMAS`."""
    return f"{file}.yaml is of schema {name}, and no SCHEMAS in imdb_rlhf/config/ has a line for {name!r}; add it there"


def _file(name: str) -> str:
    """The file of a config that Hydra names: `experiment_algo/mine_dpo` is a section of `experiment_algo/mine.yaml`."""
    endings = [f"_{algo}" for algo in ALGORITHMS if name.startswith("experiment_algo/") and name.endswith(f"_{algo}")]
    return f"{name.removesuffix(max(endings, key=len, default=''))}.yaml"


def _unknown(key: str, schema: type | None, override: str | None, experiment: str | None) -> str:
    """The answer to a key that does not exist.

    Args:
        key: with its place.
        schema: the class that lacks it, if it is a class of the configuration.
        override: what the command line says, if the key is from there; else a file of conf/ has it.
        experiment: that file, if it is an experiment's: `experiment/mine`.
    """
    if key.endswith(".schema") and not override:
        return f"the file that {key.partition('.')[0]}= chooses needs @_here_ after its /schema/... in `defaults:`"
    if schema is Run:
        return "the file that algo= chooses needs /schema/...@_global_, of its algorithm, in `defaults:`"
    if key == "experiment" and not override:
        return "the file that experiment= chooses needs the first line `# @package _global_`"
    if schema is None:
        return f"{override or key}: no such key; --cfg job lists them"
    algo = next((name for name, algorithm in ALGORITHMS.items() if algorithm is schema), None)
    answer = unknown_key(key, names_of(schema, key.rpartition(".")[0]), algo, shown=override or key)
    if experiment is None or algo is None or algo in (having := owners(key)) or not having:
        return answer
    where = experiment.replace("experiment/", "experiment_algo/")
    return f"{experiment}.yaml: {answer}; what changes one algorithm alone belongs into {where}.yaml"


def explain(error: BaseException) -> str:
    """One line for an error that Hydra or OmegaConf describe in several: the key, the value and the way out."""
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    text, last = "\n".join(map(str, chain)), str(chain[-1])
    word: Any = getattr(error, "override", None)  # Hydra's OverrideParseException
    if word is not None:
        return (
            f"{word} is not of the form key=value, without spaces around =; "
            "a value with brackets, = or ~ needs quotes of its own: 'data.path=\"~/a (b)\"'"
        )
    # 1. a choice that does not exist
    if match := re.search(
        r"Could not find '([^']+)'.*?Available options in '([^']+)':\n(.*?)\nConfig search", text, re.S
    ):
        return unknown_choice(match[2], match[1].rpartition("/")[2], match[3].split())
    if match := re.search(r"Could not load 'logger/([^']+)'", text):  # one of a list: [wandb,tensorbord]
        return unknown_choice("logger", match[1], sorted([*TRACKERS, "none", "wandb"]))
    # 2. what only a file of conf/ can have wrong
    full_key = re.search(r"full_key: ([\w.-]+)", last)
    if match := re.search(r"In '([^']+)': Could not load 'schema/([^']+)'", text):
        return not_listed(match[1], match[2])
    if full_key and full_key[1] == "algo":
        if match := re.search(r"Error merging override (\S+)", text):
            return f"{match[1]}: algo has no keys below it; an algorithm is chosen with algo=dpo"
        line = "a line with its name: `algo: dpo` in dpo.yaml"
        missing = line if "issing" in last else "the first line `# @package _global_`"
        return f"the file that algo= chooses needs {missing}"
    # 3. a key that does not exist
    if match := re.search(r"Key '([^']+)' (?:not in|is not in struct)(?: '(\w+)')?", last):
        key = full_key[1] if full_key else match[1]
        override = re.search(r"To append to your config use \+(.+)", text)
        file = re.search(r"In '(experiment/[^']+)'", text)
        experiment = file[1] if file and not override else None
        return _unknown(key, CLASSES.get(match[2] or ""), override[1] if override else None, experiment)
    # 4. a key without a value
    if match := re.search(r"[Mm]issing (?:mandatory value:|1 required positional argument:) '?([\w.]+)", text):
        key = full_key[1] if full_key and full_key[1].endswith(match[1]) else match[1]
        return f"{key} has no value; set {key}=..."
    # 5. a value of another type
    if full_key:
        override = re.search(r"Error merging override (\S+)", text)
        file = re.search(r"In '([^']+)'", last)
        place = override[1] if override else f"{full_key[1]} in {_file(file[1])}" if file else full_key[1]
        reason = next(line for line in last.splitlines() if not line.startswith("In '"))
        return f"{place}: {reason.strip()}; conf/ says what it takes"
    # 6. a group that this algorithm does not have
    if match := re.search(r"Could not override '([^']+)'", text):
        group, _, place = match[1].partition("@")
        having = owners(place or group)
        if having and place:
            return f"{match[1]}: no such group for this algorithm; it belongs to algo={', '.join(having)}"
        if having:
            algo = having[0]
            return f"{group}=... chooses a preset of algo={algo}, and this is another algorithm; add algo={algo}"
        return f"{match[1]}: no such group; --help lists the groups, --cfg job the keys"
    return " ".join(line.strip() for line in text.splitlines() if line.strip())
