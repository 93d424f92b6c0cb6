"""The rules that update the weights, by name, by class or by a function of the user's own."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from .arguments import quote, read_number, require_kind

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
    """The optimizer of a name, of a `torch.optim` class, or of a function of the parameters.

    Raises:
        ValueError: an unknown name, a learning rate that is not positive, or one for a function that sets its own; an
            optimizer that updates something else.
        TypeError: neither a name, a class nor a function; the function returned no optimizer.
    """
    if lr is not None:
        check_lr(lr)
    if isinstance(optimizer, str):
        if optimizer not in OPTIMIZERS:
            raise ValueError(
                f"`optimizer` must be one of {', '.join(OPTIMIZERS)}, a class of torch.optim or a function of the "
                f"parameters; got {optimizer!r}. For another one pass its class, as in torch.optim.NAdam."
            )
        optimizer = OPTIMIZERS[optimizer]
    elif not (isinstance(optimizer, type) and issubclass(optimizer, Optimizer)):
        advice = "Pass 'adam', a class of torch.optim, or a function of the parameters."
        require_kind("optimizer", optimizer, Callable, "a name, a class or a function", advice=advice)
        if lr is not None:
            raise ValueError(
                f"`lr` = {lr} has no effect on an `optimizer` function, which sets its own. "
                "Leave `lr` out, or pass the optimizer's class."
            )
        return _require_ours(optimizer(model.parameters()), model)  # type: ignore[call-arg]
    try:
        return optimizer(model.parameters(), lr=default_lr if lr is None else float(lr))  # type: ignore[call-arg]
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"`optimizer` must be a class that is made of parameters and a learning rate; {optimizer.__name__} says: "
            f"{quote(error)}. Pass a function of the parameters, or 'adam'."
        ) from error


def _require_ours(built: Any, model: nn.Module) -> Optimizer:
    repair = "Write it as lambda parameters: torch.optim.SGD(parameters, lr=0.1)."
    if not isinstance(built, Optimizer):
        raise TypeError(
            f"`optimizer` must return a torch.optim.Optimizer, it returned {type(built).__name__}. {repair}"
        )
    own = {id(parameter) for parameter in model.parameters()}
    if not any(id(parameter) in own for group in built.param_groups for parameter in group["params"]):
        raise ValueError(f"`optimizer` must update the parameters that it is handed, it has others. {repair}")
    return built


def check_lr(lr: float) -> None:
    """Refuse a learning rate with which nothing can be learned.

    Raises:
        TypeError: it is no number.
        ValueError: it is not a positive one.
    """
    number = read_number("lr", lr, "a positive number", advice="The post uses 0.01.")
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"`lr` must be a positive number, got {lr}. The post uses 0.01.")
