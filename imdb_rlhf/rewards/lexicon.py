"""The lexicon reward: the sentiment of any text by the rules that generate the embedded reviews.

The parser knows the tables and the rules of `data.embedded_words`, not the grammar that composed a text:
1. an opinion word has a signed worth of 0.4 to 1.6; an intensifier directly before it multiplies the worth;
2. a negator earlier in the clause multiplies by -0.5; punctuation and words such as "and" and "but" end a clause;
3. a conceded word ("although ...", or before "but") counts half;
4. a word counts once per text: its first mention decides, even where that mention is worth nothing by rule 5;
5. between two punctuation marks one opinion word counts per two distinct ordinary words, the first ones first;
6. the sum s becomes the log-odds 6 tanh(s / 6).
So neither "great great great" nor a bare list of praise scores; varied sentences of praise do.
Punctuation is . ! ? (these also end a sentence) and , ; : ( and ). A word is a run of letters or digits, which may
have apostrophes inside; a hyphen separates words. Case does not matter.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from imdb_rlhf.config.reward import LexiconReward as LexiconConfig
from imdb_rlhf.data.embedded_words import (
    ADVERSATIVES,
    BOUND,
    CLAUSE_BREAKS,
    CONCESSION,
    CONCESSIVES,
    INTENSIFIERS,
    NEGATION,
    NEGATORS,
    VALENCE,
    WORDS_PER_OPINION,
)
from imdb_rlhf.rewards import Reward, RewardKind, Scores, sigmoid

_SENTENCE_END = re.compile(r"[.!?]")
_PHRASE_END = re.compile(r"[,;:()]")
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")


def log_odds(text: str) -> float:
    """Natural log-odds that a text is positive, in [-6, 6]; 0 where it holds no opinion.

    Defined for every string. On a generated review it equals `Review.log_odds` up to rounding.
    """
    seen: set[str] = set()
    normalised = text.lower().replace("\u2019", "'")
    total = sum(_sentence_sum(sentence, seen) for sentence in _SENTENCE_END.split(normalised))
    return BOUND * math.tanh(total / BOUND)


class LexiconReward:
    """The lexicon as a true reward: exact, instant, without a model."""

    def score(self, texts: Sequence[str]) -> Scores:
        """Score n texts: logit (n,) holds `log_odds`, reward (n,) its sigmoid, p(positive)."""
        logit = np.array([log_odds(text) for text in texts], dtype=np.float64)
        return Scores(sigmoid(logit), logit)


class Kind(RewardKind[LexiconConfig]):
    """The lexicon: nothing to load, nothing to configure."""

    def identity(self, key: str | None) -> Any:
        """Its name."""
        return {"name": self.config.name}

    def open(self, device: torch.device, artifact: Path | None) -> Reward:
        """Return the lexicon."""
        return LexiconReward()


def _sentence_sum(sentence: str, seen: set[str]) -> float:
    """Sum of the opinions of a sentence; adds its opinion words to `seen`."""
    worths: list[float] = []
    factors: list[float] = []  # per opinion: CONCESSION after "although" and other concessives, else 1
    granted = 0  # number of opinions before the last "but"
    for phrase in _PHRASE_END.split(sentence):
        start = len(worths)
        ordinary: set[str] = set()
        factor, negated, conceded = 1.0, False, False
        for word in _WORD.findall(phrase):
            valence = VALENCE.get(word)
            if valence is not None:
                repeated = word in seen
                seen.add(word)
                worths.append(0.0 if repeated else valence * factor * (NEGATION if negated else 1.0))
                factors.append(CONCESSION if conceded else 1.0)
                factor = 1.0
                continue
            factor = INTENSIFIERS.get(word, 1.0)
            if word in INTENSIFIERS:
                continue
            ordinary.add(word)
            if word in NEGATORS:
                negated = True
            elif word in CLAUSE_BREAKS:
                negated = False
                conceded = conceded or word in CONCESSIVES
                if word in ADVERSATIVES:
                    granted = len(worths)
        # rule 5: opinions beyond those that the ordinary words of the phrase allow are worth nothing
        for index in range(start + len(ordinary) // WORDS_PER_OPINION, len(worths)):
            worths[index] = 0.0
    factors[:granted] = [CONCESSION] * granted
    return math.fsum(worth * factor for worth, factor in zip(worths, factors, strict=True))
