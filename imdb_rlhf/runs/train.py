"""Training the policy of a run, with evaluations on the way."""

import math
from typing import Any

from imdb_rlhf.algos import ALGOS
from imdb_rlhf.config.families import TrainedRun
from imdb_rlhf.config.run import KeepModel
from imdb_rlhf.evaluation.evaluate import evaluate, metrics
from imdb_rlhf.models import policy as policies
from imdb_rlhf.models.policy import Policy
from imdb_rlhf.runs import points
from imdb_rlhf.runs.folder import RunFolder
from imdb_rlhf.runs.inputs import RunInputs
from imdb_rlhf.stages.reviews import Reviews
from imdb_rlhf.stages.reward_model import TrainedRewardModel
from imdb_rlhf.stages.training import settings
from imdb_rlhf.stages.true_reward import TrueReward
from imdb_rlhf.tracking import Trackers
from imdb_rlhf.tracking.console import STAGE_WIDTH
from imdb_rlhf.training import loop

# Metrics that the progress bar shows, under the name that it shows them by.
SHOWN = {
    "loss": "loss",
    "ppo/score": "score",
    "ppo/kl": "rollout KL",
    "rollout/score": "score",
    "rollout/kl": "rollout KL",
    "eval/reward": "reward",
    "eval/kl": "KL",
}


def train_policy(folder: RunFolder, run: TrainedRun, policy: Policy, trackers: Trackers, start: int) -> dict[str, Any]:
    """Train a policy in place, from the folder's checkpoint on if there is one.

    Args:
        folder: evaluation points and checkpoints are left there.
        run: its configuration.
        policy: a fresh copy of the reference.
        trackers: take rows of metrics.
        start: the step of the checkpoint; 0 without one.

    Returns:
        What the algorithm reports of its training, for `summary.json`.
    """
    flow, runtime, console = folder.pipeline, folder.runtime.at(run.precision), folder.console
    inputs = RunInputs(flow, policy, runtime)
    algorithm = ALGOS[run.algo].from_inputs(inputs, run)
    resumed = f"; resumed at step {start}" if start else ""
    console.note(f"{run.algo:<{STAGE_WIDTH}} {algorithm.summary_line()}{resumed}")
    if run.data.preferences is not None:
        indent = " " * (STAGE_WIDTH + 1)
        console.note(f"{indent}pairs as data.preferences has them: pairs.min_margin and pairs.ties do not apply")
    prompts = flow.get(Reviews).evaluation_prompts
    if folder.leader:
        points.drop(folder.path, start)
    runtime.barrier()
    earlier = points.read(folder.path)
    rewards = [metrics(earlier[step])["eval/validation_reward"] for step in sorted(earlier)]

    def evaluate_at(step: int) -> dict[str, float]:
        reward = flow.get(TrueReward).reward
        frame = evaluate(policy, inputs.reference, reward, prompts, run.evaluation, run.generation, runtime, step)
        values = metrics(frame)
        test = frame[frame["split"] == "test"]
        if run.uses_learned_reward:
            learned = flow.get(TrainedRewardModel).reward
            scores = learned.score_ids(list(test["prompt_ids"]), list(test["completion_ids"]))
            values["eval/learned_reward"] = float(scores.mean())
        if folder.leader:
            points.keep(folder.path, frame, step)
            trackers.histogram("eval/reward_histogram", test["reward"].tolist(), step)
            if run.keep_model == KeepModel.best and values["eval/validation_reward"] > max(rewards, default=-math.inf):
                policies.save(policy, folder.path / "best", "", run.generation.temperature)
        rewards.append(values["eval/validation_reward"])
        return values

    def advance(values: dict[str, float]) -> None:
        progress.advance(1, **{SHOWN[key]: value for key, value in values.items() if key in SHOWN})

    loop_settings = settings(flow, run.seed, run.optim, run.evaluation.every)
    loop_settings.period = algorithm.period
    loop_settings.log_every = algorithm.log_every(loop_settings.log_every)
    with console.progress(run.algo, algorithm.steps, start=start) as progress:
        hooks = loop.Hooks(trackers.log, advance, evaluate_at)
        loop.train(algorithm, loop_settings, runtime, folder.path, hooks)
    return algorithm.outcome(rewards)
