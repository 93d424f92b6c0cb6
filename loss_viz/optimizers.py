"""The rules that update the weights, by name, by class or by a function of the user's own."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.optim import Optimizer

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
        ValueError: an unknown name, a learning rate that is not positive, or one for a function that sets its own.
        TypeError: the function returned no optimizer.
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
    elif not isinstance(optimizer, type):
        if lr is not None:
            raise ValueError(
                f"`lr` = {lr} has no effect on an `optimizer` function, which sets its own. "
                "Leave `lr` out, or pass the optimizer's class."
            )
        built = optimizer(model.parameters())
        if not isinstance(built, Optimizer):
            raise TypeError(
                f"`optimizer` must return a torch.optim.Optimizer, it returned {type(built).__name__}. "
                "Write it as lambda parameters: torch.optim.SGD(parameters, lr=0.1)."
            )
        return built
    return optimizer(model.parameters(), lr=default_lr if lr is None else lr)


def check_lr(lr: float) -> None:
    """Refuse a learning rate with which nothing can be learned.

    Raises:
        ValueError: it is not a positive number.
    """
    if not (math.isfinite(lr) and lr > 0):
        raise ValueError(f"`lr` must be a positive number, got {lr}. The post uses 0.01.")
