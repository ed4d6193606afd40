"""How often each completion of a group is the best of n of them."""

from math import comb

import numpy as np


def best_of_weights(scores: np.ndarray, n: int) -> np.ndarray:
    """The chance of each completion to be the best of n that are drawn from its group without replacement.

    Completions that are independent samples are, drawn so, n independent samples: the mean over the weights is that of
    best-of-n, without bias. Equal scores share their chance.

    Args:
        scores: (k,) by which the best is chosen.
        n: from 1 to k.

    Returns:
        (k,) float64, sum 1.
    """
    level = np.unique(scores, return_inverse=True)[1]
    sizes = np.bincount(level)
    upto = [comb(int(count), n) for count in np.cumsum(sizes)]
    chances = np.diff(upto, prepend=0) / comb(len(scores), n)
    return np.asarray((chances / sizes)[level], dtype=np.float64)
