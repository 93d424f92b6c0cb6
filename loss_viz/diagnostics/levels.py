"""Losses of simple predictors, with which plateaus of classifiers and token models can be compared."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.lib.stride_tricks import sliding_window_view

from loss_viz._validation import argument_error, argument_type_error, check_int

MAX_N = 20
GRAMS = {2: "bigrams", 3: "trigrams"}


def class_levels(labels: Any) -> dict[str, float]:
    """Return the cross-entropies of two predictors that ignore the input, by name, for `find_plateaus(levels=...)`.

    A uniform guess among the C classes that occur has the loss ln C; predicting their frequencies p has the entropy
    -Σ p ln p. Both are in nats, as PyTorch's `cross_entropy` is.

    Args:
        labels: class of each example, as whole numbers of any shape; without those that the loss ignores.

    Raises:
        TypeError: if `labels` are not whole numbers.
        ValueError: if there are none.

    Example:
        >>> {name: round(loss, 3) for name, loss in class_levels([0, 0, 0, 1]).items()}
        {'uniform guess': 0.693, 'class frequencies': 0.562}
    """
    classes = _read("labels", labels).ravel()
    return {"uniform guess": _log_kinds(classes), "class frequencies": _entropy(classes[:, None])}


def ngram_levels(tokens: Any, max_n: int = 3) -> dict[str, float]:
    """Return the cross-entropies of n-gram predictors of the next token, by name, for `find_plateaus(levels=...)`.

    The n-gram predictor knows how often each token follows the n - 1 tokens before it; its loss is the conditional
    entropy -mean ln p(x[t] | x[t-n+1], ..., x[t-1]) in nats, over all positions with n - 1 tokens before them.
    For transformers that learn n-grams in context, such predictors are nearly stationary points of the loss (Varre,
    Yüce & Flammarion, "Learning in-context n-grams with transformers", ICML 2025).

    The frequencies are those of `tokens`. Where most sequences of n tokens occur once, the loss comes out too small:
    it is that of a table that has memorized them.

    Args:
        tokens: `(n_tokens,)`, or `(n_sequences, length)` with n-grams inside each sequence only; whole numbers.
        max_n: largest n, from 1 to 20.

    Raises:
        TypeError: if `tokens` are not whole numbers.
        ValueError: if they have more than two axes or are shorter than `max_n`, or `max_n` is out of range.

    Example:
        >>> {name: round(loss, 3) for name, loss in ngram_levels([0, 1, 0, 1, 0, 1, 1, 0], max_n=2).items()}
        {'uniform guess': 0.693, 'token frequencies': 0.693, 'bigrams': 0.321}
    """
    sequences = np.atleast_2d(_read("tokens", tokens))
    max_n = check_int("max_n", max_n, 1, MAX_N, advice="Use 3, for trigrams.")
    if sequences.ndim > 2 or sequences.shape[1] < max_n:
        raise argument_error(
            "tokens",
            f"`tokens` must have shape (n_tokens,) or (n_sequences, length), with sequences of at least {max_n} "
            f"tokens; got {np.shape(tokens)}. Pass other tokens, or a smaller `max_n`.",
        )
    levels = {"uniform guess": _log_kinds(sequences), "token frequencies": _entropy(sequences.reshape(-1, 1))}
    for n in range(2, max_n + 1):
        levels[GRAMS.get(n, f"{n}-grams")] = _entropy(sliding_window_view(sequences, n, axis=1).reshape(-1, n))
    return levels


def _read(name: str, values: Any) -> Int[np.ndarray, "..."]:
    advice = "Pass class or token numbers, not probabilities."
    array = np.asarray(values.detach().cpu() if isinstance(values, torch.Tensor) else values)
    if array.size == 0:
        raise argument_error(name, f"`{name}` must hold at least one number, got none. {advice}")
    if array.dtype.kind not in "iu":
        raise argument_type_error(name, f"`{name}` must be whole numbers, got {array.dtype}. {advice}")
    return array


def _log_kinds(values: Int[np.ndarray, "..."]) -> float:
    return float(np.log(len(np.unique(values))))


def _entropy(grams: Int[np.ndarray, "n_grams n"]) -> float:
    """Return the entropy in nats of the last column, given those before it."""
    return float(np.mean(np.log(_count(grams[:, :-1])) - np.log(_count(grams))))


def _count(grams: Int[np.ndarray, "n_grams n"]) -> Float[np.ndarray, " n_grams"]:
    """Return how often each row occurs; without columns all rows are equal."""
    if not grams.shape[1]:
        return np.full(len(grams), float(len(grams)))
    _, which, counts = np.unique(grams, axis=0, return_inverse=True, return_counts=True)
    return counts[which.ravel()].astype(float)
