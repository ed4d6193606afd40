"""Completions of the reference policy, scored by the true reward: groups and reservoir are made of them."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from imdb_rlhf.data import groups
from imdb_rlhf.evaluation.evaluate import completion_text
from imdb_rlhf.models import policy as policies
from imdb_rlhf.models.logprobs import Rows, sequence_logprobs
from imdb_rlhf.models.policy import Policy
from imdb_rlhf.models.sampling import Samples, batches_by_length, limits, sample, uniforms
from imdb_rlhf.models.tokens import decode
from imdb_rlhf.rewards import Reward
from imdb_rlhf.stages.reference import Reference
from imdb_rlhf.stages.reviews import Reviews
from imdb_rlhf.stages.stage import Flow
from imdb_rlhf.stages.true_reward import TrueReward
from imdb_rlhf.tracking.console import Progress
from imdb_rlhf.tracking.formats import decimals


@dataclass(frozen=True)
class Sampler:
    """How a stage samples the reference.

    Attributes:
        flow: policy, true reward and processes.
        seed: of the samples.
        count: samples per prompt.
        batch_size: completions sampled and scored at once.
        precision: the arithmetic: the training's for groups, as the policy will be trained; float32 for the reservoir.
        append_eos: whether a completion that was cut at the length limit ends in an EOS that was never sampled.
    """

    flow: Flow
    seed: int
    count: int
    batch_size: int
    precision: Callable[[], AbstractContextManager[Any]]
    append_eos: bool = False

    def open(self) -> tuple[Policy, Reward]:
        """The reference, frozen, and the true reward."""
        policy = self.flow.get(Reference).policy()
        policies.freeze(policy.lm)
        return policy, self.flow.get(TrueReward).reward

    def table(
        self, policy: Policy, reward: Reward, prompts: list[list[int]], stream: str, progress: Progress
    ) -> pd.DataFrame:
        """Sample and score `count` completions of each prompt.

        Batches of one prompt length are a function of all prompts; processes share them out whole.

        Args:
            policy: the reference.
            reward: the true reward.
            prompts: token rows.
            stream: the name of the random stream.
            progress: is advanced by completions.

        Returns:
            A group table (`groups.COLUMNS`) in the order of prompts and samples, on every rank.

        Raises:
            RunError: the true reward cannot score a text.
        """
        runtime, generation = self.flow.runtime, self.flow.run.generation
        owners = [(prompt, number) for prompt in range(len(prompts)) for number in range(self.count)]
        batches = batches_by_length([len(prompts[prompt]) for prompt, _ in owners], self.batch_size)
        rows: list[dict[str, Any]] = []
        for number, batch in enumerate(batches):
            if number % runtime.world != runtime.rank:
                continue
            keys = [owners[i] for i in batch]
            new, distinct = generation.max_new_tokens, {prompt for prompt, _ in keys}
            draws = {p: uniforms(self.seed, stream, [p], self.count, new)[0] for p in distinct}
            limit = {p: limits(self.seed, stream, [p], self.count, generation)[0] for p in draws}
            ends = np.array([limit[prompt][which] for prompt, which in keys])
            prompt_ids = [prompts[prompt] for prompt, _ in keys]
            with self.precision():
                drawn = np.stack([draws[prompt][which] for prompt, which in keys])
                samples = sample(policy.lm, prompt_ids, drawn, policy.eos_id, generation.temperature, ends)
            completion_ids = samples.ids
            if self.append_eos:
                both = zip(samples.ids, samples.finished, strict=True)
                completion_ids = [ids if finished else [*ids, policy.eos_id] for ids, finished in both]
            with self.precision():
                trained_rows = Rows.of(prompt_ids, completion_ids)
                logprobs = sequence_logprobs(policy.lm, trained_rows, generation.temperature).tolist()
            rows += _scored(policy, reward, keys, prompt_ids, samples, completion_ids, logprobs)
            progress.advance(len(keys) * runtime.world)
        frame = pd.DataFrame(runtime.gather(rows), columns=groups.COLUMNS)
        return frame.sort_values(["prompt_id", "sample_id"], ignore_index=True)


def _scored(
    policy: Policy,
    reward: Reward,
    keys: list[tuple[int, int]],
    prompt_ids: list[list[int]],
    samples: Samples,
    completion_ids: list[list[int]],
    logprobs: list[float],
) -> list[dict[str, Any]]:
    """Rows of a group table; the texts are those of the tokens that were sampled, without an appended EOS."""
    prompts = decode(policy.tokenizer, prompt_ids)
    texts = decode(policy.tokenizer, [prompt + ids for prompt, ids in zip(prompt_ids, samples.ids, strict=True)])
    scores = reward.score(texts)
    return [
        {
            "prompt_id": prompt,
            "sample_id": which,
            "prompt_ids": prompt_ids[at],
            "completion_ids": completion_ids[at],
            "prompt": prompts[at],
            "completion": completion_text(prompts[at], texts[at]),
            "finished": samples.finished[at],
            "reward": float(scores.reward[at]),
            "reward_logit": float(scores.logit[at]),
            "ref_logprob": logprobs[at],
        }
        for at, (prompt, which) in enumerate(keys)
    ]


def compare_scores(flow: Flow, frame: pd.DataFrame, folder: Path) -> None:
    """Hold the true reward against the scores of an artifact that is made or reused.

    Args:
        flow: tokenizer and true reward.
        frame: its rows: `prompt_ids`, `completion_ids`, `reward_logit`.
        folder: of the artifact.

    Raises:
        RunError: a score differs.
    """
    reward = flow.get(TrueReward)
    if not reward.kind.compared:
        return
    both = zip(frame["prompt_ids"], frame["completion_ids"], strict=True)
    texts = decode(flow.get(Reviews).tokenizer(), [[*prompt, *completion] for prompt, completion in both])
    reward.compare(texts, frame["reward_logit"].tolist(), folder)


def report_of(frame: pd.DataFrame) -> dict[str, Any]:
    """`report.json` of sampled completions."""
    return {
        "completions": len(frame),
        "reward_mean": float(frame["reward"].mean()),
        "reward_std": float(frame["reward"].std()),
        "finished": float(frame["finished"].mean()),
        "length": float(frame["completion_ids"].map(len).mean()),
    }


def summary_of(folder: Path) -> str:
    """The console's line for sampled completions."""
    report = json.loads((folder / "report.json").read_text())
    mean, deviation = report["reward_mean"], report["reward_std"]
    spec = decimals([mean, deviation], 3)
    return f"{report['completions']} completions, reward {mean:{spec}} ± {deviation:{spec}}"
