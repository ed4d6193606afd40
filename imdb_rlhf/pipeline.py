"""THE DATA FLOW, stage by stage.

    reviews -> data -> sft -> (two_label) -> groups -> reference -> policy

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

from imdb_rlhf import stages
from imdb_rlhf.artifacts import Artifact, Store, hash_file, hash_folder, hash_of
from imdb_rlhf.config import (
    ClassifierReward,
    ImdbData,
    Init,
    LexiconReward,
    OwnReward,
    PreferenceRun,
    PretrainedModel,
    Run,
    ScratchModel,
    TwoLabelReward,
)
from imdb_rlhf.data import embedded, groups, hub, imdb, prompts
from imdb_rlhf.evaluation import record
from imdb_rlhf.evaluation.policy import evaluate
from imdb_rlhf.models import policy as policies
from imdb_rlhf.models.policy import Policy
from imdb_rlhf.rewards import Reward
from imdb_rlhf.rewards.classifier import ClassifierReward as Classifier
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
            groups.check_preferences(Path(run.data.preferences).expanduser())
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
        run, facts = self.run, self.runtime.facts()
        training = facts | {"micro_batch": run.trainer.micro_batch}  # sums in another order round otherwise
        found: dict[str, Stage] = {}

        def add(name: str, make: Callable[[Path], None], *, resumable: bool = False, **inputs: Any) -> None:
            found[name] = Stage(name, inputs, make, resumable)

        def key(name: str) -> str:
            return self.store.key(name, found[name].inputs)

        # 1. data: disjoint reviews, the tokenizer, SFT rows and prompts
        model = run.model
        tokenizer = (
            {"size": model.tokenizer_size, "vocabulary": model.vocabulary}
            if isinstance(model, ScratchModel) and run.sft.path is None
            else self.base
        )
        data = asdict(run.data)
        apart = ("path", "hub_id", "revision", "preferences", "preferences_eos")
        labels = {name: data.pop(name) for name in ("labelled_reviews", "labelled_splits") if name in data}
        for name in apart:
            data.pop(name, None)
        add(
            "data",
            self._make_data,
            config=data,
            content=self._content(),
            tokenizer=tokenizer,
            sft_tokens=None if run.sft.path else run.sft.max_tokens,
        )
        # 2. sft: the reference policy
        if run.sft.path is None:
            sft = asdict(run.sft) | {"path": None, "revision": None}
            add("sft", self._make_sft, resumable=True, config=sft, base=self.base, data=key("data"), machine=training)
            reference: Any = key("sft")
        else:
            reference = self.base
        # 3. two_label: a true reward that is trained
        reward: Any = self._reward_identity()
        if isinstance(run.reward, TwoLabelReward):
            add(
                "labelled",
                self._make_labelled,
                config=data | labels,
                content=self._content(),
                held_out=run.reward.held_out,
            )
            start = reference if run.reward.init == Init.sft else self.base
            add(
                "two_label",
                self._make_two_label,
                resumable=True,
                config={k: v for k, v in asdict(run.reward).items() if k != "score_batch_size"},
                data=key("labelled"),
                base=start,
                new_tokens=run.generation.max_new_tokens,
                machine=training,
            )
            reward = {"two_label": key("two_label"), "batch": run.reward.score_batch_size}
        # 4. groups: K completions a training prompt, scored
        if isinstance(run, PreferenceRun):
            if run.data.preferences is None:
                source: Any = {"config": asdict(run.groups), "reward": reward, "data": key("data")}
            else:
                source = {"file": hash_file(Path(run.data.preferences).expanduser()), "eos": run.data.preferences_eos}
            add(
                "groups",
                self._make_groups,
                source=source,
                reference=reference,
                generation=asdict(run.generation),
                machine=facts,
            )
        # 5. reference: the evaluation of the reference policy, beside every policy's
        evaluation = {k: v for k, v in asdict(run.evaluation).items() if k in ("seed", "samples", "batch_size")}
        add(
            "reference",
            self._make_reference,
            evaluation=evaluation,
            reference=reference,
            reward=reward,
            data=key("data"),
            generation=asdict(run.generation),
            machine=facts | {"precision": "float32"},
        )
        return found

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
            return {"classifier": path, "positive": reward.positive_label, "batch": reward.batch_size}
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

    def _tokenizer(self) -> Any:
        if self.run.sft.path is not None or isinstance(self.run.model, PretrainedModel):
            path, revision, key = self._models()[0]
            return policies.load_tokenizer(hub.fetch(path, revision, key), key)
        return policies.load_tokenizer(self.path("data") / "tokenizer", "data")

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
            return Classifier(folder, config.positive_label, config.batch_size, device)
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
        record.write_json(
            folder / "report.json", {"labelled": len(reviews.labelled), "held_out": len(reviews.held_out)}
        )

    def _make_sft(self, folder: Path) -> None:
        self.tools.make_sft(folder, self.base_policy(), prompts.read_rows(self.path("data")))

    def _make_two_label(self, folder: Path) -> None:
        assert isinstance(self.run.reward, TwoLabelReward)
        policy = self.reference_policy() if self.run.reward.init == Init.sft else self.base_policy()
        self.tools.make_two_label(folder, policy, self.path("labelled"))

    def _make_groups(self, folder: Path) -> None:
        run = self.run
        assert isinstance(run, PreferenceRun)
        policy = self.reference_policy()
        if run.data.preferences is not None:
            self.tools.make_preferences(folder, policy, Path(run.data.preferences).expanduser())
        else:
            self.tools.make_groups(folder, policy, self.reward, prompts.read_prompts(self.path("data"), "train"))

    def _make_reference(self, folder: Path) -> None:
        run, policy = self.run, self.reference_policy()
        policies.freeze(policy.lm)
        wanted = self.evaluation_prompts()
        total = sum(len(rows) for rows in wanted.values()) * run.evaluation.samples
        with self.console.progress("reference", total, "sample") as progress:
            frame = evaluate(
                policy,
                policy.lm,
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

    # --- plan ------------------------------------------------------------------------------------------------------

    def plan(self) -> None:
        """Print the stages, what would be reused, and the disk that the rest needs; writes nothing."""
        parameters = self.tools.parameters()
        rows = self.run.data.prompts.train * (self.run.groups.k if isinstance(self.run, PreferenceRun) else 0)
        need = {
            "data": 40 * self.run.data.sft_reviews * 10,
            "sft": parameters * 16,  # weights, and a checkpoint with two moments while it is made
            "labelled": 100_000_000 if isinstance(self.run.data, ImdbData) else 5_000_000,
            "two_label": parameters * 16,
            "groups": rows * 1000,
            "reference": (self.run.data.prompts.test + self.run.data.prompts.validation) * 4 * 500,
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
