"""`python -m imdb_rlhf.frontier RUN_OR_SWEEP_DIR... [--to FOLDER]`: draw the frontier of finished runs.

`--push NAMESPACE/NAME` makes a static Space of it on the Hugging Face Hub, `--workspace ENTITY/PROJECT` a W&B workspace
of the runs.
"""

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from imdb_rlhf.arguments import OneLineParser, place
from imdb_rlhf.artifacts.files import hash_of, remember_hashes
from imdb_rlhf.config.hub import HubConfig, Part
from imdb_rlhf.errors import ConfigError, RunError
from imdb_rlhf.frontier import files, workspace
from imdb_rlhf.frontier.draw import describe, draw
from imdb_rlhf.frontier.finished import find
from imdb_rlhf.publish.repository import Repository, check, push
from imdb_rlhf.publish.space import space


def _default_folder(places: Sequence[Path], runs: Sequence[Path]) -> Path:
    """The sweep's own folder; for other places a folder beside the runs, named by a hash of their names."""
    if len(places) == 1 and (places[0] / files.SWEEP_STATE).exists():
        return places[0]
    return runs[0].parent.parent / "frontiers" / hash_of(sorted(run.name for run in runs))[:8]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0, 1 for a failure, 2 for arguments that are refused."""
    parser = OneLineParser(prog="python -m imdb_rlhf.frontier", description="Draw the frontier of finished runs.")
    parser.add_argument("places", metavar="DIR", type=place, nargs="+", help="a run, a sweep, or a folder of runs")
    parser.add_argument(
        "--to", type=place, help="folder to write into; by default the sweep's own, or outputs/frontiers/<hash>"
    )
    parser.add_argument("--push", metavar="NAMESPACE/NAME", help="make a static Space of it on the Hugging Face Hub")
    parser.add_argument("--public", action="store_true", help="make that Space public, where it does not exist yet")
    parser.add_argument("--branch", help="of the Space, made if need be; the Hub shows the page of main")
    parser.add_argument("--license", help="that the Space states, such as apache-2.0")
    parser.add_argument("--workspace", metavar="ENTITY/PROJECT", help="make a W&B workspace of the runs, too")
    try:
        options = parser.parse_args(arguments)
        hub = _hub(options)
        project = workspace.parse(options.workspace) if options.workspace else None
        runs = find(options.places)
        folder = options.to or _default_folder(options.places, runs)
        frontier = draw(runs, folder)
        view = workspace.write(frontier, folder, *project, workspace.group_of(frontier, folder)) if project else None
    except ConfigError as error:
        print(f"refused: {error}", file=sys.stderr)
        return 2
    except (RunError, OSError) as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    print(describe(frontier))
    for warning in frontier["warnings"]:
        print(f"warning: {warning}")
    print()
    for name in (files.REPORT, files.SVG, files.PDF, files.PNG, *files.NATS, files.JSON, files.CSV):
        print(f"  {folder / name}")
    if view:
        print(f"  {view}")
    if hub is not None:
        try:
            print(f"\n  {push(hub, space({'': folder}, _space(hub), models=[], datasets=[], licence=hub.license))}")
        except RunError as error:
            print(f"failed: {error}; the frontier is drawn: the same command pushes it", file=sys.stderr)
            return 1
    return 0


def _space(hub: HubConfig) -> Repository:
    return Repository("space", str(hub.push))


def _hub(options: Namespace) -> HubConfig | None:
    """What the options say of the Hub, checked; None where nothing is pushed.

    Raises:
        ConfigError: an option without `--push`, or a push that cannot succeed.
    """
    if options.push is None:
        given = [name for name in ("public", "branch", "license") if getattr(options, name)]
        if given:
            raise ConfigError(f"--{given[0]} goes with --push NAMESPACE/NAME")
        return None
    hub = HubConfig(options.push, not options.public, options.branch, [Part.report], options.license)
    hub.check("hub.")
    problem = check(hub, [_space(hub)])
    if problem is not None:
        print(f"warning: {problem}", file=sys.stderr)
    return hub


if __name__ == "__main__":
    remember_hashes()  # runs share their artifacts
    sys.exit(main())
