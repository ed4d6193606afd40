"""The baseline beside the two-label reward: a linear classifier of n-grams, trained on the same texts."""

from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression


def ngram_accuracy(
    texts: Sequence[str], labels: Sequence[int], held_out: Sequence[str], held_out_labels: Sequence[int]
) -> float:
    """Held-out accuracy of a logistic regression on uni- and bigrams weighted by naive-Bayes log-count ratios.

    The features are those of Wang and Manning (2012), "Baselines and Bigrams", section 2: the presence of an n-gram
    times the logarithm of its smoothed share among positive texts over its share among negative ones.

    Args:
        texts: texts to train on.
        labels: 1 for positive, 0 for negative, one per text; both must occur.
        held_out: texts to test on.
        held_out_labels: one per held-out text.
    """
    vectorizer = CountVectorizer(ngram_range=(1, 2), binary=True, min_df=2)
    features, truth = vectorizer.fit_transform(texts), np.asarray(labels)
    counts = [np.asarray(features[truth == label].sum(0)).ravel() + 1.0 for label in (1, 0)]
    ratio = np.log(counts[0] / counts[0].sum()) - np.log(counts[1] / counts[1].sum())
    model = LogisticRegression(C=0.1, max_iter=300).fit(features.multiply(ratio).tocsr(), truth)
    return float(model.score(vectorizer.transform(held_out).multiply(ratio).tocsr(), np.asarray(held_out_labels)))
