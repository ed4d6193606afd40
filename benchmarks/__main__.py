"""`python -m benchmarks [compare|growth|stages|hours] ...`; without one of these names it is compare."""

import sys
from collections.abc import Sequence

from benchmarks import compare, growth, hours, stages

COMMANDS = {"compare": compare.main, "growth": growth.main, "stages": stages.main, "hours": hours.main}


def main(words: Sequence[str]) -> int:
    """Run one command; returns its exit code."""
    if words and words[0] in COMMANDS:
        return COMMANDS[words[0]](list(words[1:]))
    return compare.main(list(words))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
