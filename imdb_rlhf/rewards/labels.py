"""Which of a classifier's labels is the positive one."""

import re

from imdb_rlhf.errors import RunError

# A label that is the word itself, in any case, beside a number or LABEL_: "POSITIVE", "pos", "LABEL_1: positive",
# "1 (positive)". Any other with such a word in it may mean something else: "barely positive", "pos_tag".
POSITIVE = re.compile(r"(label[ _-]?)?([0-9]+)?[ :=_-]*\(?(positive|pos)\)?")


def positive_index(id2label: dict[int, str], wanted: str | None, key: str) -> int:
    """Which of two labels is the positive one.

    Args:
        id2label: the model's label names.
        wanted: the name, or None to find the one that is the word "positive" or "pos" (`POSITIVE`), which the other
            must not hold.
        key: config key that messages name.

    Raises:
        RunError: not two labels, or none or both of them fit.
    """
    names = {int(index): str(name) for index, name in id2label.items()}
    if len(names) != 2:
        raise RunError(f"{key} has {len(names)} labels ({', '.join(names.values())}); give a two-label classifier")
    if wanted is not None:
        matches = [index for index, name in names.items() if name == wanted]
    else:
        matches = [index for index, name in names.items() if POSITIVE.fullmatch(name.strip().lower())]
        others = [set(re.findall("[a-z]+", name.lower())) for index, name in names.items() if index not in matches]
        matches = [] if any(words & {"positive", "pos"} for words in others) else matches
    if len(matches) != 1:
        raise RunError(
            f"{key}: which of {', '.join(names.values())} is positive? set reward.positive_label to its name"
        )
    return matches[0]
