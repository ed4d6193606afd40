"""The run folders that the frontier's own tests write."""

from tests.frontier.conftest import write_run

__all__ = ["write_run"]
