"""Reward and exact KL to the reference while any trainer of transformers or TRL trains."""

import copy
import math
import sys
from collections.abc import Mapping
from dataclasses import fields
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any

from transformers import PreTrainedModel, TrainerCallback, TrainingArguments
from transformers.trainer_callback import CallbackHandler

from imdb_rlhf.api import models
from imdb_rlhf.api.run_folder import CallbackRun, Training
from imdb_rlhf.api.world import World
from imdb_rlhf.errors import ConfigError, RunError
from imdb_rlhf.evaluation.evaluate import metrics, test_metrics

# What sets trainings of one method apart, of the settings that every trainer has; a trainer's own come beside them.
SETTINGS = (
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "num_train_epochs", "max_steps", "optim", "weight_decay"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "max_grad_norm", "bf16", "fp16"),
)
# Settings of TRL's that say how something is stored or shown.
NO_SETTING = ("dataset_num_proc", "pad_token", "model_init_kwargs", "dataset_kwargs", "trackio_space_id")


class FrontierCallback(TrainerCallback):
    """Measures the policy on a world while a trainer trains it, and leaves a run that stands on a frontier.

    The trainer's log gets the keys of docs/metrics.md with `eval_` in place of `eval/`, as all of a trainer's keys
    have it: `eval_reward`, `eval_kl`, ... W&B and TensorBoard show `eval_kl` as `eval/kl`. The training itself is the
    same as without the callback, bit for bit.

    Attributes:
        history: `step` and the metrics of each evaluation.
    """

    def __init__(
        self,
        world: World,
        *,
        every: int,
        folder: str | Path | None,
        method: str | None = None,
        knob: str | tuple[str, float] | None = None,
        seed: int | None = None,
    ) -> None:
        """Prepare; nothing is sampled before the training begins.

        Args:
            world: reference, prompts, reward and sampling; `load_world(RUN)` gives those of a finished run.
            every: optimizer steps between evaluations; the last step is evaluated too.
            folder: the run's folder, `OUTPUTS/runs/NAME`, which `python -m imdb_rlhf.frontier` reads when the training
                has ended; None leaves none. A folder needs a world with validation prompts.
            method: the name in figures and tables; None is the trainer's configuration, as in "TRL DPO".
            knob: the key that a sweep varies: a name among the trainer's arguments (`"beta"`), or name and value.
            seed: of the training; None takes the trainer's.

        Raises:
            ConfigError: an argument cannot be used.
        """
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ConfigError(f"every={every!r} is no number of steps; give one of at least 1")
        if folder is not None and "validation" not in world.prompts:
            raise ConfigError(
                "a run on a frontier needs validation prompts, which its checkpoints are chosen on; give "
                "World(..., validation_prompts=...), or folder=None"
            )
        self.world, self.every = world, every
        self.method, self.knob, self.seed = method, knob, seed
        self.run = None if folder is None else CallbackRun(folder, world)
        self.history: list[dict[str, float]] = []
        self._evaluated: int | None = None
        self._handler: CallbackHandler | None = None
        self._writing = False

    # --- events of the trainer ------------------------------------------------------------------------------------

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Check the model, evaluate the reference and take the folder.

        Raises:
            ConfigError: the folder cannot be used.
            RunError: the model cannot be measured from this reference.
        """
        self._handler = _handler_of(sys._getframe(1))
        self.world.device = args.device
        lm = self._model(kwargs["model"])
        if self.world.shares_weights(lm):
            raise RunError(
                "the reference is the model that is trained, or shares weights with it, so their KL would be 0; give "
                "World the reference's folder, or a copy of it"
            )
        self.world.open(lm)
        training = self._training(args, kwargs["model"])  # before the evaluation, which takes longer
        _ = self.world.inputs  # evaluates the reference, on every process
        self._evaluated = state.global_step or None
        if self.run is not None and state.is_world_process_zero:
            self.run.begin(training, state.global_step)

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluate where it is due."""
        if state.global_step % self.every == 0 or state.global_step >= state.max_steps:
            self._evaluate(args, state, control, kwargs)

    def on_log(self, args: TrainingArguments, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Copy the trainer's row into `metrics.jsonl`."""
        if self._writing or self.run is None or not state.is_world_process_zero or "train_runtime" in (logs or {}):
            return
        numbers = {key: value for key, value in (logs or {}).items() if isinstance(value, int | float)}
        # a loss of nan has no place in the file, whose absence says enough; an evaluation would be refused
        finite = {_key(key): float(value) for key, value in numbers.items() if math.isfinite(value)}
        if finite:
            self.run.write_row(state.global_step, finite)

    def on_train_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluate the last step, if the training ended early, and seal the run."""
        # with load_best_model_at_end the model is another step's by now
        if self._evaluated != state.global_step and not args.load_best_model_at_end:
            self._evaluate(args, state, control, kwargs)
        if self.run is not None and state.is_world_process_zero:
            self.run.finish()

    # --- what they do ---------------------------------------------------------------------------------------------

    def _evaluate(self, args: TrainingArguments, state: Any, control: Any, kwargs: Mapping[str, Any]) -> None:
        step = int(state.global_step)
        frame = self.world.rows(self._model(kwargs["model"]), self.world.prompts, step)
        values = metrics(frame) if "validation" in self.world.prompts else test_metrics(frame)
        self._evaluated = step
        self.history.append({"step": step} | values)
        if self.run is not None and state.is_world_process_zero:
            self.run.keep(frame, step)
            self.run.write_row(step, values)
        self._log({key.replace("/", "_", 1): value for key, value in values.items()}, args, state, control)

    def _log(self, values: dict[str, float], args: TrainingArguments, state: Any, control: Any) -> None:
        """Do what `Trainer.log` does, which a callback cannot reach, and which would end the trainer's own averages."""
        row = values if state.epoch is None else values | {"epoch": state.epoch}
        state.log_history.append(row | {"step": state.global_step})
        if self._handler is None:
            return
        self._writing = True
        try:
            # a copy: a log takes back what the trainer's other callbacks have asked for in this step
            self._handler.on_log(args, state, copy.copy(control), dict(row))
        finally:
            self._writing = False

    def _model(self, model: Any) -> PreTrainedModel:
        return models.inner(model, "the model that is trained")

    def _training(self, args: TrainingArguments, model: Any) -> Training:
        """What trains, by the trainer's arguments."""
        kind = type(args).__name__.removesuffix("Config").removesuffix("Arguments")
        package = type(args).__module__.partition(".")[0]
        name = "Trainer" if type(args) is TrainingArguments else f"{'TRL ' if package == 'trl' else ''}{kind}"
        knob = self.knob
        if isinstance(knob, str):
            value = getattr(args, knob, None)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ConfigError(f"knob={knob!r} is no number among the trainer's arguments; give name and value")
            knob = (knob, float(value))
        packages = dict.fromkeys(["transformers", "torch", package])
        versions = {each: metadata.version(each) for each in packages if _installed(each)}
        return Training(
            method=self.method or name,
            knob=knob,
            every=self.every,
            seed=args.seed if self.seed is None else self.seed,
            settings=_settings(args) | {"adapter": _adapter(model)},
            trainer={"arguments": type(args).__name__} | versions,
        )


def _handler_of(frame: FrameType | None) -> CallbackHandler | None:
    """The handler that called a callback: transformers gives a callback no other way to the trainer's trackers."""
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, CallbackHandler):
            return owner
        frame = frame.f_back
    return None


def _settings(args: TrainingArguments) -> dict[str, Any]:
    """The arguments that set trainings apart: some of every trainer's, and all of this trainer's own."""
    general = {field.name for field in fields(TrainingArguments)}
    own = [field.name for field in fields(args) if field.name not in general and field.name not in NO_SETTING]
    values = {name: getattr(args, name, None) for name in (*SETTINGS, *own)}
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    value = getattr(value, "value", value)  # an enum's
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _adapter(model: Any) -> str | None:
    """The kind of a PEFT model's adapter."""
    configs = getattr(model, "peft_config", None)
    return None if not configs else ", ".join(str(_plain(config.peft_type)) for config in configs.values())


def _installed(package: str) -> bool:
    try:
        return bool(metadata.version(package))
    except metadata.PackageNotFoundError:
        return False


def _key(name: str) -> str:
    """A trainer's key as `metrics.jsonl` has it: `loss` is `train/loss`, `eval_loss` is `eval/loss`."""
    return f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"
