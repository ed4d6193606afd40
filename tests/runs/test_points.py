"""Evaluation points of a run."""

import pandas as pd

from imdb_rlhf.runs import points


def test_the_best_step_is_chosen_on_validation_prompts() -> None:
    def point(validation: float, test: float) -> pd.DataFrame:
        rows = [("validation", validation), ("test", test)]
        frame = pd.DataFrame(rows, columns=["split", "reward"])
        return frame.assign(prompt_id=0, reward_logit=0.0, kl=0.0, kl_k1=0.0, length=1, finished=True, completion="a b")

    assert points.best_step({10: point(0.5, 0.9), 20: point(0.7, 0.1), 30: point(0.7, 0.2)}) == 20
