"""The whole experiment of one configuration, from reviews to a finished run folder."""

from imdb_rlhf.config.run import Run
from imdb_rlhf.pipeline import Pipeline
from imdb_rlhf.runs.folder import RunFolder
from imdb_rlhf.tracking.console import Console
from imdb_rlhf.training.runtime import Runtime


def run_experiment(run: Run, config_yaml: str, overrides: list[str]) -> None:
    """Do what a configuration says.

    Args:
        run: the typed and checked configuration.
        config_yaml: the same as text, kept in the run's folder.
        overrides: what the command line changed, kept beside it.

    Raises:
        RunError: something that a user can mend.
        Stopped: a signal came and a checkpoint is written.
    """
    runtime = Runtime(run.trainer)
    console = Console(quiet=runtime.rank != 0)
    pipeline = Pipeline(run, runtime, console)
    folder = RunFolder(pipeline, config_yaml, overrides)
    if run.plan:
        pipeline.plan()
        folder.plan()
        return
    if not folder.finished():
        pipeline.fetch()  # before anything is written, so that a refusal leaves nothing behind
    with folder.held():
        if folder.finished():
            folder.show_again()
            return
        folder.begin()
        pipeline.build()
        folder.train_and_evaluate()
