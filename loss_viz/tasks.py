"""The pantry: one-dimensional regression tasks and the small networks that learn them."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .expression import parse_expression

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "silu": nn.SiLU,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
}

Target = str | Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Task:
    """Regression of one function on equispaced points of [-1, 1].

    Attributes:
        name: the target as it was typed, or the name of the callable.
        x: inputs `(n_points, 1)`.
        y: targets `(n_points, 1)`.

    Example:
        >>> task = build_task("x^2", n_points=3)
        >>> task.loss(nn.Identity())
        tensor(1.3333)
    """

    name: str
    x: Float[Tensor, "n_points 1"]
    y: Float[Tensor, "n_points 1"]

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
        ValueError: no formula, a wrong number of values, or values that are not finite.
        TypeError: neither a text nor a function.

    Example:
        >>> build_task("x^2", n_points=3).y.ravel()
        tensor([1., 0., 1.])
    """
    if n_points < 2:
        raise ValueError(f"`n_points` must be at least 2, got {n_points}. Use 100, as the post does.")
    # The grid is laid in float64 so that both precisions learn the same function.
    x = torch.linspace(-1, 1, n_points, dtype=torch.float64).to(dtype)
    if isinstance(target, str):
        name, function = target, parse_expression(target)
    elif callable(target):
        name, function = getattr(target, "__name__", type(target).__name__), target
    else:
        raise TypeError(f'`target` must be a formula such as "x^3" or a function of a tensor, got {target!r}.')
    y = torch.as_tensor(function(x), dtype=dtype).detach()
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


def build_mlp(
    *, width: int, depth: int, activation: str | Callable[[], nn.Module], dtype: torch.dtype, seed: int
) -> nn.Sequential:
    """A 1 - width - ... - width - 1 perceptron with `depth` hidden layers, PyTorch's own initialization.

    The seed reaches this network only: the global random state of PyTorch is left as it was.

    Raises:
        ValueError: `width` or `depth` below 1, or an unknown activation.
    """
    for name, value in (("width", width), ("depth", depth)):
        if value < 1:
            raise ValueError(f"`{name}` must be at least 1, got {value}. The post's net has width 8, depth 1.")
    if isinstance(activation, str):
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"`activation` must be one of {', '.join(ACTIVATIONS)} or a module factory such as "
                f"torch.nn.ELU; got {activation!r}. The post's net uses 'silu'."
            )
        activation = ACTIVATIONS[activation]
    sizes = [1] + [width] * depth
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise(sizes):
            layers += [nn.Linear(n_in, n_out, dtype=dtype), activation()]
        layers.append(nn.Linear(width, 1, dtype=dtype))
        return nn.Sequential(*layers)
