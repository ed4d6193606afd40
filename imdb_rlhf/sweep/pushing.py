"""The push of a sweep's results to the Hub, when all of its jobs are done."""

from collections.abc import Sequence
from pathlib import Path

from imdb_rlhf.errors import RunError
from imdb_rlhf.publish.results import Results
from imdb_rlhf.sweep.records import Record
from imdb_rlhf.tracking.sweep_console import SweepConsole


def push(results: Results, all_records: Sequence[Record], drawn: Sequence[Path], console: SweepConsole) -> int:
    """Push models, preferences and frontier; one with a job or a drawing that failed is not pushed.

    Args:
        results: of the sweep, checked before its first job.
        all_records: of its jobs.
        drawn: the frontier's folders, one per world; those of several worlds are named by them.
        console: shows what was pushed.

    Returns:
        The exit code: 0, or 1 where something is not on the Hub.
    """
    missing = [record.label for record in all_records if record.state != "done"]
    if missing or (results.report is not None and not drawn):
        what = f"{len(missing)} of {len(all_records)} jobs are not done" if missing else "the frontier was not drawn"
        console.warn(f"nothing was pushed to the Hub: {what}; the same command goes on, and pushes")
        return 1
    frontiers = {folder.name if len(drawn) > 1 else "": folder for folder in drawn}
    try:
        results.push({record.name: record.path for record in all_records}, frontiers, console.note)
    except RunError as error:
        console.warn(f"not everything was pushed to the Hub: {error}")
        return 1
    return 0
