"""THE DATA FLOW, stage by stage.

    reviews -> data -> sft -> (two_label) -> groups -> reference -> (reward_model) -> (reservoir) -> policy

Every stage but the last is an artifact named by the hash of what produced it, so it is made once and reused by every
run that needs the same. How it is made stands in `stages.py`; the policy is trained and evaluated in the run's own
folder (`runs.py`).
"""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from imdb_rlhf import stages
from imdb_rlhf.algos.materials import Materials, Score
from imdb_rlhf.artifacts.files import hash_file, hash_folder, hash_of, write_json
from imdb_rlhf.artifacts.store import Artifact, Store
from imdb_rlhf.config.algos import BestOfNRun, GroupsRun, LearnedRun, OwnModelRun, PPORun, Scale
from imdb_rlhf.config.data import ImdbData
from imdb_rlhf.config.model import PretrainedModel, ScratchModel
from imdb_rlhf.config.reward import ClassifierReward, LexiconReward, OwnReward, TwoLabelReward
from imdb_rlhf.config.run import Run
from imdb_rlhf.config.stages import Init
from imdb_rlhf.data import embedded, hub, imdb, preferences, prompts
from imdb_rlhf.errors import RunError
from imdb_rlhf.evaluation import optimum, reservoir
from imdb_rlhf.evaluation.evaluate import COLUMNS, TEXTS, evaluate
from imdb_rlhf.models import policy as policies
from imdb_rlhf.models.logprobs import output_layer
from imdb_rlhf.models.policy import Policy
from imdb_rlhf.rewards import Reward
from imdb_rlhf.rewards.classifier import ClassifierReward as Classifier
from imdb_rlhf.rewards.learned import LearnedReward
from imdb_rlhf.rewards.lexicon import LexiconReward as Lexicon
from imdb_rlhf.rewards.own import OwnReward as Own
from imdb_rlhf.rewards.own import locate
from imdb_rlhf.tracking.console import Console
from imdb_rlhf.training.runtime import Runtime


@dataclass(frozen=True)
class Stage:
    """One artifact of the data flow.

    Attributes:
        name: its folder in the store.
        inputs: what its key is the hash of; upstream artifacts by their keys.
        make: writes the artifact into an empty folder.
        resumable: whether `make` goes on from a checkpoint in its folder.
    """

    name: str
    inputs: dict[str, Any]
    make: Callable[[Path], None]
    resumable: bool = False


class Pipeline:
    """The stages upstream of a run's policy, by name, in the order in which they are made."""

    def __init__(self, run: Run, runtime: Runtime, console: Console) -> None:
        self.run, self.runtime, self.console = run, runtime, console
        self.store = Store(Path(run.paths.outputs) / "artifacts", runtime, on_wait=console.note, on_damage=console.warn)
        self.seconds: dict[str, float] = {}
        self.tools = stages.Tools(run, runtime, console)
        self._check()

    # --- what is known before any work -----------------------------------------------------------------------------

    def _check(self) -> None:
        """Refuse what can be known to fail: files, folders, the Hub.

        Raises:
            RunError: naming the key and the way out.
        """
        run = self.run
        if run.data.preferences is not None:
            preferences.check_preferences(Path(run.data.preferences).expanduser())
        if isinstance(run.reward, OwnReward):
            locate(run.reward.function)
        for path, revision, key in self._models():
            if hub.is_folder(path):
                folder = hub.fetch(path, revision, key)
                policies.check_folder(folder, key)
                if key != "reward.path":
                    self.tools.check_model(folder, key)
        if isinstance(run.data, ImdbData) and run.data.path is not None:
            imdb.check_folder(hub.local_folder(run.data.path, "data.path"), run.data)

    def _models(self) -> list[tuple[str, str | None, str]]:
        """Path, revision and key of every model that comes from outside."""
        run, found = self.run, []
        if run.sft.path is not None:
            found.append((run.sft.path, run.sft.revision, "sft.path"))
        elif isinstance(run.model, PretrainedModel):
            found.append((run.model.path, run.model.revision, "model.path"))
        if isinstance(run.reward, ClassifierReward):
            found.append((run.reward.path, run.reward.revision, "reward.path"))
        if isinstance(run, OwnModelRun):
            found.append((run.own_model.path, run.own_model.revision, "own_model.path"))
        return found

    def fetch(self) -> None:
        """Bring everything from the Hub here before the first stage, and refuse an own reward that cannot be imported.

        Raises:
            RunError: the Hub is out of reach, or a model cannot be used.
        """
        run = self.run
        for path, revision, key in self._models():
            if not hub.is_folder(path):
                folder = hub.fetch(path, revision, key)
                if key != "reward.path":
                    self.tools.check_model(folder, key)
        if isinstance(run.data, ImdbData):
            _ = self.data_folder
        if isinstance(run.reward, OwnReward | ClassifierReward):
            _ = self.reward  # loaded now, so that one that cannot be used is refused now
        self._check_own_tokenizer(self.store.find("data", self.stages["data"].inputs))

    def _check_own_tokenizer(self, data: Artifact | None) -> None:
        """Refuse an own model with another tokenizer than the reference's.

        Args:
            data: the artifact that holds the reference's tokenizer, where it is trained; None if it is not there yet.

        Raises:
            RunError: naming the first token that differs.
        """
        run = self.run
        if not isinstance(run, OwnModelRun) or (data is None and self._trains_tokenizer):
            return
        folder = hub.fetch(run.own_model.path, run.own_model.revision, "own_model.path")
        tokenizer = policies.load_tokenizer(folder, "own_model.path")
        policies.check_same_tokens(tokenizer, self._tokenizer(data), folder, "own_model.path")

    @cached_property
    def data_folder(self) -> Path | None:
        """The folder of the real reviews; None for generated ones."""
        data = self.run.data
        if not isinstance(data, ImdbData):
            return None
        if data.path is not None:
            return hub.local_folder(data.path, "data.path")
        return hub.fetch(data.hub_id, data.revision, "data.path", "dataset")

    # --- keys ------------------------------------------------------------------------------------------------------

    @cached_property
    def base(self) -> dict[str, Any]:
        """What identifies the model that SFT starts from, or the reference that exists."""
        run = self.run
        if run.sft.path is not None:
            identity = hub.identity(run.sft.path, run.sft.revision, "sft.path")
            return {"reference": identity, "attention": run.model.attention}
        if isinstance(run.model, PretrainedModel):
            identity = hub.identity(run.model.path, run.model.revision, "model.path")
            return {"pretrained": identity, "attention": run.model.attention}
        return {"scratch": asdict(run.model)}

    @cached_property
    def stages(self) -> dict[str, Stage]:
        """All stages of this run, in order."""
        self._found: dict[str, Stage] = {}
        self._add_data()
        reference = self._add_sft()
        reward = self._add_true_reward(reference)
        self._add_groups(reference, reward)
        self._add_evaluations(reference, reward)
        self._add_learned_reward(reference, reward)
        return self._found

    def _add(self, name: str, make: Callable[[Path], None], *, resumable: bool = False, **inputs: Any) -> str:
        """A stage, and the key of its artifact."""
        self._found[name] = Stage(name, inputs, make, resumable)
        return self._key(name)

    def _key(self, name: str) -> str:
        return self.store.key(name, self._found[name].inputs)

    @property
    def _training(self) -> dict[str, Any]:
        """What of the machine a training depends on: sums in another order round otherwise."""
        return self.runtime.facts() | {"micro_batch": self.run.trainer.micro_batch}

    @property
    def _generation(self) -> dict[str, Any]:
        """How completions are sampled; a key that is null is as if it were not there."""
        return {key: value for key, value in asdict(self.run.generation).items() if value is not None}

    def _data_config(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The keys of `data` that every stage depends on, and those of its labels."""
        data: dict[str, Any] = asdict(self.run.data)
        labels: dict[str, Any] = {
            name: data.pop(name) for name in ("labelled_reviews", "labelled_splits") if name in data
        }
        for name in ("path", "hub_id", "revision", "preferences", "preferences_eos"):
            data.pop(name, None)
        return data, labels

    def _add_data(self) -> None:
        """Disjoint reviews, the tokenizer, SFT rows and prompts."""
        run, model = self.run, self.run.model
        scratch = isinstance(model, ScratchModel) and run.sft.path is None
        self._add(
            "data",
            self._make_data,
            config=self._data_config()[0],
            content=self._content(),
            tokenizer={"size": model.tokenizer_size, "vocabulary": model.vocabulary}
            if scratch and isinstance(model, ScratchModel)
            else self.base,
            sft_tokens=None if run.sft.path else run.sft.max_tokens,
        )

    def _add_sft(self) -> Any:
        """The reference policy."""
        if self.run.sft.path is not None:
            return self.base
        sft = asdict(self.run.sft) | {"path": None, "revision": None}
        machine, data = self._training, self._key("data")
        return self._add("sft", self._make_sft, resumable=True, config=sft, base=self.base, data=data, machine=machine)

    def _add_true_reward(self, reference: Any) -> Any:
        """The true reward; one that is trained has stages of its own."""
        run = self.run
        if not isinstance(run.reward, TwoLabelReward):
            return self._reward_identity()
        data, labels = self._data_config()
        self._add(
            "labelled",
            self._make_labelled,
            config=data | labels,
            content=self._content(),
            held_out=run.reward.held_out,
        )
        key = self._add(
            "two_label",
            self._make_two_label,
            resumable=True,
            config={k: v for k, v in asdict(run.reward).items() if k != "score_batch_size"},
            data=self._key("labelled"),
            base=reference if run.reward.init == Init.sft else self.base,
            new_tokens=run.generation.max_new_tokens,
            machine=self._training,
        )
        return {"two_label": key, "batch": run.reward.score_batch_size}

    def _add_groups(self, reference: Any, reward: Any) -> None:
        """K completions a training prompt, scored."""
        run = self.run
        if not (isinstance(run, GroupsRun) and run.uses_groups):
            return
        if run.data.preferences is None:
            source: Any = {"config": asdict(run.groups), "reward": reward, "data": self._key("data")}
        else:
            source = {"file": hash_file(Path(run.data.preferences).expanduser()), "eos": run.data.preferences_eos}
        self._add(
            "groups",
            self._make_groups,
            source=source,
            reference=reference,
            generation=self._generation,
            machine=self.runtime.facts(),
        )

    def _add_evaluations(self, reference: Any, reward: Any) -> None:
        """The reference policy, evaluated as every policy is; the model before SFT too, where it was pretrained."""
        run = self.run
        inputs = {
            "evaluation": {k: v for k, v in asdict(run.evaluation).items() if k in ("seed", "samples", "batch_size")},
            "reference": reference,
            "reward": reward,
            "data": self._key("data"),
            "generation": self._generation,
            "machine": self.runtime.facts() | {"precision": "float32"},
            "columns": COLUMNS + TEXTS,
        }
        self._add("reference", self._make_reference, **inputs)
        if self.has_base:
            self._add("base", self._make_base, **inputs, base=self.base)
        if isinstance(run, OwnModelRun):
            identity = hub.identity(run.own_model.path, run.own_model.revision, "own_model.path")
            own = {"model": identity, "attention": run.model.attention}
            self._add("own_model", self._make_own_model, **inputs, own_model=own)

    @property
    def has_base(self) -> bool:
        """Whether a pretrained model stands before SFT, so that policies can be compared with it too."""
        return isinstance(self.run.model, PretrainedModel) and self.run.sft.path is None

    def _add_learned_reward(self, reference: Any, reward: Any) -> None:
        """The reward model, the reservoir, and the scores of the one on the other."""
        run = self.run
        if isinstance(run, LearnedRun) and run.uses_learned_reward:
            self._add(
                "reward_model",
                self._make_reward_model,
                resumable=True,
                config=asdict(run.reward_model),
                pairs=asdict(run.pairs),
                groups=self._key("groups"),
                base=reference if run.reward_model.init == Init.sft else self.base,
                account=self._key("reference"),
                interval={k: v for k, v in asdict(run.evaluation).items() if k in ("seed", "bootstrap", "confidence")},
                machine=self._training,
            )
        if isinstance(run, BestOfNRun | PPORun) and run.uses_reservoir:
            self._add(
                "reservoir",
                self._make_reservoir,
                config=asdict(run.reservoir),
                reference=reference,
                reward=reward,
                data=self._key("data"),
                generation=self._generation,
                machine=self.runtime.facts() | {"precision": "float32"},
            )
            if run.uses_learned_reward:
                self._add(
                    "learned_scores",
                    self._make_learned_scores,
                    reservoir=self._key("reservoir"),
                    reward_model=self._key("reward_model"),
                    machine=self.runtime.facts() | {"precision": "float32"},
                )

    def _content(self) -> str:
        """A hash of the reviews: the files, the Hub's commit, or what the generator writes."""
        data = self.run.data
        if isinstance(data, ImdbData) and data.path is not None:
            return hash_folder(hub.local_folder(data.path, "data.path"), "**/*.parquet")
        if isinstance(data, ImdbData):
            return hub.identity(data.hub_id, data.revision, "data.path")
        return hash_of([asdict(review) for review in embedded.generate(50, data.seed)])

    def _reward_identity(self) -> Any:
        reward = self.run.reward
        if isinstance(reward, ClassifierReward):
            path = hub.identity(reward.path, reward.revision, "reward.path")
            names = {"positive": reward.positive_label, "ranking": reward.ranking}
            return {"classifier": path, **names, "batch": reward.batch_size}
        if isinstance(reward, OwnReward):
            file, name = locate(reward.function)
            return {"own": hash_file(file), "name": name}
        return {"name": reward.name}

    # --- the artifacts ---------------------------------------------------------------------------------------------

    def keys(self) -> dict[str, str]:
        """Stage -> key, of every artifact that this run uses."""
        return {name: self.store.key(name, stage.inputs) for name, stage in self.stages.items()}

    def build(self) -> None:
        """Make or reuse every stage, and say which."""
        for name, stage in self.stages.items():
            began = time.perf_counter()
            artifact = self.store.build(name, stage.inputs, stage.make, resumable=stage.resumable)
            self.seconds[name] = time.perf_counter() - began
            self.artifacts[name] = artifact
            if name == "data":  # where the tokenizer was made just now, this is the first that can be known
                self._check_own_tokenizer(artifact)
            note = self.tools.remark(name, artifact.path)
            if artifact.source_changed:
                note = f"{note}; made by another version of the source".removeprefix("; ")
            self.console.stage(
                name, reused=artifact.reused, seconds=artifact.seconds, path=str(artifact.path), note=note
            )

    @cached_property
    def artifacts(self) -> dict[str, Artifact]:
        """The artifacts that are built."""
        return {}

    def path(self, name: str) -> Path:
        """The folder of a built artifact."""
        return self.artifacts[name].path

    @property
    def _trains_tokenizer(self) -> bool:
        """Whether the reference's tokenizer is made with the data, rather than brought along by a model."""
        return self.run.sft.path is None and isinstance(self.run.model, ScratchModel)

    def _tokenizer(self, data: Artifact | None = None) -> Any:
        """The reference's tokenizer; `data` is the artifact that may hold it, the built one by default."""
        if not self._trains_tokenizer:
            path, revision, key = self._models()[0]
            return policies.load_tokenizer(hub.fetch(path, revision, key), key)
        folder = self.path("data") if data is None else data.path
        return policies.load_tokenizer(folder / "tokenizer", "data")

    def base_policy(self) -> Policy:
        """The model that SFT starts from."""
        if isinstance(self.run.model, ScratchModel):
            return policies.scratch(self.run.model, self._tokenizer())
        assert isinstance(self.run.model, PretrainedModel)
        folder = hub.fetch(self.run.model.path, self.run.model.revision, "model.path")
        return policies.load(folder, str(self.run.model.attention))

    def reference_folder(self) -> Path:
        """The folder of the reference policy."""
        if self.run.sft.path is not None:
            return hub.fetch(self.run.sft.path, self.run.sft.revision, "sft.path")
        return self.path("sft") / "model"

    def reference_policy(self) -> Policy:
        """A fresh copy of the reference policy on this run's device."""
        key = "sft.path" if self.run.sft.path is not None else "sft"
        policy = policies.load(self.reference_folder(), str(self.run.model.attention), key)
        policy.lm.to(self.runtime.device)
        return policy

    @cached_property
    def reward(self) -> Reward:
        """The true reward; where it is trained, its stage must be built."""
        config, device = self.run.reward, self.runtime.device
        if isinstance(config, LexiconReward):
            return Lexicon()
        if isinstance(config, OwnReward):
            return Own(config.function)
        if isinstance(config, ClassifierReward):
            folder = hub.fetch(config.path, config.revision, "reward.path")
            return Classifier(folder, config.positive_label, config.batch_size, device, ranking=config.ranking)
        assert isinstance(config, TwoLabelReward)
        return Classifier(self.path("two_label") / "model", None, config.score_batch_size, device, "two_label")

    def evaluation_prompts(self) -> dict[str, list[list[int]]]:
        """Split -> prompts, of the splits that are evaluated."""
        return {split: prompts.read_prompts(self.path("data"), split) for split in ("validation", "test")}

    def _make_data(self, folder: Path) -> None:
        run = self.run
        if self.runtime.rank:
            return
        reviews = prompts.divide(run.data, 0, self.data_folder)
        if run.sft.path is None and isinstance(run.model, ScratchModel):
            texts = [text[:1000] for text in reviews.texts["sft"][:20000]]
            tokenizer: Any = policies.train_tokenizer(texts, run.model.tokenizer_size, run.model.vocabulary)
            tokenizer.save_pretrained(folder / "tokenizer")
        else:
            tokenizer = self._tokenizer()
        encode = self.tools.encoder(tokenizer)
        parts = {
            role: prompts.encode_prompts(reviews.texts[role], role, run.data.prompts, run.data.seed, encode)
            for role in prompts.PROMPT_ROLES
        }
        rows = prompts.encode_reviews(reviews.texts["sft"], run.sft.max_tokens, int(tokenizer.eos_token_id), encode)
        prompts.write(folder, reviews, parts, rows)

    def _make_labelled(self, folder: Path) -> None:
        assert isinstance(self.run.reward, TwoLabelReward)
        if self.runtime.rank:
            return
        reviews = prompts.divide(self.run.data, self.run.reward.held_out, self.data_folder)
        reviews.labelled.to_parquet(folder / "labelled.parquet", index=False)
        reviews.held_out.to_parquet(folder / "held_out.parquet", index=False)
        write_json(folder / "report.json", {"labelled": len(reviews.labelled), "held_out": len(reviews.held_out)})

    def _make_sft(self, folder: Path) -> None:
        self.tools.make_sft(folder, self.base_policy(), prompts.read_rows(self.path("data")))

    def _make_two_label(self, folder: Path) -> None:
        assert isinstance(self.run.reward, TwoLabelReward)
        policy = self.reference_policy() if self.run.reward.init == Init.sft else self.base_policy()
        self.tools.make_two_label(folder, policy, self.path("labelled"))

    def _make_groups(self, folder: Path) -> None:
        run, policy = self.run, self.reference_policy()
        if run.data.preferences is not None:
            self.tools.make_preferences(folder, policy, Path(run.data.preferences).expanduser())
        else:
            self.tools.make_groups(folder, policy, self.reward, prompts.read_prompts(self.path("data"), "train"))

    def _make_reference(self, folder: Path) -> None:
        policy = self.reference_policy()
        self._evaluate(folder, policy, policy, "reference")

    def _make_base(self, folder: Path) -> None:
        policy = self.base_policy()
        policy.lm.to(self.runtime.device)
        self._evaluate(folder, policy, self.reference_policy(), "base")

    def _make_own_model(self, folder: Path) -> None:
        run = self.run
        assert isinstance(run, OwnModelRun)
        place = hub.fetch(run.own_model.path, run.own_model.revision, "own_model.path")
        own = policies.load(place, str(run.model.attention), "own_model.path")
        reference = self.reference_policy()
        left_out = policies.drop_tokens(own.lm, len(output_layer(reference.lm)[0]))
        own.lm.to(self.runtime.device)
        # the reference's tokenizer: what ends a completion, and what text the reward reads, is the same for both
        self._evaluate(folder, Policy(own.lm, reference.tokenizer), reference, "own_model")
        if self.runtime.rank == 0:
            write_json(folder / "report.json", {"tokens_left_out": left_out})

    def _evaluate(self, folder: Path, policy: Policy, reference: Policy, name: str) -> None:
        """Evaluate a policy that nothing is trained on any more."""
        run = self.run
        for model in (policy, reference):
            policies.freeze(model.lm)
        wanted = self.evaluation_prompts()
        total = sum(len(rows) for rows in wanted.values()) * run.evaluation.samples
        with self.console.progress(name, total, "sample") as progress:
            frame = evaluate(
                policy,
                reference.lm,
                self.reward,
                wanted,
                run.evaluation,
                run.generation,
                self.runtime,
                0,
                lambda count: progress.advance(count * self.runtime.world),
            )
        if self.runtime.rank == 0:
            frame.to_parquet(folder / "evaluation.parquet", index=False)

    def evaluation(self, name: str) -> pd.DataFrame:
        """The rows of the built stage `reference`, `base` or `own_model`."""
        return pd.read_parquet(self.path(name) / "evaluation.parquet")

    def _make_reward_model(self, folder: Path) -> None:
        assert isinstance(self.run, LearnedRun)
        policy = self.reference_policy() if self.run.reward_model.init == Init.sft else self.base_policy()
        self.tools.make_reward_model(folder, policy, self.path("groups"), self.evaluation("reference"))

    def _make_reservoir(self, folder: Path) -> None:
        self.tools.make_reservoir(folder, self.reference_policy(), self.reward, self.evaluation_prompts())

    def _make_learned_scores(self, folder: Path) -> None:
        rows = pd.read_parquet(self.path("reservoir") / "reservoir.parquet")
        if self.runtime.rank:
            return
        scores = self.learned_reward.score_ids(list(rows["prompt_ids"]), list(rows["completion_ids"]))
        rows[["split", "prompt_id", "sample_id"]].assign(learned=scores).to_parquet(folder / "scores.parquet")

    @cached_property
    def learned_reward(self) -> LearnedReward:
        """The reward model; its stage must be built."""
        assert isinstance(self.run, LearnedRun)
        return LearnedReward(self.path("reward_model"), self.runtime.device, self.run.groups.batch_size)

    @cached_property
    def reservoir(self) -> pd.DataFrame:
        """The reference's samples of evaluation prompts, with the column `learned` where there is a reward model."""
        rows = pd.read_parquet(self.path("reservoir") / "reservoir.parquet")
        if "learned_scores" not in self.stages:
            return rows
        scores = pd.read_parquet(self.path("learned_scores") / "scores.parquet")
        return rows.merge(scores, on=["split", "prompt_id", "sample_id"], validate="one_to_one")

    # --- what the policy is trained from -----------------------------------------------------------------------------

    def materials(self, policy: Policy) -> Materials:
        """Everything that an algorithm may take from; `policy` is a fresh copy of the reference."""
        run = self.run
        reference = policies.freeze(self.reference_policy().lm)
        ppo = isinstance(run, PPORun)
        return Materials(
            policy=policy,
            reference=reference,
            runtime=self.runtime,
            groups=self.path("groups") if "groups" in self.stages else None,
            prompts=prompts.read_prompts(self.path("data"), "train") if ppo else [],
            score=self._score(policy) if ppo else None,
            kl_coefficient=self._kl_coefficient() if ppo else None,
        )

    def _score(self, policy: Policy) -> Score:
        """What PPO optimises."""
        run = self.run
        assert isinstance(run, PPORun)
        if run.uses_learned_reward:
            learned = self.learned_reward

            def by_model(heads: list[list[int]], tails: list[list[int]]) -> np.ndarray:
                with self.runtime.autocast():
                    return learned.score_ids(heads, tails)

            return by_model
        mean, std = self._normalisation()

        def by_truth(heads: list[list[int]], tails: list[list[int]]) -> np.ndarray:
            texts = policies.decode(policy.tokenizer, [head + tail for head, tail in zip(heads, tails, strict=True)])
            values: np.ndarray = getattr(self.reward.score(texts), str(run.ppo.scale))
            return (values - mean) / std

        return by_truth

    def _normalisation(self) -> tuple[float, float]:
        """Mean and standard deviation of the true reward that PPO optimises, on the reference's samples.

        Raises:
            RunError: the samples all have the same reward.
        """
        run = self.run
        assert isinstance(run, PPORun)
        if not run.ppo.normalize:
            return 0.0, 1.0
        values = reservoir.table(self.reservoir, "validation", _column(run))
        if not values.std() > 0:
            raise RunError("ppo.normalize needs true rewards that differ; set ppo.normalize=false or another reward")
        return float(values.mean()), float(values.std())

    def _kl_coefficient(self) -> float:
        """The coefficient that PPO begins with: as configured, or the one whose optimum has the target's KL.

        That is read off the reservoir of the validation prompts; the test prompts are left for the report.

        Raises:
            RunError: the rewards of no prompt differ.
        """
        run = self.run
        assert isinstance(run, PPORun)
        given = run.ppo.initial_kl_coefficient if run.target_kl is not None else run.ppo.kl_coefficient
        if given is not None:
            return given
        assert run.target_kl is not None
        values = reservoir.table(self.reservoir, "validation", "learned" if run.uses_learned_reward else _column(run))
        if not run.uses_learned_reward:
            mean, std = self._normalisation()
            values = (values - mean) / std
        try:
            wanted = optimum.coefficient_for(values, run.target_kl)
        except ValueError as error:
            raise RunError(f"ppo: {error}; set ppo.initial_kl_coefficient, or use another reward") from error
        return min(max(wanted, run.ppo.min_kl_coefficient), run.ppo.max_kl_coefficient)

    # --- plan ------------------------------------------------------------------------------------------------------

    def plan(self) -> None:
        """Print the stages, what would be reused, and the disk that the rest needs; writes nothing."""
        parameters = self.tools.parameters()
        run, asked = self.run, self.run.data.prompts.test + self.run.data.prompts.validation
        rows = run.data.prompts.train * (run.groups.k if isinstance(run, GroupsRun) else 0)
        many = asked * (run.reservoir.samples if isinstance(run, BestOfNRun | PPORun) else 0)
        need = {
            "data": 40 * self.run.data.sft_reviews * 10,
            "sft": parameters * 16,  # weights, and a checkpoint with two moments while it is made
            "labelled": 100_000_000 if isinstance(self.run.data, ImdbData) else 5_000_000,
            "two_label": parameters * 16,
            "groups": rows * 1000,
            "reference": asked * run.evaluation.samples * 500,
            "base": asked * run.evaluation.samples * 500,
            "own_model": asked * run.evaluation.samples * 500,
            "reward_model": parameters * 24,
            "reservoir": many * 800,
            "learned_scores": many * 30,
        }
        total = 0
        for name, stage in self.stages.items():
            found = self.store.find(name, stage.inputs)
            if found is not None:
                self.console.stage(name, reused=True, seconds=found.seconds, path=str(found.path))
            else:
                total += need[name]
                key = self.store.key(name, stage.inputs)
                self.console.note(f"{name:<12} to be made   {self.store.root / name / key}")
        total += parameters * 16
        self.console.note(f"about {total / 1e6:,.0f} MB of disk needed for what is not there")


def _column(run: PPORun) -> str:
    """Where the true reward that PPO optimises stands in a table."""
    return "reward" if run.ppo.scale == Scale.reward else "reward_logit"
