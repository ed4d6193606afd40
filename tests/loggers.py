"""Loggers in tests."""

from typing import Any

from imdb_rlhf.config.machine import WandbLogger, WandbMode


def wandb_logger(**changes: Any) -> WandbLogger:
    """W&B with all that is optional left out, but for some keys."""
    values: dict[str, Any] = dict.fromkeys(("entity", "group", "run_name", "notes"), None)
    values |= dict.fromkeys(
        ("tensorboard", "mlflow", "trackio", "system", "console", "git", "code", "artifacts"), False
    )
    return WandbLogger(**(values | {"project": "imdb-rlhf", "tags": ["smoke"], "mode": WandbMode.auto} | changes))
