"""Other packages that draw loss landscapes, each evaluating one plane of the same model, data and loss.

Every adapter says what was adapted and why. The plane is given to all of them, so that only its evaluation is timed,
and none of them plots. Their terminal output is discarded.
"""

import io
from collections.abc import Callable
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple
from unittest import mock

import numpy as np
import torch
from torch import nn

from .networks import Network


class Plane(NamedTuple):
    """A plane through the trained weights: origin + a * axes[0] + b * axes[1], with a and b from -1 to 1."""

    origin: np.ndarray
    axes: np.ndarray
    side: int

    @property
    def ticks(self) -> np.ndarray:
        """Coordinates along either axis."""
        return np.linspace(-1, 1, self.side)

    def lift_grid(self) -> np.ndarray:
        """Return the weights of all grid points, `(side², n_params)`; b varies faster than a."""
        a, b = np.meshgrid(self.ticks, self.ticks, indexing="ij")
        return self.lift(a, b)

    def lift(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Return the weights at some points of the plane."""
        points = np.stack([a.ravel(), b.ravel()], axis=1).astype(self.origin.dtype)
        return self.origin + points @ self.axes


@dataclass(frozen=True)
class AdaptedTool:
    """A package, ready to evaluate a plane.

    Attributes:
        call: evaluates the plane and returns losses `(side, side)`.
        weights: weights at which it evaluates, `(side², n_params)`.
        documented: weights at which it is documented to evaluate, if they differ.
        note: what readers of its numbers should know.
        adds_noise_to_max: whether it adds noise to the largest loss.
    """

    call: Callable[[], np.ndarray]
    weights: np.ndarray
    documented: np.ndarray | None = None
    note: str = ""
    adds_noise_to_max: bool = False


def build_plane(net: Network, side: int, extent: float = 0.5) -> Plane:
    """Return a plane of two random directions, half as long as the weights."""
    origin = net.run.weights[-1]
    axes = np.random.default_rng(1).standard_normal((2, len(origin))).astype(origin.dtype)
    axes *= extent * np.linalg.norm(origin) / np.linalg.norm(axes, axis=1, keepdims=True)
    return Plane(origin, axes, side)


def adapt_loss_landscapes(net: Network, plane: Plane) -> AdaptedTool:
    """Adapt the package `loss-landscapes`.

    The plane is given by three of its corners (`planar_interpolation`). Its random planes are slower and fail on a GPU.
    Copying the models is part of the call (`deepcopy_model`), because the package modifies their weights.
    """
    package, metrics = import_module("loss_landscapes"), import_module("loss_landscapes.metrics")
    corner = plane.origin - plane.axes.sum(axis=0)
    corners = (corner, corner + 2 * plane.axes[0], corner + 2 * plane.axes[1])
    models = [net.with_weights(weights) for weights in corners]
    metric = metrics.Loss(net.criterion, net.x, net.y)
    i, j = np.indices((plane.side, plane.side))
    step = 2 / plane.side  # the package divides by the number of points and never reaches the far corner
    # In every second row it steps before it evaluates, in the others afterwards.
    visited = plane.lift(i * step - 1, (j + (i % 2 == 0)) * step - 1)
    documented = plane.lift(i * step - 1, j * step - 1)
    return AdaptedTool(
        lambda: package.planar_interpolation(*models, metric, steps=plane.side, deepcopy_model=True),
        visited,
        documented,
    )


def adapt_loss_landscape_3d(net: Network, plane: Plane) -> AdaptedTool:
    """Adapt the package `loss-landscape-3d`.

    The data is a list of one batch that is already on the device, because a DataLoader would copy it image by image.
    Directions and center are given as state dicts, as its own functions create them.
    """
    package = import_module("loss_landscape_3d")
    model = net.with_weights(plane.origin)
    names = [name for name, _ in model.named_parameters()]
    directions = [dict(zip(names, net.split(axis), strict=True)) for axis in plane.axes]
    calculator = package.LossLandscapeCalculator(model, [(net.x, net.y)], net.criterion, device=net.x.device)
    center = {name: value.clone() for name, value in model.state_dict().items()}
    return AdaptedTool(lambda: calculator.calculate(plane.ticks, plane.ticks, *directions, center), plane.lift_grid())


def adapt_losscape(net: Network, plane: Plane) -> AdaptedTool:
    """Adapt the package `losscape`.

    The data is a list of one batch, and its output file is turned off. The package always draws a contour plot and
    always uses a GPU if there is one, so its pyplot and its device are replaced during the call.
    """
    create, compute = import_module("losscape.create_landscape"), import_module("losscape.compute_loss")
    model = net.with_weights(plane.origin)
    directions = [net.split(axis) for axis in plane.axes]
    batches = [(net.x, net.y)]

    def call() -> np.ndarray:
        with ExitStack() as stack:
            stack.enter_context(mock.patch.object(create, "plt"))
            stack.enter_context(mock.patch.object(create, "device", net.x.device))
            stack.enter_context(mock.patch.object(compute, "device", net.x.device))
            _, _, losses = create.create_3D_losscape(
                model,
                batches,
                directions=directions,
                criterion=net.criterion,
                num_batches=1,
                save_only=True,
                output_h5=False,
                num_points=plane.side,
            )
        return losses.T  # its rows are along the second direction

    return AdaptedTool(call, plane.lift_grid())


def adapt_landscaper(net: Network, plane: Plane) -> AdaptedTool:
    """Adapt the package `landscaper`.

    Two of its dimensions are used, and only `compute_loss_landscape`, without the object that wraps it. The function
    rescales every parameter of the directions; the points that it evaluates are computed here.
    """
    compute = import_module("landscaper.compute")
    model = net.with_weights(plane.origin)
    directions = [net.split(axis) for axis in plane.axes]
    extent = float(np.linalg.norm(plane.axes[0]) / np.linalg.norm(plane.origin))

    def loss(model: nn.Module, data: tuple[torch.Tensor, torch.Tensor]) -> float:
        return net.criterion(model(data[0]), data[1]).item()

    def call() -> np.ndarray:
        losses, _ = compute.compute_loss_landscape(
            model,
            (net.x, net.y),
            directions,
            loss,
            steps=plane.side,
            distance=extent,
            dim=2,
            device=net.x.device.type,
        )
        return losses

    scaled = np.stack(
        [np.concatenate([(np.sqrt(p.numel()) * p / p.norm()).ravel().cpu() for p in axis]) for axis in directions]
    )
    scaled *= extent * np.linalg.norm(plane.origin) / np.linalg.norm(scaled, axis=1, keepdims=True)
    ticks = (np.arange(plane.side) - plane.side // 2) / (plane.side / 2)
    points = plane._replace(axes=scaled).lift(*np.meshgrid(ticks, ticks, indexing="ij"))
    return AdaptedTool(
        call, points, note="its largest loss, to which it adds noise, is left out", adds_noise_to_max=True
    )


ADAPTERS: dict[str, Callable[[Network, Plane], AdaptedTool]] = {
    "loss-landscapes": adapt_loss_landscapes,
    "loss-landscape-3d": adapt_loss_landscape_3d,
    "losscape": adapt_losscape,
    "landscaper": adapt_landscaper,
}


def silence(call: Callable[[], np.ndarray]) -> Callable[[], np.ndarray]:
    """Return the same call with its terminal output discarded."""

    def silent() -> np.ndarray:
        with redirect_stdout(None), redirect_stderr(io.StringIO()):
            return call()

    return silent


def measure_difference(tool: AdaptedTool, net: Network) -> tuple[float, str]:
    """Return the largest relative difference to the losses of loss_viz at the same points, and a note."""
    losses = silence(tool.call)().ravel()
    is_compared = np.arange(len(losses)) != losses.argmax() if tool.adds_noise_to_max else np.ones(len(losses), bool)

    def largest_at(weights: np.ndarray) -> float:
        own = net.run.objective(weights)
        return float(np.abs(losses / own - 1)[is_compared].max())

    note = tool.note
    if tool.documented is not None:
        difference = largest_at(tool.documented)
        note = f"every second row is shifted by a cell: losses differ by {difference:.2g} at the documented points"
    return largest_at(tool.weights), note


def name_version(name: str) -> str:
    """Return the name of a package, with its version if it is installed."""
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return name


def explain_failure(error: Exception, device: torch.device) -> str:
    """Explain in one line why a tool has no numbers."""
    reason = f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
    if isinstance(error, ImportError):
        return f"left out: cannot be imported ({reason})"
    return f"left out: does not run on {device.type} ({reason})"
