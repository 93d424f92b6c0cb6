"""The small networks that learn the tasks, and the optimizers that train them."""

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from loss_viz._validation import check_float, check_int, check_type, first_line

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
    """A 1 - width - ... - width - 1 perceptron with `depth` hidden layers, PyTorch's own initialization.

    The seed reaches this network only: the global random state of PyTorch is left as it was.

    Raises:
        TypeError: an activation that is none.
        ValueError: `width` or `depth` below 1, more weights than can be recorded, a seed below 0, or an unknown
            activation.
    """
    width, depth = _read_size(width, depth)
    seed = check_int("seed", seed, 0, 2**63 - 1, advice="Use 0.")
    activation = _find_activation(activation)
    sizes = [1] + [width] * depth
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise(sizes):
            layers += [nn.Linear(n_in, n_out, dtype=dtype), activation()]
        layers.append(nn.Linear(width, 1, dtype=dtype))
        check_type("activation", layers[1], nn.Module, "a factory of modules", advice="Pass one such as torch.nn.ELU.")
        return nn.Sequential(*layers)


def _read_size(width: Any, depth: Any) -> tuple[int, int]:
    advice = "The post's net has width 8, depth 1."
    width, depth = check_int("width", width, 1, advice=advice), check_int("depth", depth, 1, advice=advice)
    n_weights = 3 * width + 1 + (depth - 1) * (width + 1) * width
    if n_weights > MAX_WEIGHTS:
        raise ValueError(
            f"`width` and `depth` must make a net of at most {MAX_WEIGHTS:,} weights, {width:,} and {depth:,} make one "
            f"of {n_weights:,}. {advice}"
        )
    return width, depth


def _find_activation(activation: Any) -> Callable[[], nn.Module]:
    if callable(activation):
        return activation
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise ValueError(
            f"`activation` must be one of {', '.join(ACTIVATIONS)} or a module factory such as "
            f"torch.nn.ELU; got {activation!r}. The post's net uses 'silu'."
        )
    return ACTIVATIONS[activation]


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
        check_type("optimizer", optimizer, Callable, "a name, a class or a function", advice=advice)
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
            f"{first_line(error)}. Pass a function of the parameters, or 'adam'."
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
    number = check_float("lr", lr, "a positive number", advice="The post uses 0.01.")
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"`lr` must be a positive number, got {lr}. The post uses 0.01.")
