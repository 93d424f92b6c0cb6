"""The landscape of runs: a surface over a plane, the runs on it, and the tables it is exported to."""

import csv
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from torch import nn
from tqdm import tqdm

from loss_viz._files import atomic_write, check_destination
from loss_viz._validation import argument_error, check_array, check_bool, check_type, extra_error
from loss_viz.landscapes.blending import Blend
from loss_viz.landscapes.grid import Sampling
from loss_viz.landscapes.held_out import PlaneChoice
from loss_viz.landscapes.kernels import Kernel
from loss_viz.landscapes.mesh import write_mesh
from loss_viz.landscapes.provenance import describe_settings
from loss_viz.planes.plane_set import Planes
from loss_viz.planes.projection import LARGEST, Projection
from loss_viz.runs.run import Run
from loss_viz.runs.run_set import RunSet
from loss_viz.settings import LandscapeSettings, to_json

MESHES = ".stl", ".ply", ".vtu"


@dataclass(frozen=True, eq=False)
class Surface:
    """Heights over a grid, without the path. All arrays are read-only.

    Attributes:
        x: `(n_x,)`, coordinates along PC1, in units of weights.
        y: `(n_y,)`, coordinates along PC2.
        loss: `(n_y, n_x)`, row = PC2, column = PC1.
        support: `(n_y, n_x)`, near 0 where the surface extrapolates.
    """

    x: Float[np.ndarray, " n_x"]
    y: Float[np.ndarray, " n_y"]
    loss: Float[np.ndarray, "n_y n_x"]
    support: Float[np.ndarray, "n_y n_x"]

    def __post_init__(self) -> None:
        _make_read_only(self)


class Heights(NamedTuple):
    """A scalar over the grid, its true values along the runs, and the heights there."""

    surface: Float[np.ndarray, "n_y n_x"]
    path: Float[np.ndarray, " n_steps"]
    path_height: Float[np.ndarray, " n_steps"]


@dataclass(frozen=True, eq=False)
class Landscape:
    """Loss over the PC plane of one run or several, with the runs on it. All arrays are read-only.

    Arrays over steps hold all recorded steps; those of several runs follow one another as `run_set.rows` says.

    With `blend="planes"` each height is the loss of one network, `network_at(q)`; a step of the run lies above or below
    the surface by the error of the picture there.

    Limits: off the path there is no ground truth, because many networks project to the same point. Where the path
    crosses itself at different losses, the surface can show only one of them. The PC plane holds 1 or 2 % of the
    steepest direction of the loss, so a picture over it shows the river bed rather than the walls of the valley.

    Attributes:
        run_set: the runs.
        x: `(n_x,)`, coordinates along PC1, in units of weights.
        y: `(n_y,)`, coordinates along PC2.
        loss: `(n_y, n_x)`, heights; row = PC2, column = PC1, as `plotly.graph_objects.Surface` expects; nan where
            `loss_fn` failed.
        support: `(n_y, n_x)`, exp(-d² / (2 (0.03 diagonal)²)) for the distance d to the path; near 0 the surface
            extrapolates.
        path: `(n_steps, 2)`, projection of the run onto the plane.
        path_loss: `(n_steps,)`, true losses of the run.
        path_height: `(n_steps,)`, height of the surface at the path; `fidelity` compares the two. Of a long run of a
            large model only a few hundred steps are compared; at the others it is nan.
        off_plane: `(n_steps,)`, distance from the weights to the plane, in units of weights.
        explained_variance_ratio: `(2,)`; it does not measure fidelity.
        anchors: `(n_anchors,)`, rows whose planes are blended; one row or none for a flat plane.
        plane: kind of planes that was taken: local, parallel or flat.
        k: stride of velocity and acceleration that was taken, in recorded steps.
        sigma: bandwidth as passed to `landscape`.
        sigma_absolute: `(n_anchors,)`, kernel widths on the path, in units of weights; all equal for a fixed `sigma`.
        n_evaluations: number of loss evaluations the landscape took.
        blend: the planes, their kernels, and the scalars evaluated on them.
        projection: the plane of the picture.
        sampling: planes and grid.
        given: arguments of `landscape`.
        choice: why these planes were taken.
        metrics: further heights by name: surface `(n_y, n_x)`, true values along the run and heights there, both
            `(n_steps,)`. See `metric`.
        height_name: what the heights are.

    Example:
        >>> import loss_viz as lv
        >>> run = lv.train("x^2", steps=60, progress=False)
        >>> land = lv.landscape(run, resolution=(9, 7), progress=False)
        >>> land.loss.shape, land.path.shape, land.path_height.shape
        ((7, 9), (61, 2), (61,))
        >>> bool(np.abs(land.at(land.path[:3]) / run.loss[:3] - 1).max() < 0.02)  # the surface at the first steps
        True
    """

    run_set: RunSet
    x: Float[np.ndarray, " n_x"]
    y: Float[np.ndarray, " n_y"]
    loss: Float[np.ndarray, "n_y n_x"]
    support: Float[np.ndarray, "n_y n_x"]
    path: Float[np.ndarray, "n_steps 2"]
    path_loss: Float[np.ndarray, " n_steps"]
    path_height: Float[np.ndarray, " n_steps"]
    off_plane: Float[np.ndarray, " n_steps"]
    explained_variance_ratio: Float[np.ndarray, " 2"]
    anchors: Int[np.ndarray, " n_anchors"]
    plane: str
    k: int
    sigma: float | str
    sigma_absolute: Float[np.ndarray, " n_planes"]
    n_evaluations: int
    blend: Blend
    projection: Projection
    sampling: Sampling
    given: LandscapeSettings
    choice: PlaneChoice
    metrics: Mapping[str, Heights] = field(default_factory=dict)
    height_name: str = "loss"

    def __post_init__(self) -> None:
        _make_read_only(self)

    def __repr__(self) -> str:
        size = f"{len(self.x)} x {len(self.y)}"
        runs = ", ".join(map(repr, self.runs))
        planes = "a flat plane" if self.plane == "flat" else f"{self.plane} planes"
        return f"Landscape({planes}, {size}, k={self.k}, sigma={self.sigma!r}, of {runs})"

    @property
    def runs(self) -> tuple[Run, ...]:
        """All runs."""
        return self.run_set.runs

    @property
    def run(self) -> Run:
        """The run; the first one of several."""
        return self.run_set.runs[0]

    @property
    def settings(self) -> dict[str, Any]:
        """Everything needed to make the landscape again, in plain values.

        `"landscape"` holds the arguments of `loss_viz.landscape`; `"train"` of each of the `"runs"` those of
        `loss_viz.train`, or None for a run of your own.
        """
        size = len(self.x), len(self.y)
        return describe_settings(self.run_set, replace(self.given, resolution=size), complete=size == self.requested)

    @property
    def requested(self) -> tuple[int, int]:
        """Points along each axis that were asked for; the grid has fewer if the work was stopped."""
        size = self.given.resolution
        return (int(size), int(size)) if isinstance(size, int | np.integer) else (int(size[0]), int(size[1]))

    @property
    def kernel(self) -> Kernel:
        """Weights of the planes."""
        return self.blend.kernel

    @property
    def planes(self) -> Planes:
        """The planes that are blended."""
        return self.blend.planes

    def metric(self, name: str) -> "Landscape":
        """Return the same picture with another scalar as its height, one of `metrics`.

        Its `loss`, `path_loss` and `path_height` hold the values of that scalar.

        Raises:
            ValueError: if there is no metric of this name, or it is not finite along the runs.

        Example:
            >>> import loss_viz as lv
            >>> import torch
            >>> run = lv.train("x^2", steps=60, progress=False)
            >>> def largest_weight(model):
            ...     return torch.cat([p.abs().ravel() for p in model.parameters()]).max()
            >>> land = lv.landscape(run, resolution=9, metrics={"size": largest_weight}, progress=False)
            >>> size = land.metric("size")
            >>> bool(np.allclose(size.path_loss, np.abs(run.weights).max(axis=1)))
            True
        """
        if name not in self.metrics:
            known = ", ".join(self.metrics) or "none"
            raise argument_error(
                "name",
                f"`name` must be one of the metrics of this landscape ({known}), got {name!r}. Pass it to `landscape`, "
                "as in metrics={'accuracy': f}.",
            )
        heights = self.metrics[name]
        if not np.isfinite(heights.path).all():
            raise ValueError(f"The metric {name!r} is nan or inf at some recorded steps. Define it for all of them.")
        objective = self.blend.objectives[1 + list(self.metrics).index(name)]
        parts = zip(self.runs, self.run_set.rows, strict=True)
        runs = tuple(replace(run, loss=heights.path[rows], objective=objective) for run, rows in parts)
        run_set = RunSet(runs, self.run_set.names)
        return replace(
            self,
            run_set=run_set,
            sampling=replace(self.sampling, run_set=run_set),
            loss=heights.surface,
            path_loss=heights.path,
            path_height=heights.path_height,
            blend=replace(self.blend, objectives=(objective,)),
            metrics={},
            height_name=name,
        )

    def network_at(self, point: Float[np.ndarray, " 2"]) -> nn.Module:
        """Return the network whose loss is the height at a point: a copy of the model with its blended weights.

        Raises:
            TypeError: if `point` is not an array of numbers.
            ValueError: if it is not one finite point, or with `blend="losses"`, where a height belongs to no network.

        Example:
            >>> import loss_viz as lv
            >>> run = lv.train("x^2", steps=60, progress=False)
            >>> land = lv.landscape(run, resolution=9, progress=False)
            >>> network = land.network_at(land.path[30])
            >>> bool(np.isclose(run.task.loss(network).item(), land.path_height[30]))
            True
        """
        if self.blend.of == "losses":
            raise ValueError(
                "A height of `blend`='losses' is an average of losses and belongs to no network. Use `blend`='planes'."
            )
        points = self._check_points(np.asarray(point)[None])
        weights, buffers = self.blend.lift(points)
        return self.run_set.objective.network(weights[0], None if buffers is None else buffers[0])

    def at(self, points: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, " n"]:
        """Evaluate the height `(n,)` at any `points` `(n, 2)` of the plane.

        Raises:
            TypeError: if `points` is not an array of numbers.
            ValueError: if `points` has another shape or holds values that are not finite or exceed 1e140.
        """
        points = self._check_points(points)
        return self.blend.heights(points, tqdm(disable=True))[:, 0] if len(points) else np.empty(0)

    def _check_points(self, points: Any) -> Float[np.ndarray, "n 2"]:
        points = check_array("points", points, ("n", 2), advice="For one point pass point[None].").astype(np.float64)
        if not np.isfinite(points).all():
            raise argument_error("points", "`points` must be finite, some are nan or inf. Leave those rows out.")
        if (np.abs(points) > LARGEST).any():
            raise argument_error("points", f"`points` must lie within {LARGEST:g}, some do not. Leave those rows out.")
        return points

    def to_json(self) -> str:
        """Return `settings` as one line of JSON."""
        return to_json(self.settings)

    def to_csv(self, folder: str | os.PathLike[str]) -> tuple[Path, Path]:
        """Write `surface.csv` and `path.csv` into a folder, which is created if missing.

        `surface.csv` has one row per grid point: x, y, loss, support. `path.csv` has one row per step: run, step, x,
        y, true loss, height of the surface, distance off the plane. Numbers have as many digits as they need to be
        read back exactly. The first line of each file is a comment with the settings: read it with
        `pandas.read_csv(path, skiprows=1)`.

        Returns:
            The paths of both files.

        Raises:
            OSError: if the folder cannot be created or written to.

        Example:
            >>> import loss_viz as lv
            >>> from tempfile import mkdtemp
            >>> land = lv.landscape(lv.train("x^2", steps=60, progress=False), resolution=9, progress=False)
            >>> surface, path = land.to_csv(mkdtemp())
            >>> x, y, loss, support = np.loadtxt(surface, delimiter=",", skiprows=2).T
            >>> bool((loss == land.loss.ravel()).all())
            True
        """
        x, y = np.meshgrid(self.x, self.y)
        surface = {"x": x, "y": y, "loss": self.loss, "support": self.support}
        path = {"run": np.array(_run_names(self.run_set), dtype=object), "step": self.run_set.step}
        path |= {"x": self.path[:, 0], "y": self.path[:, 1], "loss": self.path_loss}
        path |= {"height": self.path_height, "off_plane": self.off_plane}
        folder, comment = Path(folder), f"# {self.to_json()}\n"
        folder.mkdir(parents=True, exist_ok=True)
        files = folder / "surface.csv", folder / "path.csv"
        with ExitStack() as stack:  # both files are complete before either replaces an older one
            parts = [stack.enter_context(atomic_write(file)) for file in files]
            for part, table in zip(parts, (surface, path), strict=True):
                with part.open("w", newline="", encoding="utf-8") as file:
                    file.write(comment)
                    writer = csv.writer(file, lineterminator="\n")  # writes floats as repr does: exactly
                    writer.writerow(table)
                    writer.writerows(zip(*(column.ravel().tolist() for column in table.values()), strict=True))
        return files

    def to_mesh(self, path: str | os.PathLike[str], *, log: bool = False) -> Path:
        """Write the surface for a printer, Blender or ParaView, with triangles between the points of the grid.

        Triangles with a corner where the loss is not finite are left out. The suffix of `path` is the format:

        - `.stl`: a closed solid in millimeters: 115 wide and deep, and 75 high in the proportions of the picture, on a
          base of 3. Holes go through it; two that touch in one point share an edge of four walls there.
        - `.ply`: a surface in a box of 1.15 x 1.15 x 0.75, with the colors of the picture. `loss` and `support` are
          properties of its points.
        - `.vtu`: x, y and the loss as they are, with `loss`, `support` and all `metrics` as arrays. The runs are lines
          at their true losses; the arrays `run` (from 0) and `step` are -1 at the points of the surface.

        PLY and VTU hold the settings, from which `loss_viz.reproduce` computes the landscape again.

        Args:
            path: file to write; one that exists is replaced once the new one is complete.
            log: take log10 of the loss as the height; `loss` is the loss all the same.

        Returns:
            The path.

        Raises:
            ValueError: if the suffix is another one, or `log=True` with a loss that is not positive.
            OSError: if the folder does not exist or is not writable.

        Example:
            >>> import loss_viz as lv
            >>> from tempfile import mkdtemp
            >>> land = lv.landscape(lv.train("x^2", steps=60, progress=False), resolution=9, progress=False)
            >>> path = land.to_mesh(f"{mkdtemp()}/land.stl")
            >>> (path.stat().st_size - 84) // 50  # triangles: the surface, the base and the walls
            320
        """
        place = check_destination(path, *MESHES, advice="Use .stl to print it, .ply for Blender or .vtu for ParaView.")
        check_bool("log", log)
        write_mesh(self, place, log=log)
        return place

    def to_xarray(self) -> Any:
        """Return an `xarray.Dataset`; `land.to_xarray().to_netcdf("land.nc")` writes it to a file.

        `loss` and `support` have the dimensions `y` and `x`. `path_x`, `path_y`, `path_loss`, `path_height` and
        `off_plane` have the dimension `step`, with several runs one after another and the coordinate `run`. `sigma`
        has the dimension `anchor`, the rows of the anchors. The attribute `settings` holds the settings as JSON.

        Raises:
            ImportError: if xarray is not installed.
        """
        try:
            import xarray
        except ModuleNotFoundError as error:
            raise extra_error("A data set needs xarray", error, "xarray") from error
        names = _run_names(self.run_set)
        weights = {"units": "weights"}
        orthonormal = np.allclose(np.linalg.norm(self.projection.components, axis=1), 1)
        unit = weights if orthonormal else {"units": "filter norms"}
        axes = [
            {"long_name": f"{name} ({share:.1%} of the variance)", **unit}
            for name, share in zip(self.projection.axes, self.explained_variance_ratio, strict=True)
        ]
        variables: dict[str, Any] = {
            "loss": (("y", "x"), self.loss, {"long_name": f"{self.height_name}, on planes along the run"}),
            "support": (("y", "x"), self.support, {"long_name": "how near the run is, from 0 to 1"}),
            "path_x": ("step", self.path[:, 0], axes[0]),
            "path_y": ("step", self.path[:, 1], axes[1]),
            "path_loss": ("step", self.path_loss, {"long_name": "true loss of the run"}),
            "path_height": ("step", self.path_height, {"long_name": "surface under the run"}),
            "off_plane": ("step", self.off_plane, {"long_name": "distance of the run from the plane", **weights}),
        }
        coords: dict[str, Any] = {
            "x": ("x", self.x, axes[0]),
            "y": ("y", self.y, axes[1]),
            "step": ("step", self.run_set.step, {"long_name": "training step"}),
            "run": ("step", names, {"long_name": "run of the step"}),
        }
        if len(self.anchors):
            coords["anchor"] = "anchor", self.anchors, {"long_name": "row of a step whose plane is blended"}
            variables["sigma"] = "anchor", self.sigma_absolute, {"long_name": "kernel width on the path", **unit}
        attributes = {
            "title": f"Loss landscape of {', '.join(dict.fromkeys(names))}",
            "source": f"loss_viz {version('loss_viz')}",
            "explained_variance_ratio": self.explained_variance_ratio,
            "settings": self.to_json(),
        }
        return xarray.Dataset(variables, coords, attributes)


def check_landscape(landscape: Any) -> None:
    """Raise `TypeError` unless the argument is a `Landscape`."""
    check_type("landscape", landscape, Landscape, "a Landscape", advice="Pass what `loss_viz.landscape` returns.")


def _make_read_only(record: object) -> None:
    for value in vars(record).values():
        if isinstance(value, np.ndarray):
            value.setflags(write=False)


def _run_names(run_set: RunSet) -> list[str]:
    """Return the name of its run for each row."""
    return [title for title, run in zip(run_set.titles, run_set.runs, strict=True) for _ in range(len(run))]
