"""The pantry: one-dimensional regression tasks and the small networks that learn them."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loss_viz._validation import check_int, check_type, first_line
from loss_viz.tasks.formula import parse_formula

DTYPES = (torch.float32, torch.float64)
MAX_POINTS = 2**22
Target = str | Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Task:
    """Regression of one function on equispaced points of [-1, 1].

    Attributes:
        name: the target as it was typed, or the name of the callable.
        x: inputs `(n_points, 1)`.
        y: targets `(n_points, 1)`.

    Raises:
        TypeError: a name that is no text, inputs or targets that are no tensors.
        ValueError: inputs and targets that do not belong together, or are not finite.

    Example:
        >>> task = build_task("x^2", n_points=3)
        >>> task.loss(nn.Identity())
        tensor(1.3333)
    """

    name: str
    x: Float[Tensor, "n_points 1"]
    y: Float[Tensor, "n_points 1"]

    def __post_init__(self) -> None:
        check_type("name", self.name, str, "a text", advice="Call the task as a picture shall.")
        for name in "xy":
            check_type(name, getattr(self, name), Tensor, "a tensor", advice="Make it with torch.as_tensor.")
        shape, dtype = tuple(self.x.shape), self.x.dtype
        if not self.x.numel() or not shape == tuple(self.y.shape) == (self.x.numel(), 1) or self.y.dtype != dtype:
            raise ValueError(
                f"A task needs `x` and `y` of shape (n_points, 1) and of one precision, got {shape} in {dtype} and "
                f"{tuple(self.y.shape)} in {self.y.dtype}. Add an axis with x[:, None]."
            )
        if not dtype.is_floating_point or not (self.x.isfinite().all() and self.y.isfinite().all()):
            raise ValueError(
                "A task needs `x` and `y` of finite real numbers. Leave out the points where they are not."
            )

    def loss(self, model: nn.Module) -> Tensor:
        """Mean squared error of `model` on all points, a scalar."""
        return nn.functional.mse_loss(model(self.x), self.y)


def build_task(target: Target, *, n_points: int = 100, dtype: torch.dtype = torch.float32) -> Task:
    """Tabulate `target` on `n_points` equispaced points of [-1, 1], ends included.

    Args:
        target: a formula in x (`loss_viz.expression`) or a function from x `(n_points,)` to as many values.
        n_points: at least 2.
        dtype: `torch.float32` or `torch.float64`.

    Raises:
        ValueError: no formula, a wrong number of values, or values that are not finite; another precision.
        TypeError: neither a text nor a function, or one that returns no real numbers.

    Example:
        >>> build_task("x^2", n_points=3).y.ravel()
        tensor([1., 0., 1.])
    """
    n_points = check_int("n_points", n_points, 2, MAX_POINTS, advice="Use 100, as the post does.")
    if not isinstance(dtype, torch.dtype) or dtype not in DTYPES:
        raise ValueError(f"`dtype` must be torch.float32 or torch.float64, got {dtype!r}. Leave it out for the first.")
    # The grid is laid in float64 so that both precisions learn the same function.
    x = torch.linspace(-1, 1, n_points, dtype=torch.float64).to(dtype)
    if isinstance(target, str):
        name, function = target, parse_formula(target)
    elif callable(target):
        name, function = getattr(target, "__name__", type(target).__name__), target
    else:
        raise TypeError(
            f'`target` must be a formula such as "x^3" or a function of a tensor, got {type(target).__name__}. '
            "Pass one of the two."
        )
    y = _tabulate(name, function, x)
    if y.shape != x.shape:
        raise ValueError(
            f"The target {name!r} must give one value for each of the {n_points} points; "
            f"it gave shape {tuple(y.shape)}. Return a tensor shaped as its argument."
        )
    if not y.isfinite().all():
        bad = int((~y.isfinite()).nonzero()[0])
        raise ValueError(
            f"The target {name!r} must be finite on [-1, 1]; it is {float(y[bad])} at x = {float(x[bad]):.4g}. "
            "Choose a formula that is defined there, for example sqrt(abs(x)) in place of sqrt(x)."
        )
    return Task(name, x[:, None], y[:, None])


def _tabulate(name: str, function: Callable[[Tensor], Any], x: Tensor) -> Tensor:
    """The values of a target at a copy of the points, which is its own to write to."""
    try:
        y = torch.as_tensor(function(x.clone()))
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"The target {name!r} must be a function from a tensor of shape {tuple(x.shape)} to as many numbers; "
            f"{type(error).__name__}: {first_line(error)}. Write it with operations on tensors, as "
            "in lambda x: torch.sin(3 * x)."
        ) from error
    if y.is_complex():
        raise TypeError(f"The target {name!r} must give real numbers, it gave {y.dtype}. Take the real part.")
    return y.detach().to(x)


def check_same_loss(model: nn.Module, task: Task) -> None:
    """Refuse a net whose loss is not the same in training, as it is recorded, and in evaluation, as it is drawn.

    Raises:
        ValueError: it is another one, or the layers do not fit together.
    """
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            losses = [task.loss(copy.deepcopy(model).train(training)).item() for training in (True, False)]
        except RuntimeError as error:
            raise ValueError(
                "`activation` must make modules that give as many values as they take; PyTorch says: "
                f"{first_line(error)}. Pass one such as torch.nn.ELU."
            ) from error
    if not math.isclose(*losses, rel_tol=1e-4) and any(map(math.isfinite, losses)):
        raise ValueError(
            f"`activation` must act alike in training and in evaluation; the loss is {losses[0]:.4g} in one and "
            f"{losses[1]:.4g} in the other, as with dropout and batch normalization. Train such a net in a loop of "
            "your own, with loss_viz.Recorder."
        )
