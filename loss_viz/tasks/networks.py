"""Multilayer perceptrons for the regression tasks."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from loss_viz._validation import argument_error, check_choice, check_int, check_type

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "silu": nn.SiLU,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
}

MAX_WEIGHTS = 2**26


def build_mlp(
    *, width: int, depth: int, activation: str | Callable[[], nn.Module], dtype: torch.dtype, seed: int
) -> nn.Sequential:
    """Build a 1 - width - ... - width - 1 perceptron with `depth` hidden layers and PyTorch's default initialization.

    PyTorch's global random state is neither used nor changed.

    Raises:
        TypeError: if `activation` does not return modules.
        ValueError: if `width`, `depth` or `seed` is out of range, the network has more than `MAX_WEIGHTS` weights, or
            the activation is unknown.
    """
    width, depth = _check_size(width, depth)
    seed = check_int("seed", seed, 0, 2**63 - 1, advice="Use 0.")
    if not callable(activation):
        advice = "Other activations are passed as a module factory such as torch.nn.ELU."
        check_choice("activation", activation, ACTIVATIONS, advice=advice)
        activation = ACTIVATIONS[activation]
    sizes = [1] + [width] * depth
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise(sizes):
            layers += [nn.Linear(n_in, n_out, dtype=dtype), activation()]
        layers.append(nn.Linear(width, 1, dtype=dtype))
        check_type("activation", layers[1], nn.Module, "a factory of modules", advice="Pass one such as torch.nn.ELU.")
        return nn.Sequential(*layers)


def _check_size(width: Any, depth: Any) -> tuple[int, int]:
    advice = "The post's network has width 8, depth 1."
    width, depth = check_int("width", width, 1, advice=advice), check_int("depth", depth, 1, advice=advice)
    n_weights = 3 * width + 1 + (depth - 1) * (width + 1) * width
    if n_weights > MAX_WEIGHTS:
        raise argument_error(
            "width",
            f"`width` and `depth` must make a network of at most {MAX_WEIGHTS:,} weights, {width:,} and {depth:,} make "
            f"one of {n_weights:,}. {advice}",
        )
    return width, depth
