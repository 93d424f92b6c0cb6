"""Levels of simple predictors against loops over the data."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from torch.nn import functional

from loss_viz import class_levels, ngram_levels


def conditional_entropy(sequences, n):
    """The mean of -ln p of each token, p counted in a dictionary of contexts."""
    grams = [tuple(sequence[i - n + 1 : i + 1]) for sequence in sequences for i in range(n - 1, len(sequence))]
    follows = defaultdict(Counter)
    for *context, token in grams:
        follows[tuple(context)][token] += 1
    losses = [-math.log(follows[gram[:-1]][gram[-1]] / sum(follows[gram[:-1]].values())) for gram in grams]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("shape", [(200,), (30, 7)])
def test_ngrams_against_a_dictionary(shape):
    random = np.random.default_rng(0)
    tokens = np.minimum(random.geometric(0.4, shape), 6) + 10
    levels = ngram_levels(tokens, max_n=4)
    sequences = np.atleast_2d(tokens).tolist()
    assert list(levels) == ["uniform guess", "token frequencies", "bigrams", "trigrams", "4-grams"]
    expected = [math.log(6), *(conditional_entropy(sequences, n) for n in range(1, 5))]
    np.testing.assert_allclose(list(levels.values()), expected, rtol=1e-12)
    assert levels["trigrams"] < levels["bigrams"] < levels["token frequencies"] < levels["uniform guess"]


def test_class_levels_are_the_loss_of_the_best_constant_logits():
    labels = torch.tensor([3, 1, 1, 0, 1, 3, 1])
    logits = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-12)

    def closure():
        optimizer.zero_grad()
        loss = functional.cross_entropy(logits.expand(7, 4), labels)
        loss.backward()
        return loss

    optimizer.step(closure)
    levels = class_levels(labels)
    assert levels["class frequencies"] == pytest.approx(closure().item(), rel=1e-6)
    assert levels["uniform guess"] == pytest.approx(math.log(3))
    assert class_levels(labels.reshape(7, 1)) == levels


def test_what_is_not_a_sequence_of_numbers_is_refused():
    with pytest.raises(TypeError, match=r"`labels` must be whole numbers, got float64\. Pass class or token numbers"):
        class_levels([0.1, 0.9])
    with pytest.raises(ValueError, match="`tokens` must hold at least one number"):
        ngram_levels([])
    with pytest.raises(ValueError, match=r"sequences of at least 3 tokens; got \(5, 2\)"):
        ngram_levels(np.zeros((5, 2), dtype=int))
    with pytest.raises(ValueError, match="`max_n` must be a whole number from 1 to 20"):
        ngram_levels([1, 2], max_n=0)
