"""Floating-point operations that a GPT-2 needs: what a share of the matrix-product peak is a share of.

Counted is the model's work, whoever does it and however: the products of weights and of attention, the output layer at
the positions that are scored alone, each distinct row once. Padding, logits of prompts, completions scored twice and
recomputation in a backward pass are a program's own affair and are not counted. A multiplication and an addition are
two operations; the backward pass is twice the forward pass.
"""

from collections.abc import Iterable
from typing import Protocol


class Sizes(Protocol):
    """What of a model's shape the count depends on."""

    @property
    def layers(self) -> int:
        """Blocks."""

    @property
    def width(self) -> int:
        """Entries of a state."""

    @property
    def vocabulary(self) -> int:
        """Rows of the output layer."""


def forward(sizes: Sizes, rows: Iterable[tuple[int, int]]) -> float:
    """Operations of a forward pass over rows.

    Args:
        sizes: of the model.
        rows: (tokens read, positions at which the output layer is applied) of each row.
    """
    total = 0.0
    for tokens, scored in rows:
        weights = 12 * sizes.width**2  # query, key, value: 3; projection: 1; the two of the perceptron: 4 each
        attention = 2 * tokens * sizes.width  # a token's products with all keys, and with all values
        total += 2 * tokens * sizes.layers * (weights + attention)
        total += 2 * scored * sizes.width * sizes.vocabulary
    return total


def training(sizes: Sizes, rows: Iterable[tuple[int, int]]) -> float:
    """Operations of a forward and a backward pass over rows; arguments as in `forward`."""
    return 3 * forward(sizes, rows)
