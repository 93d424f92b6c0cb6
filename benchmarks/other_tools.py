"""Other packages that draw loss landscapes, each evaluating one plane of the same model, data and loss.

Every adapter says what was adapted and why. All of them are handed the plane, so that only its evaluation is timed,
and none prints or plots: what they write to the terminal goes nowhere.
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

from .nets import Net


class Plane(NamedTuple):
    """A plane through the trained weights: origin + a * axes[0] + b * axes[1], for a and b from -1 to 1."""

    origin: np.ndarray
    axes: np.ndarray
    side: int

    @property
    def ticks(self) -> np.ndarray:
        """Coordinates along either axis."""
        return np.linspace(-1, 1, self.side)

    def lift(self) -> np.ndarray:
        """Weights of all its points, `(side², n_params)`, a changing more slowly than b."""
        a, b = np.meshgrid(self.ticks, self.ticks, indexing="ij")
        return self.place(a, b)

    def place(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Weights at some points of the plane."""
        points = np.stack([a.ravel(), b.ravel()], axis=1).astype(self.origin.dtype)
        return self.origin + points @ self.axes


@dataclass(frozen=True)
class Adapted:
    """A package, ready to evaluate a plane.

    Attributes:
        call: evaluates it; losses `(side, side)`.
        weights: where it does so, `(side², n_params)`.
        stated: where it says that it does, if that is elsewhere.
        note: what is to be known about its losses.
        top_is_noisy: its largest loss is not the one that it evaluated.
    """

    call: Callable[[], np.ndarray]
    weights: np.ndarray
    stated: np.ndarray | None = None
    note: str = ""
    top_is_noisy: bool = False


def build_plane(net: Net, side: int, extent: float = 0.5) -> Plane:
    """Two random directions, half as long as the weights."""
    origin = net.run.weights[-1]
    axes = np.random.default_rng(1).standard_normal((2, len(origin))).astype(origin.dtype)
    axes *= extent * np.linalg.norm(origin) / np.linalg.norm(axes, axis=1, keepdims=True)
    return Plane(origin, axes, side)


def adapt_loss_landscapes(net: Net, plane: Plane) -> Adapted:
    """The package `loss-landscapes`.

    Adapted: the plane is given by three of its corners (`planar_interpolation`), not drawn at random, which is slower
    and fails on a GPU. The models are copied in the call (`deepcopy_model`), for it walks through their weights.
    """
    package, metrics = import_module("loss_landscapes"), import_module("loss_landscapes.metrics")
    corner = plane.origin - plane.axes.sum(axis=0)
    models = [net.at(weights) for weights in (corner, corner + 2 * plane.axes[0], corner + 2 * plane.axes[1])]
    metric = metrics.Loss(net.criterion, net.x, net.y)
    i, j = np.indices((plane.side, plane.side))
    step = 2 / plane.side  # it divides by the number of points, and never arrives at the far corner
    # It takes a step before it evaluates in every second row, after it in the others.
    visited = plane.place(i * step - 1, (j + (i % 2 == 0)) * step - 1)
    stated = plane.place(i * step - 1, j * step - 1)
    return Adapted(
        lambda: package.planar_interpolation(*models, metric, steps=plane.side, deepcopy_model=True), visited, stated
    )


def adapt_loss_landscape_3d(net: Net, plane: Plane) -> Adapted:
    """The package `loss-landscape-3d`.

    Adapted: the data is a list of one batch, on the device already, where a DataLoader would copy image by image. It
    is handed directions and centre as state dicts, which its own functions make too.
    """
    package = import_module("loss_landscape_3d")
    model = net.at(plane.origin)
    names = [name for name, _ in model.named_parameters()]
    directions = [dict(zip(names, net.split(axis), strict=True)) for axis in plane.axes]
    calculator = package.LossLandscapeCalculator(model, [(net.x, net.y)], net.criterion, device=net.x.device)
    centre = {name: value.clone() for name, value in model.state_dict().items()}
    return Adapted(lambda: calculator.calculate(plane.ticks, plane.ticks, *directions, centre), plane.lift())


def adapt_losscape(net: Net, plane: Plane) -> Adapted:
    """The package `losscape`.

    Adapted: the data is a list of one batch, and its file of numbers is off. It always draws a contour plot, and
    always takes the GPU where there is one: while it runs, its pyplot is a stand-in and its device ours.
    """
    create, compute = import_module("losscape.create_landscape"), import_module("losscape.compute_loss")
    model = net.at(plane.origin)
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
        return losses.T  # its rows go along the second direction

    return Adapted(call, plane.lift())


def adapt_landscaper(net: Net, plane: Plane) -> Adapted:
    """The package `landscaper`.

    Adapted: two of its dimensions, and `compute_loss_landscape` alone, without the object that it is wrapped in. It
    rescales every parameter of the directions by itself; the points that it then visits are worked out here.
    """
    compute = import_module("landscaper.compute")
    model = net.at(plane.origin)
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
    at = (np.arange(plane.side) - plane.side // 2) / (plane.side / 2)
    points = plane._replace(axes=scaled).place(*np.meshgrid(at, at, indexing="ij"))
    return Adapted(call, points, note="its largest loss, to which it adds noise, is left out", top_is_noisy=True)


PEERS: dict[str, Callable[[Net, Plane], Adapted]] = {
    "loss-landscapes": adapt_loss_landscapes,
    "loss-landscape-3d": adapt_loss_landscape_3d,
    "losscape": adapt_losscape,
    "landscaper": adapt_landscaper,
}


def hush(call: Callable[[], np.ndarray]) -> Callable[[], np.ndarray]:
    """The same call, whatever it prints going nowhere."""

    def quiet() -> np.ndarray:
        with redirect_stdout(None), redirect_stderr(io.StringIO()):
            return call()

    return quiet


def measure_difference(adapted: Adapted, net: Net) -> tuple[float, str]:
    """The largest relative difference between the peer's losses and those of loss_viz at the same points."""
    losses = hush(adapted.call)().ravel()
    counts = np.arange(len(losses)) != losses.argmax() if adapted.top_is_noisy else np.ones(len(losses), dtype=bool)

    def against(weights: np.ndarray) -> float:
        own = net.run.objective(weights)
        return float(np.abs(losses / own - 1)[counts].max())

    note = adapted.note
    if adapted.stated is not None:
        note = f"every second row is a cell off: losses differ by {against(adapted.stated):.2g} at the points it states"
    return against(adapted.weights), note


def name_version(name: str) -> str:
    """The package with its version, where it is installed."""
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return name


def explain(error: Exception, device: torch.device) -> str:
    """Why a peer has no numbers, in one line."""
    reason = f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
    if isinstance(error, ImportError):
        return f"left out: cannot be imported ({reason})"
    return f"left out: does not run on {device.type} ({reason})"
