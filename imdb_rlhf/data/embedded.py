"""Embedded reviews: openings of film reviews from a small grammar, with their sentiment by construction.

They replace IMDb where no network is wanted. A review has a hidden attitude, from which each sentence draws its
polarity, so that praise and blame mix. The first words are neutral: a prompt of 2 to 8 tokens leaves the sentiment
open. The log-odds are summed from the grammar's choices, by the rules in `embedded_words`, never read off the text.
"""

import math
import random
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TypeVar

import pandas as pd

from imdb_rlhf.artifacts.files import hash_of
from imdb_rlhf.config.data import EmbeddedData
from imdb_rlhf.data import embedded_words as words
from imdb_rlhf.data.reviews import PROMPT_ROLES, DatasetKind, Reviews

# Composition. These numbers set the calibration of the reviews: mean and spread of p(positive), and length.
_ATTITUDES = (0.1, 0.5, 0.9)  # probability that a sentence praises: a pan, a mixed review, a rave
_OPINION_OPENER = 0.4  # probability that the first sentence already holds an opinion
_FILLER = 0.2  # probability that a later sentence is neutral
_LEAD = 0.15  # probability that a sentence with an opinion starts with a phrase such as "for me"
_INTENSIFIED = 0.25  # probability that an opinion word that can take an intensifier has one
_TARGET_WORDS = (14, 46)  # a review ends with the sentence that reaches a length drawn from here
_MIN_WORDS, _MAX_WORDS = 15, 55
_MIN_SENTENCES, _MAX_SENTENCES = 2, 6

_SAID_AN = re.compile(r"[aeiou](?!ne\b)|honest|hour")
_SLOT = re.compile(r"\{(a:)?([~!]*)(\w+)\}")


@dataclass(frozen=True)
class Review:
    """One generated review.

    Attributes:
        text: 15 to 55 words in 2 to 6 sentences, plain ASCII.
        log_odds: natural log-odds that the review is positive, in (-6, 6), never 0.
        label: 1 where log_odds > 0, else 0.
    """

    text: str
    log_odds: float
    label: int


@dataclass(frozen=True, slots=True)
class _Opinion:
    word: str
    valence: float
    intensifiers: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _OpinionSlot:
    by_polarity: dict[int, tuple[_Opinion, ...]]  # +1: words for a sentence that praises; -1: for one that blames
    weight: float
    article: bool


@dataclass(frozen=True, slots=True, eq=False)
class _NeutralSlot:
    phrases: tuple[str, ...]
    article: bool
    repeatable: bool


_T = TypeVar("_T")
_Shape = tuple[str | _OpinionSlot | _NeutralSlot, ...]


def generate(count: int, seed: int) -> list[Review]:
    """Generate distinct reviews, a pure function of its arguments.

    Args:
        count: number of reviews; a smaller count gives a prefix of the same list.
        seed: any integer; every seed has its own stream.

    Returns:
        `count` reviews, no two with the same text.

    Raises:
        ValueError: if count is negative.
    """
    if count < 0:
        raise ValueError(f"count must be at least 0, got {count}")
    uniform = random.Random(f"embedded reviews {seed}").random  # a string, since Random(-1) is Random(1)
    reviews: dict[str, Review] = {}  # by text, so that one drawn twice counts once
    while len(reviews) < count:
        text, total = _compose(uniform)
        log_odds = words.BOUND * math.tanh(total / words.BOUND)
        if abs(log_odds) > 1e-9 and _MIN_WORDS <= text.count(" ") + 1 <= _MAX_WORDS:
            reviews[text] = Review(text, log_odds, int(log_odds > 0))
    return list(reviews.values())


def _compose(uniform: Callable[[], float]) -> tuple[str, float]:
    """Write one review; returns its text and the sum of its opinions."""
    attitude = _ATTITUDES[int(uniform() * len(_ATTITUDES))]
    low, high = _TARGET_WORDS
    target = low + uniform() * (high - low)
    used: set[object] = set()  # words, phrases and shapes; only "film" and its synonyms may come twice in a review
    sentences: list[str] = []
    length, total = 0, 0.0
    while len(sentences) < _MIN_SENTENCES or (length < target and len(sentences) < _MAX_SENTENCES):
        if not sentences:
            shapes = _OPINION_OPENERS if uniform() < _OPINION_OPENER else _NEUTRAL_OPENERS
        elif length > target - 10 or len(sentences) == _MAX_SENTENCES - 1:
            shapes = _VERDICTS if uniform() < 0.5 else _BODIES
        else:
            shapes = _FILLERS if uniform() < _FILLER else _BODIES
        sentence, worth = _fill(_fresh(shapes, used, uniform), 1 if uniform() < attitude else -1, used, uniform)
        if shapes is _BODIES and uniform() < _LEAD:
            sentence = f"{_fresh(words.NEUTRAL['lead'], used, uniform)}, {sentence}"
        length += sentence.count(" ") + 1
        total += worth
        sentences.append(sentence[0].upper() + sentence[1:])
    return ". ".join(sentences) + ".", total


def _fill(shape: _Shape, polarity: int, used: set[object], uniform: Callable[[], float]) -> tuple[str, float]:
    """Fill the slots of a sentence; returns the text, without its full stop, and the sum of its opinions."""
    total = 0.0
    pieces: list[str] = []
    for part in shape:
        if isinstance(part, str):
            pieces.append(part)
            continue
        if isinstance(part, _NeutralSlot):
            phrase = _fresh(part.phrases, set() if part.repeatable else used, uniform)
        else:
            opinion = _fresh(part.by_polarity[polarity], used, uniform)
            phrase, worth = opinion.word, opinion.valence * part.weight
            if opinion.intensifiers and uniform() < _INTENSIFIED:
                intensifier = opinion.intensifiers[int(uniform() * len(opinion.intensifiers))]
                phrase, worth = f"{intensifier} {phrase}", worth * words.INTENSIFIERS[intensifier]
            total += worth
        if part.article:
            phrase = f"{'an' if _SAID_AN.match(phrase) else 'a'} {phrase}"
        pieces.append(phrase)
    return "".join(pieces), total


def _fresh(options: tuple[_T, ...], used: set[object], uniform: Callable[[], float]) -> _T:
    """Draw an option that the review has not used, and mark it used."""
    while True:
        option = options[int(uniform() * len(options))]
        key: object = option.word if isinstance(option, _Opinion) else option
        if key not in used:
            used.add(key)
            return option


def _opinions(kind: str, polarity: int, negated: bool) -> tuple[_Opinion, ...]:
    """The opinion words of a part of speech and polarity; a negated slot takes none of the highest grade."""
    opinions: list[_Opinion] = []
    for grade, row in enumerate((words.POSITIVE if polarity > 0 else words.NEGATIVE)[kind]):
        if negated and grade == 3:
            continue
        if kind == "adj":
            pool = words.NEGATED_INTENSIFIERS if negated else words.INTENSIFIERS_BY_GRADE[polarity][grade]
        else:
            pool = "" if negated else words.INTENSIFIERS_BY_KIND.get(kind, "")
        opinions += [_Opinion(word, polarity * words.STRENGTHS[grade], tuple(pool.split())) for word in row.split()]
    return tuple(opinions)


def _slot(article: bool, marks: str, name: str) -> _OpinionSlot | _NeutralSlot:
    """A slot as the templates write it: `{a:~!name}`."""
    if name in words.NEUTRAL:
        return _NeutralSlot(words.NEUTRAL[name], article, name == "film")
    negated, conceded = "!" in marks, "~" in marks
    turned = -1 if negated != conceded else 1  # each mark asks for the opposite polarity; two of them cancel
    weight = (words.NEGATION if negated else 1.0) * (words.CONCESSION if conceded else 1.0)
    by_polarity = {polarity: _opinions(name, polarity * turned, negated) for polarity in (1, -1)}
    return _OpinionSlot(by_polarity, weight, article)


def _compile(templates: tuple[str, ...]) -> tuple[_Shape, ...]:
    """Sentence templates as sequences of fixed text and slots."""
    shapes = []
    for template in templates:
        parts: list[str | _OpinionSlot | _NeutralSlot] = []
        end = 0
        for match in _SLOT.finditer(template):
            parts += [template[end : match.start()], _slot(match[1] is not None, match[2], match[3])]
            end = match.end()
        shapes.append(tuple(part for part in (*parts, template[end:]) if part != ""))
    return tuple(shapes)


_NEUTRAL_OPENERS = _compile(words.NEUTRAL_OPENERS)
_OPINION_OPENERS = _compile(words.OPINION_OPENERS)
_FILLERS = _compile(words.FILLERS)
_BODIES = _compile(words.BODIES)
_VERDICTS = _compile(words.VERDICTS)


class Kind(DatasetKind[EmbeddedData]):
    """Generated reviews: no network, no files."""

    labelled = True
    label_keys = ("labelled_reviews",)
    labelled_bytes = 5_000_000

    def content(self) -> str:
        """A hash of the first 50 reviews: it changes when the generator does."""
        return hash_of([asdict(review) for review in generate(50, self.config.seed)])

    def divide(self, held_out: int) -> Reviews:
        """Generate as many reviews as are needed, and hand them out in order."""
        config = self.config
        sizes = {
            "test": config.prompts.test,
            "validation": config.prompts.validation,
            "train": config.prompts.train,
            "sft": config.sft_reviews,
            "held_out": held_out,
            "labelled": config.labelled_reviews if held_out else 0,
        }
        generated = iter(generate(sum(sizes.values()), config.seed))
        taken = {role: [next(generated) for _ in range(size)] for role, size in sizes.items()}
        frames = {
            role: pd.DataFrame({"text": [r.text for r in taken[role]], "label": [r.label for r in taken[role]]})
            for role in ("labelled", "held_out")
        }
        texts = {role: [r.text for r in taken[role]] for role in ("sft", *PROMPT_ROLES)}
        counts = {role: len(reviews) for role, reviews in taken.items()}
        return Reviews(texts, frames["labelled"], frames["held_out"], {"reviews": counts})
