"""All randomness is a function of (seed, names...): nothing in the package draws from a global generator."""

import hashlib

import numpy as np


def derive(seed: int, *names: str | int) -> int:
    """Derive a 63-bit seed for one use, as in `derive(seed, "groups", prompt_id)`; other names, independent streams."""
    text = "\x1f".join([str(seed), *(f"{type(n).__name__}:{n}" for n in names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """Make a numpy generator for one use (PCG64, seeded by `derive`)."""
    return np.random.Generator(np.random.PCG64(derive(seed, *names)))
