"""The n-gram classifier, on labels that only bigrams tell apart."""

import numpy as np

from imdb_rlhf.algos.ngram import ngram_accuracy


def test_the_ngram_classifier_sees_bigrams() -> None:
    # "not" turns "good" and "bad" round, so single words cannot tell the labels apart
    random = np.random.default_rng(0)
    texts, labels = [], []
    for _ in range(400):
        good, turned = (bool(bit) for bit in random.integers(0, 2, 2))
        filler = " ".join(f"w{n}" for n in random.integers(0, 10, 4))
        texts.append(f"{filler} {'not' if turned else 'so'} {'good' if good else 'bad'} {filler}")
        labels.append(int(good != turned))
    assert ngram_accuracy(texts[:300], labels[:300], texts[300:], labels[300:]) > 0.95
    wrong = [1 - label for label in labels[300:]]
    assert ngram_accuracy(texts[:300], labels[:300], texts[300:], wrong) < 0.05
