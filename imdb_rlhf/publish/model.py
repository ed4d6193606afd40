"""A finished run's model and preferences as repositories."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from imdb_rlhf.artifacts.files import check_manifest
from imdb_rlhf.config.families import GroupsRun
from imdb_rlhf.config.hub import HubConfig
from imdb_rlhf.config.model import PretrainedModel
from imdb_rlhf.config.run import Run
from imdb_rlhf.data.card import Exported, rows_of
from imdb_rlhf.data.card import card as dataset_card
from imdb_rlhf.data.hub import in_time, is_folder
from imdb_rlhf.errors import RunError
from imdb_rlhf.models.card import Published, base_model, card
from imdb_rlhf.models.decoded_files import REFERENCE, is_decoded
from imdb_rlhf.models.tokens import first_token, load_tokenizer
from imdb_rlhf.publish.repository import Repository, Upload
from imdb_rlhf.runs import files
from imdb_rlhf.runs.kinds import method_name
from imdb_rlhf.stages.groups import Groups

CARD = "README.md"


def exports_of(runs: Mapping[Path, Run]) -> list[Exported]:
    """The groups of finished runs, each once; preferences that a run was given are somebody else's, and not among them.

    Args:
        runs: folder of each run -> its configuration.

    Raises:
        RunError: the groups were removed, or changed by hand.
    """
    exports: dict[str, Exported] = {}
    for path, run in runs.items():
        if not isinstance(run, GroupsRun) or not run.uses_groups or run.data.preferences is not None:
            continue
        key = json.loads((path / files.ARTIFACTS).read_text())[Groups.name]
        folder = path.parent.parent / "artifacts" / Groups.name / key
        problem = check_manifest(folder)
        if problem is not None:
            raise RunError(
                f"the preferences cannot be pushed: {folder}: {problem}; leave them out: hub.what=[model,report]"
            )
        if rows_of(folder / "groups.parquet"):
            exports.setdefault(key, Exported(folder, key, run))
    return list(exports.values())


def preferences(exports: Sequence[Exported], repository: Repository, hub: HubConfig) -> Upload:
    """Groups and preferences as a dataset repository."""
    alone = len(exports) == 1
    tables = {path: file for each in exports for path, file in each.configurations(alone=alone).values()}
    text = dataset_card(exports, repository.name, hub.revision, hub.license)
    return Upload(repository, tables | {CARD: text.encode()})


def model(path: Path, run: Run, repository: Repository, published: Published) -> Upload:
    """The model of a finished run as a model repository.

    Args:
        path: the run's folder.
        run: its configuration.
        repository: where it goes.
        published: what its card says of it.
    """
    folder = path / "model"
    result = json.loads((path / files.SUMMARY).read_text())
    text = card(run, method_name(run.algo, asdict(run), run.variant), result, _bos(folder, run), published)
    weights = {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}
    return Upload(repository, weights | {CARD: text.encode()})


def has_model(path: Path) -> bool:
    """Whether a finished run has kept its model."""
    folder = path / "model"
    return (folder / "config.json").is_file() or is_decoded(folder)


def _bos(folder: Path, run: Run) -> str | None:
    """The token that rows of a saved model begin with, if any."""
    folder = folder / REFERENCE if is_decoded(folder) else folder
    tokenizer = load_tokenizer(folder, "model")
    kind = AutoConfig.from_pretrained(folder, trust_remote_code=False).model_type
    token = first_token(tokenizer, kind, run.data.bos, str(folder))
    return None if token is None else str(tokenizer.bos_token)


def licence_of(run: Run, stated: str | None) -> tuple[str | None, str]:
    """The licence of a run's model, and who states it: the publisher, or else the card of its base model.

    A licence that no card states is not guessed.
    """
    if stated is not None:
        return stated, "the publisher of this model"
    return _licence_of_base(run), "the card of its base model"


def _licence_of_base(run: Run) -> str | None:
    from huggingface_hub import HfApi, ModelCard

    base = base_model(run)
    try:
        if base is not None:
            data: Any = in_time(lambda: HfApi().model_info(base)).card_data
        else:
            places = [run.sft.path or (run.model.path if isinstance(run.model, PretrainedModel) else None)]
            folder = next((Path(place).expanduser() for place in places if place and is_folder(place)), None)
            data = None if folder is None else ModelCard((folder / CARD).read_text(encoding="utf-8")).data
        licence = None if data is None else data.get("license")
    except Exception:  # no card, or one that cannot be read: nothing is known
        return None
    return licence if isinstance(licence, str) and licence not in ("other", "unknown") else None
