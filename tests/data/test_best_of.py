"""The weights of best-of-n by trying all subsets."""

from itertools import combinations

import numpy as np
import pytest

from imdb_rlhf.data.best_of import best_of_weights


@pytest.mark.parametrize("scores", [[3.0, -1.0, 2.0, 7.0, 0.0], [1.0, 1.0, 0.0, 2.0, 2.0], [4.0, 4.0, 4.0]])
def test_weights_are_those_of_all_subsets(scores: list[float]) -> None:
    for n in range(1, len(scores) + 1):
        wanted = np.zeros(len(scores))
        subsets = list(combinations(range(len(scores)), n))
        for subset in subsets:
            top = max(scores[at] for at in subset)
            best = [at for at in subset if scores[at] == top]
            wanted[best] += 1 / len(best) / len(subsets)
        assert best_of_weights(np.array(scores), n) == pytest.approx(wanted)
