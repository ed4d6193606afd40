"""The files of W&B's copy: a run's id, its offline parts, and the one command that uploads a run or a sweep.

W&B itself is not imported.
"""

import os
import re
import secrets
import shlex
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

ID, URL, FOLDER = "wandb_id", "wandb_url", "wandb"


def run_id(folder: Path, config_hash: str) -> str:
    """Return the W&B id of the run in `folder`, created at the first call and kept in the file `wandb_id`.

    Everyone who runs the same configuration in one project would share a bare hash, so the id ends in a nonce. An agent
    of a W&B sweep gives its runs an id of its own, which wins.
    """
    if in_agent():
        return os.environ["WANDB_RUN_ID"]
    path = folder / ID
    if path.exists() and (known := path.read_text(encoding="utf-8").strip()):
        return known
    new = f"{config_hash}-{secrets.token_hex(4)}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(new + "\n", encoding="utf-8")
    return new


def in_agent() -> bool:
    """Whether an agent of a W&B sweep has started this process."""
    return bool(os.environ.get("WANDB_SWEEP_ID") and os.environ.get("WANDB_RUN_ID"))


def offline_parts(folder: Path, run_id: str) -> list[Path]:
    """The offline parts that W&B has written of a run so far."""
    return sorted((folder / FOLDER).glob(f"offline-run-*-{run_id}"))


def keep_url(folder: Path, url: str | None) -> None:
    """Keep the page of a run that is online."""
    if url:
        (folder / URL).write_text(url + "\n", encoding="utf-8")


def url_of(folder: Path) -> str | None:
    """The page of a run that is online; None for any other."""
    path = folder / URL
    return path.read_text(encoding="utf-8").strip() or None if path.is_file() else None


def place(folder: Path) -> str | None:
    """Where W&B's copy of a run is: its page, or the command that uploads it; None where W&B has none."""
    if any((folder / FOLDER).glob("offline-run-*")):
        return f"offline; {sync_command(folder / FOLDER)}"
    url = url_of(folder)
    return f"online: {url}" if url else None


def sync_command(folder: Path) -> str:
    """The command that uploads the offline runs in a folder."""
    return f"wandb sync {shlex.quote(str(folder))}/offline-run-*"


def place_of_sweep(sweep: Path, runs: Iterable[Path], group: str) -> str | None:
    """Where W&B's copies of a sweep's runs are: their group's page, or the one command that uploads all of them.

    Args:
        sweep: its folder, which the frontier's run is in; the offline parts of its runs get links beside that.
        runs: the folders of its runs.
        group: the W&B group of all of them.
    """
    frontiers = [sweep, *sorted(path.parent for path in sweep.glob(f"*/{ID}"))]
    places = [*frontiers, *runs]
    offline = [part for place in places for part in sorted((place / FOLDER).glob("offline-run-*")) if part.is_dir()]
    own = sweep / FOLDER
    for link in own.glob("offline-run-*"):
        if link.is_symlink():
            link.unlink()
    if any(not part.is_symlink() for part in offline):
        own.mkdir(parents=True, exist_ok=True)
        for part in offline:
            if part.parent != own and not part.is_symlink():
                (own / part.name).symlink_to(os.path.relpath(part, own), target_is_directory=True)
        return f"offline; {sync_command(own)}"
    pages = [page for page in map(url_of, places) if page]
    return f"online: {_group_page(pages[0], group)}" if pages else None


def _group_page(run_page: str, group: str) -> str:
    """The page of a group, from that of one of its runs."""
    return re.sub(r"/runs/[^/]+/?$", f"/groups/{quote(group, safe='')}", run_page)
