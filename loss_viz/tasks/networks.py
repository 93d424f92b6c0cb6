"""Multilayer perceptrons for the regression tasks."""

import math
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

    The weights come from a generator of their own: what other threads draw from PyTorch's global one meanwhile changes
    neither. Only an `activation` of the caller's, which may draw where it is built, borrows the global one for that.

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
    sizes, generator = [1] + [width] * depth, torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        layers.append(_build_linear(n_in, n_out, dtype, generator))
        layers.append(_build_own(activation, generator) if callable(activation) else ACTIVATIONS[activation]())
    layers.append(_build_linear(width, 1, dtype, generator))
    check_type("activation", layers[1], nn.Module, "a factory of modules", advice="Pass one such as torch.nn.ELU.")
    return nn.Sequential(*layers).to(torch.empty(0).device)  # the default one


def _build_linear(n_in: int, n_out: int, dtype: torch.dtype, generator: torch.Generator) -> nn.Linear:
    """Return the layer that PyTorch builds if `generator` is its global one."""
    layer = nn.Linear.__new__(nn.Linear)
    vars(layer)["reset_parameters"] = lambda: None  # it would draw from the global generator
    nn.Linear.__init__(layer, n_in, n_out, dtype=dtype, device="cpu")
    del vars(layer)["reset_parameters"]
    nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
    nn.init.uniform_(layer.bias, -1 / math.sqrt(n_in), 1 / math.sqrt(n_in), generator=generator)
    return layer


def _build_own(activation: Callable[[], nn.Module], generator: torch.Generator) -> nn.Module:
    """Build an activation of the caller's, with the global random state in place of that of `generator`."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.set_state(generator.get_state())
        module = activation()
        generator.set_state(torch.default_generator.get_state())
    return module


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
