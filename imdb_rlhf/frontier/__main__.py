"""`python -m imdb_rlhf.frontier RUN_OR_SWEEP_DIR... [--to FOLDER]`: draw the frontier of finished runs."""

import sys
from collections.abc import Sequence
from pathlib import Path

from imdb_rlhf.arguments import OneLineParser, place
from imdb_rlhf.artifacts.files import hash_of, remember_hashes
from imdb_rlhf.errors import ConfigError, RunError
from imdb_rlhf.frontier import files
from imdb_rlhf.frontier.draw import describe, draw
from imdb_rlhf.frontier.finished import find


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
    try:
        options = parser.parse_args(arguments)
        runs = find(options.places)
        folder = options.to or _default_folder(options.places, runs)
        frontier = draw(runs, folder)
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
    for name in (files.REPORT, files.SVG, files.PDF, files.PNG, files.JSON, files.CSV):
        print(f"  {folder / name}")
    return 0


if __name__ == "__main__":
    remember_hashes()  # runs share their artifacts
    sys.exit(main())
