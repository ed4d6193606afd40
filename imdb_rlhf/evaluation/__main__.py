"""`python -m imdb_rlhf.evaluation MODEL_DIR [key=value ...]`: any model, evaluated as a policy.

The same as `python train.py algo=own_model own_model.path=MODEL_DIR ...`.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from imdb_rlhf.cli import main
from imdb_rlhf.errors import ConfigError

HELP = """How much reward does an existing model get, at what KL to the reference? Nothing is trained.

  python -m imdb_rlhf.evaluation MODEL_DIR [--config-dir DIR] [key=value ...]

MODEL_DIR   folder or Hub id of a Hugging Face causal LM with the reference's tokenizer
key=value   as train.py takes them: those that define reference, reward and prompts, and
            own_model.name=...  the model's name in the frontier
            paths.outputs=DIR   folder of the runs to compare it with
            plan=true           prints what would be made and what reused; runs nothing
--config-dir DIR  experiments of your own, as train.py takes them

It is the same as: python train.py algo=own_model own_model.path=MODEL_DIR [key=value ...]"""


def overrides(arguments: Sequence[str]) -> list[str]:
    """The arguments of `train.py` that this command line's arguments stand for.

    Raises:
        ConfigError: the first argument is not a model, or another one is not of the form key=value.
    """
    usage = "python -m imdb_rlhf.evaluation MODEL_DIR [--config-dir DIR] [key=value ...]"
    options, arguments = _options(arguments)
    if not arguments or not arguments[0] or arguments[0].startswith("-"):
        raise ConfigError(f"MODEL_DIR is missing; {usage}")
    model, *others = arguments
    wrong = next((word for word in others if "=" not in word.lstrip("-")), None)
    if wrong is not None:
        raise ConfigError(f"{wrong!r} is not of the form key=value; {usage}")
    if "=" in model and not Path(model).expanduser().exists():
        raise ConfigError(f"{model!r} is in the place of MODEL_DIR; {usage}")
    # the path is quoted for Hydra, whose grammar doubles backslashes only where a quote follows
    quoted = re.sub(r"(\\+)$", r"\1\1", re.sub(r"(\\*)'", r"\1\1\\'", model))
    return [*options, "algo=own_model", f"own_model.path='{quoted}'", *others]


def _options(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Divide arguments into `--config-dir DIR`, wherever it stands, and the rest."""
    found: list[str] = []
    rest = list(arguments)
    for at, word in enumerate(arguments):
        name, equals, _ = word.partition("=")
        if name in ("--config-dir", "-cd"):
            found = [word] if equals else list(arguments[at : at + 2])
            rest = [*arguments[:at], *arguments[at + len(found) :]]
    return found, rest


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(HELP)
        sys.exit(0)
    try:
        sys.argv = [sys.argv[0], *overrides(sys.argv[1:])]
    except ConfigError as error:
        print(f"refused: {error}", file=sys.stderr)
        sys.exit(2)
    main()
