"""Regression of a function of one variable: the task that `train` learns."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from loss_viz._validation import argument_error, check_int, check_type, first_line
from loss_viz.tasks.formula import parse_formula

DTYPES = (torch.float32, torch.float64)
N_POINTS, MAX_POINTS = 100, 2**22
Target = str | Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Task:
    """Regression of one function, tabulated on some points.

    Attributes:
        name: the formula as given, or the name of the function.
        x: inputs `(n_points, 1)`.
        y: targets `(n_points, 1)`.

    Raises:
        TypeError: if `name` is not a string, or `x` or `y` not a tensor.
        ValueError: if `x` and `y` differ in shape or dtype, or are not finite real numbers.

    Example:
        >>> task = build_task("x^2", n_points=3)
        >>> task.loss(nn.Identity())
        tensor(1.3333)
    """

    name: str
    x: Float[Tensor, "n_points 1"]
    y: Float[Tensor, "n_points 1"]

    def __post_init__(self) -> None:
        check_type("name", self.name, str, "a string", advice="It is the title of figures.")
        for name in "xy":
            check_type(name, getattr(self, name), Tensor, "a tensor", advice="Make it with torch.as_tensor.")
        shape, dtype = tuple(self.x.shape), self.x.dtype
        if not self.x.numel() or not shape == tuple(self.y.shape) == (self.x.numel(), 1) or self.y.dtype != dtype:
            raise ValueError(
                f"A task needs `x` and `y` of shape (n_points, 1) and of one dtype, got {shape} in {dtype} and "
                f"{tuple(self.y.shape)} in {self.y.dtype}. Add an axis with x[:, None]."
            )
        if not dtype.is_floating_point or not (self.x.isfinite().all() and self.y.isfinite().all()):
            raise ValueError("A task needs `x` and `y` of finite real numbers. Leave out the points that are not.")

    def loss(self, model: nn.Module) -> Tensor:
        """Return the mean squared error of `model` on all points, a scalar."""
        return nn.functional.mse_loss(model(self.x), self.y)

    def to_numpy(self) -> tuple[Float[np.ndarray, " n_points"], Float[np.ndarray, " n_points"]]:
        """Return `x` and `y` as float64 arrays."""
        return self.x.ravel().double().cpu().numpy(), self.y.ravel().double().cpu().numpy()


def build_task(target: Target, *, n_points: int = N_POINTS, dtype: torch.dtype = torch.float32) -> Task:
    """Tabulate `target` on `n_points` equispaced points of [-1, 1], ends included.

    Args:
        target: a formula in x (see `loss_viz.tasks.formula`), or a function from x `(n_points,)` to values of that
            shape.
        n_points: at least 2.
        dtype: `torch.float32` or `torch.float64`.

    Raises:
        TypeError: if `target` is neither a string nor a function, or does not return real numbers.
        ValueError: if the string is not a formula, the values have the wrong shape or are not finite, or `n_points`
            or `dtype` is not allowed.

    Example:
        >>> build_task("x^2", n_points=3).y.ravel()
        tensor([1., 0., 1.])
    """
    n_points = check_int("n_points", n_points, 2, MAX_POINTS, advice="Use 100, as the post does.")
    if not isinstance(dtype, torch.dtype) or dtype not in DTYPES:
        raise argument_error(
            "dtype", f"`dtype` must be torch.float32 or torch.float64, got {dtype!r}. The default is torch.float32."
        )
    x = torch.linspace(-1, 1, n_points, dtype=torch.float64).to(dtype)  # the same points in both precisions
    if isinstance(target, str):
        name, function = target, parse_formula(target)
    else:
        what = 'a formula such as "x^3" or a function of a tensor'
        check_type("target", target, Callable, what, advice="Pass one of the two.")
        name, function = getattr(target, "__name__", type(target).__name__), target
    y = _tabulate(name, function, x)
    if y.shape != x.shape:
        raise argument_error(
            "target",
            f"The target {name!r} must give one value for each of the {n_points} points; "
            f"it gave shape {tuple(y.shape)}. Return a tensor of the shape of its argument.",
        )
    if not y.isfinite().all():
        bad = int((~y.isfinite()).nonzero()[0])
        raise argument_error(
            "target",
            f"The target {name!r} must be finite on [-1, 1]; it is {float(y[bad])} at x = {float(x[bad]):.4g}. "
            "Choose a formula that is defined there, for example sqrt(abs(x)) instead of sqrt(x).",
        )
    return Task(name, x[:, None], y[:, None])


def _tabulate(name: str, function: Callable[[Tensor], Any], x: Tensor) -> Tensor:
    """Return the values of a target at `x`, of which it gets a copy that it may change in place."""
    try:
        y = torch.as_tensor(function(x.clone()))
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"The target {name!r} must be a function from a tensor of shape {tuple(x.shape)} to numbers of that shape; "
            f"{type(error).__name__}: {first_line(error)}. Write it with operations on tensors, as "
            "in lambda x: torch.sin(3 * x)."
        ) from error
    if y.is_complex():
        raise TypeError(f"The target {name!r} must give real numbers, it gave {y.dtype}. Take the real part.")
    return y.detach().to(x)


def check_same_loss(model: nn.Module, task: Task) -> None:
    """Check that the loss in training mode, which is recorded, is that in evaluation mode, which is drawn.

    Raises:
        ValueError: if they differ by more than a ten-thousandth, or the layers do not fit together.
    """
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            losses = [task.loss(copy.deepcopy(model).train(training)).item() for training in (True, False)]
        except RuntimeError as error:
            raise argument_error(
                "activation",
                "`activation` must make modules with as many outputs as inputs; PyTorch says: "
                f"{first_line(error)}. Pass one such as torch.nn.ELU.",
            ) from error
    if not math.isclose(*losses, rel_tol=1e-4) and any(map(math.isfinite, losses)):
        raise argument_error(
            "activation",
            f"`activation` must be the same in training and evaluation mode; the loss is {losses[0]:.4g} in one and "
            f"{losses[1]:.4g} in the other, as with dropout and batch normalization. Train such a network in your own "
            "loop, with loss_viz.Recorder.",
        )
