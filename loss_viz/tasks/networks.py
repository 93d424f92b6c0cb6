"""Multilayer perceptrons for the regression tasks, and optimizers by name."""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from loss_viz._validation import argument_error, check_choice, check_float, check_int, check_type, first_line

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


OptimizerFactory = Callable[..., Optimizer]
OPTIMIZERS: dict[str, OptimizerFactory] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": partial(torch.optim.SGD, momentum=0.9),
    "rmsprop": torch.optim.RMSprop,
}


def build_optimizer(
    optimizer: str | OptimizerFactory, model: nn.Module, *, lr: float | None, default_lr: float
) -> Optimizer:
    """Build an optimizer of the parameters of `model` from a name, a class of `torch.optim`, or a function.

    Raises:
        TypeError: if `optimizer` is neither a name, a class nor a function, or the function returns something else.
        ValueError: if the name is unknown, `lr` is not positive or is given with a function, which sets its own, or
            the optimizer does not update the parameters of `model`.
    """
    if lr is not None:
        check_lr(lr)
    if isinstance(optimizer, str):
        advice = "Others are passed as a class such as torch.optim.NAdam, or as a function of the parameters."
        check_choice("optimizer", optimizer, OPTIMIZERS, advice=advice)
        optimizer = OPTIMIZERS[optimizer]
    elif not (isinstance(optimizer, type) and issubclass(optimizer, Optimizer)):
        advice = "Pass 'adam', a class of torch.optim, or a function of the parameters."
        check_type("optimizer", optimizer, Callable, "a name, a class or a function", advice=advice)
        if lr is not None:
            raise argument_error(
                "lr",
                f"`lr` = {lr} has no effect on an `optimizer` function, which sets its own. "
                "Leave `lr` out, or pass the optimizer's class.",
            )
        return _check_optimizer(optimizer(model.parameters()), model)  # type: ignore[call-arg]
    try:
        return optimizer(model.parameters(), lr=default_lr if lr is None else float(lr))  # type: ignore[call-arg]
    except (TypeError, ValueError, RuntimeError) as error:
        raise argument_error(
            "optimizer",
            f"`optimizer` must be a class that takes parameters and a learning rate; {optimizer.__name__} fails: "
            f"{first_line(error)}. Pass a function of the parameters, or 'adam'.",
        ) from error


def _check_optimizer(built: Any, model: nn.Module) -> Optimizer:
    advice = "Write it as lambda parameters: torch.optim.SGD(parameters, lr=0.1)."
    if not isinstance(built, Optimizer):
        raise TypeError(
            f"`optimizer` must return a torch.optim.Optimizer, it returned {type(built).__name__}. {advice}"
        )
    own = {id(parameter) for parameter in model.parameters()}
    if not any(id(parameter) in own for group in built.param_groups for parameter in group["params"]):
        raise argument_error(
            "optimizer", f"`optimizer` must update the parameters that it is given, it updates others. {advice}"
        )
    return built


def check_lr(lr: float) -> None:
    """Raise `TypeError` unless `lr` is a number, `ValueError` unless it is finite and positive."""
    number = check_float("lr", lr, "a positive number", advice="The post uses 0.01.")
    if not (math.isfinite(number) and number > 0):
        raise argument_error("lr", f"`lr` must be a positive number, got {lr}. The post uses 0.01.")
