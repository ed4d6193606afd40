"""How much reward does a preference-tuning method buy for each nat of KL?

The names below are the Python API (docs/python.md); each is imported when it is used, so that this import is light.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Name -> the module that defines it.
_API = {
    "measure": "imdb_rlhf.api.measure",
    "Measurement": "imdb_rlhf.api.results",
    "World": "imdb_rlhf.api.world",
    "load_world": "imdb_rlhf.api.load",
    "load_policy": "imdb_rlhf.api.policy",
    "LoadedPolicy": "imdb_rlhf.api.policy",
    "RunWorld": "imdb_rlhf.api.load",
    "FrontierCallback": "imdb_rlhf.api.callback",
    "Frontier": "imdb_rlhf.api.frontier",
    "best_of_n": "imdb_rlhf.api.arrays",
    "optimum": "imdb_rlhf.api.arrays",
    "Optimum": "imdb_rlhf.api.arrays",
    "interval": "imdb_rlhf.api.arrays",
    "seed_interval": "imdb_rlhf.api.arrays",
    "difference": "imdb_rlhf.api.arrays",
    "Difference": "imdb_rlhf.api.arrays",
    "ConfigError": "imdb_rlhf.errors",
    "RunError": "imdb_rlhf.errors",
}
__all__ = [*_API, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _API:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_API[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_API})
