"""The landscape of runs: a surface over a plane, the runs on it, and the tables it is exported to."""

import csv
import os
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from tqdm import tqdm

from loss_viz._files import atomic_write
from loss_viz._validation import argument_error, check_array, check_type
from loss_viz.landscapes.blending import PlaneLosses
from loss_viz.landscapes.grid import Sampling, is_whole_grid
from loss_viz.landscapes.kernels import Kernel
from loss_viz.landscapes.provenance import describe_settings
from loss_viz.planes.plane_set import Planes
from loss_viz.planes.projection import LARGEST, Projection
from loss_viz.runs.run import Run
from loss_viz.runs.run_set import RunSet
from loss_viz.settings import LandscapeSettings, to_json


@dataclass(frozen=True, eq=False)
class Surface:
    """Blended losses over a grid, without the path. All arrays are read-only.

    Attributes:
        x: `(n_x,)`, coordinates along PC1, in units of weights.
        y: `(n_y,)`, coordinates along PC2.
        loss: `(n_y, n_x)`, row = PC2, column = PC1.
        support: `(n_y, n_x)`, near 0 where the surface extrapolates.
        n_evaluations: number of loss evaluations it uses.
    """

    x: Float[np.ndarray, " n_x"]
    y: Float[np.ndarray, " n_y"]
    loss: Float[np.ndarray, "n_y n_x"]
    support: Float[np.ndarray, "n_y n_x"]
    n_evaluations: int

    def __post_init__(self) -> None:
        _make_read_only(self)


@dataclass(frozen=True, eq=False)
class Landscape:
    """Loss over the PC plane of one run or several, with the runs on it. All arrays are read-only.

    Arrays over steps hold all recorded steps; those of several runs follow one another as `run_set.rows` says.

    Limits: off the path there is no ground truth, because many networks project to the same point. Where the path
    crosses itself at different losses, the surface can show only one of them. Local planes contain almost nothing of
    the steepest direction of the loss, so the walls of the valley are missing.

    Attributes:
        run_set: the runs.
        x: `(n_x,)`, coordinates along PC1, in units of weights.
        y: `(n_y,)`, coordinates along PC2.
        loss: `(n_y, n_x)`, blended losses; row = PC2, column = PC1, as `plotly.graph_objects.Surface` expects.
        support: `(n_y, n_x)`, exp(-d² / (2 (0.03 diagonal)²)) for the distance d to the path; near 0 the surface
            extrapolates.
        path: `(n_steps, 2)`, projection of the run onto the plane.
        path_loss: `(n_steps,)`, true losses of the run.
        path_height: `(n_steps,)`, height of the surface at the path; `fidelity` compares the two.
        off_plane: `(n_steps,)`, distance from the weights to the plane, in units of weights.
        explained_variance_ratio: `(2,)`; it does not measure fidelity.
        anchors: `(n_anchors,)`, rows whose planes are blended; empty for a single plane.
        plane: kind of planes.
        k: stride of velocity and acceleration, in recorded steps.
        sigma: bandwidth as passed to `landscape`.
        sigma_absolute: `(n_anchors,)`, kernel widths on the path, in units of weights; all equal for a fixed `sigma`.
        n_evaluations: number of loss evaluations the landscape uses.
        kernel: weights of the planes.
        projection: the plane of the picture.
        planes: the planes that are blended.
        sampling: planes and grid, with every loss that was evaluated on them.

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
    kernel: Kernel
    projection: Projection
    planes: Planes
    sampling: Sampling

    def __post_init__(self) -> None:
        _make_read_only(self)

    def __repr__(self) -> str:
        size = f"{len(self.x)} x {len(self.y)}"
        runs = ", ".join(map(repr, self.runs))
        return f"Landscape({self.plane} planes, {size}, k={self.k}, sigma={self.sigma!r}, of {runs})"

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
        settings = LandscapeSettings(
            k=self.k,
            sigma=self.sigma,
            resolution=(len(self.x), len(self.y)),
            plane=self.plane,
            n_anchors=self.sampling.n_anchors,
            seed=self.sampling.seed,
        )
        complete = is_whole_grid(self.projection, self.x, self.y, self.plane)
        return describe_settings(self.run_set, settings, complete=complete)

    def at(self, points: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, " n"]:
        """Blend the losses `(n,)` at any `points` `(n, 2)` of the plane.

        Raises:
            TypeError: if `points` is not an array of numbers.
            ValueError: if `points` has another shape or holds values that are not finite or exceed 1e140.
        """
        points = check_array("points", points, ("n", 2), advice="For one point pass point[None].").astype(np.float64)
        if not len(points):
            return np.empty(0)
        if not np.isfinite(points).all():
            raise argument_error("points", "`points` must be finite, some are nan or inf. Leave those rows out.")
        if (np.abs(points) > LARGEST).any():
            raise argument_error("points", f"`points` must lie within {LARGEST:g}, some do not. Leave those rows out.")
        return PlaneLosses(points, self.planes, self.run_set.objective).blend(self.kernel, tqdm(disable=True))[0]

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
            raise ImportError(f"A data set needs xarray ({error}). Install it with: pip install xarray") from error
        names = _run_names(self.run_set)
        weights = {"units": "weights"}
        orthonormal = np.allclose(np.linalg.norm(self.projection.components, axis=1), 1)
        unit = weights if orthonormal else {"units": "filter norms"}
        axes = [
            {"long_name": f"{name} ({share:.1%} of the variance)", **unit}
            for name, share in zip(self.projection.axes, self.explained_variance_ratio, strict=True)
        ]
        variables: dict[str, Any] = {
            "loss": (("y", "x"), self.loss, {"long_name": "loss, blended from planes along the run"}),
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


def build_landscape(
    sampling: Sampling,
    kernel: Kernel,
    loss: Float[np.ndarray, "n_y n_x"],
    path_height: Float[np.ndarray, " n_steps"],
    n_evaluations: int,
) -> Landscape:
    """Collect the fields of a landscape from its sampling, kernel and blended losses."""
    projection = sampling.projection
    return Landscape(
        run_set=sampling.run_set,
        x=sampling.x,
        y=sampling.y,
        loss=loss,
        support=sampling.support,
        path=projection.path,
        path_loss=sampling.run_set.loss,
        path_height=path_height,
        off_plane=projection.off_plane,
        explained_variance_ratio=projection.explained_variance_ratio,
        anchors=sampling.anchors,
        plane=sampling.plane,
        k=sampling.k,
        sigma=kernel.sigma,
        sigma_absolute=kernel.width,
        n_evaluations=n_evaluations,
        kernel=kernel,
        projection=projection,
        planes=sampling.planes,
        sampling=sampling,
    )


def blend_surface(sampling: Sampling, kernel: Kernel, bar: tqdm) -> Surface:
    """Blend the losses over the grid of a sampling."""
    heights, n_evaluations = sampling.grid.blend(kernel, bar)
    shape = len(sampling.y), len(sampling.x)
    return Surface(sampling.x, sampling.y, heights.reshape(shape), sampling.support, n_evaluations)


def blend_path(sampling: Sampling, surface: Surface, kernel: Kernel, bar: tqdm) -> Landscape:
    """Complete a surface of a sampling to a landscape: blend the losses at the path."""
    path_height, n_evaluations = sampling.path.blend(kernel, bar)
    return build_landscape(sampling, kernel, surface.loss, path_height, surface.n_evaluations + n_evaluations)


def _make_read_only(record: object) -> None:
    for value in vars(record).values():
        if isinstance(value, np.ndarray):
            value.setflags(write=False)


def _run_names(run_set: RunSet) -> list[str]:
    """Return the name of its run for each row."""
    return [title for title, run in zip(run_set.titles, run_set.runs, strict=True) for _ in range(len(run))]
