"""The landscape of runs: one surface over a plane that passes through the runs' own losses."""

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from tqdm import tqdm

from loss_viz._files import write_whole
from loss_viz._validation import check_array, check_type
from loss_viz.landscapes.blending import PlaneLosses
from loss_viz.landscapes.grid import Sampling
from loss_viz.landscapes.kernels import Kernel
from loss_viz.landscapes.provenance import describe_settings, to_json
from loss_viz.planes.plane_set import Planes
from loss_viz.planes.projection import LARGEST, Projection
from loss_viz.runs.run import Run
from loss_viz.runs.run_set import RunSet

COMMENT = "# "

SURFACE_COLUMNS = ("x", "y", "loss", "support")

PATH_COLUMNS = ("run", "step", "x", "y", "loss", "height", "off_plane")

WEIGHTS = {"units": "weights"}


def build_dataset(
    sampling: Sampling,
    kernel: Kernel,
    loss: Float[np.ndarray, "n_y n_x"],
    path_height: Float[np.ndarray, " n_steps"],
    settings: Mapping[str, Any],
) -> Any:
    """The `xarray.Dataset` that `Landscape.to_xarray` returns.

    Raises:
        ImportError: xarray is not installed.
    """
    try:
        import xarray
    except ModuleNotFoundError as error:
        raise ImportError(f"A data set needs xarray ({error}). Install it with: pip install xarray") from error
    projection, run_set, words = sampling.projection, sampling.run_set, list(map(str, name_rows(sampling.run_set)))
    unit = WEIGHTS if np.allclose(np.linalg.norm(projection.components, axis=1), 1) else {"units": "filter norms"}
    axes = [
        {"long_name": f"{name} ({share:.1%} of the variance)", **unit}
        for name, share in zip(projection.axes, projection.explained_variance_ratio, strict=True)
    ]
    variables: dict[str, Any] = {
        "loss": (("y", "x"), loss, {"long_name": "loss, blended from planes along the run"}),
        "support": (("y", "x"), sampling.support, {"long_name": "how near the run is, from 0 to 1"}),
        "path_x": ("step", projection.path[:, 0], axes[0]),
        "path_y": ("step", projection.path[:, 1], axes[1]),
        "path_loss": ("step", run_set.loss, {"long_name": "true loss of the run"}),
        "path_height": ("step", path_height, {"long_name": "surface under the run"}),
        "off_plane": ("step", projection.off_plane, {"long_name": "distance of the run from the plane", **WEIGHTS}),
    }
    coords: dict[str, Any] = {
        "x": ("x", sampling.x, axes[0]),
        "y": ("y", sampling.y, axes[1]),
        "step": ("step", run_set.step, {"long_name": "training step"}),
        "run": ("step", words, {"long_name": "which run the step is of"}),
    }
    if len(sampling.anchors):
        coords["anchor"] = (
            "anchor",
            sampling.anchors,
            {"long_name": "place among the steps of a plane that was blended"},
        )
        variables["sigma"] = "anchor", kernel.width, {"long_name": "width of the kernel on the path", **unit}
    about = {
        "title": f"Loss landscape of {', '.join(dict.fromkeys(words))}",
        "source": f"loss_viz {version('loss_viz')}",
        "explained_variance_ratio": projection.explained_variance_ratio,
        "settings": to_json(settings),
    }
    return xarray.Dataset(variables, coords, about)


def write_tables(
    folder: str | os.PathLike[str],
    sampling: Sampling,
    loss: Float[np.ndarray, "n_y n_x"],
    path_height: Float[np.ndarray, " n_steps"],
    settings: Mapping[str, Any],
) -> tuple[Path, Path]:
    """Write `surface.csv` and `path.csv`, as `Landscape.to_csv` says.

    Raises:
        OSError: the folder cannot be made, or written to.
    """
    x, y = np.meshgrid(sampling.x, sampling.y)
    run_set, projection = sampling.run_set, sampling.projection
    surface = zip(*(part.ravel().tolist() for part in (x, y, loss, sampling.support)), strict=True)
    columns = [run_set.step, *projection.path.T, run_set.loss, path_height, projection.off_plane]
    path = zip(name_rows(run_set), *(column.tolist() for column in columns), strict=True)
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    files = place / "surface.csv", place / "path.csv"
    with ExitStack() as stack:  # both are complete before one of them takes its place
        parts = [stack.enter_context(write_whole(file)) for file in files]
        for part, names, rows in zip(parts, (SURFACE_COLUMNS, PATH_COLUMNS), (surface, path), strict=True):
            _write_table(part, names, rows, to_json(settings))
    return files


def _write_table(path: Path, names: Sequence[str], rows: Iterable[Sequence[Any]], comment: str) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        file.write(f"{COMMENT}{comment}\n")
        writer = csv.writer(file, lineterminator="\n")  # numbers in the fewest digits that bring them back exactly
        writer.writerow(names)
        writer.writerows(rows)


def name_rows(run_set: RunSet) -> list[str]:
    """For each row of a bundle what its run is called."""
    called = [
        name or run.name or (run.task.name if run.task else "run")
        for name, run in zip(run_set.names, run_set.runs, strict=True)
    ]
    return [name for name, run in zip(called, run_set.runs, strict=True) for _ in range(len(run))]


@dataclass(frozen=True, eq=False)
class Surface:
    """Blended heights over a grid, without the path under them. All arrays are read-only.

    Attributes:
        x: `(n_x,)`, coordinates along PC1, in units of weights.
        y: `(n_y,)`, coordinates along PC2.
        loss: `(n_y, n_x)`, row = PC2, column = PC1.
        support: `(n_y, n_x)`, near 0 where the surface extrapolates.
        n_evaluations: losses on which it rests.
    """

    x: Float[np.ndarray, " n_x"]
    y: Float[np.ndarray, " n_y"]
    loss: Float[np.ndarray, "n_y n_x"]
    support: Float[np.ndarray, "n_y n_x"]
    n_evaluations: int

    def __post_init__(self) -> None:
        for array in (self.x, self.y, self.loss, self.support):
            array.setflags(write=False)


@dataclass(frozen=True, eq=False)
class Landscape:
    """Loss over the PC plane of one run or several, beside what is known about its truth. All arrays are read-only.

    Arrays over steps hold all recorded steps; with several runs those of one run after those of the other, as
    `bundle.rows` tells.

    What it does not show: off the path there is no ground truth, for every net that projects to a point is a
    candidate for it. Where the path passes over itself at different losses the surface can show only one of them.
    And local planes hold almost nothing of the steepest direction of the loss: the valley's walls are not in it.

    Attributes:
        run_set: the runs that it is of.
        x: `(n_x,)`, coordinates along PC1, in units of weights.
        y: `(n_y,)`, coordinates along PC2.
        loss: `(n_y, n_x)`, blended heights; row = PC2, column = PC1, as `plotly.graph_objects.Surface` takes it.
        support: `(n_y, n_x)`, exp(-d² / (2 (0.03 diag)²)) for the distance d to the path: near 0 the surface
            extrapolates.
        path: `(n_steps, 2)`, the run on the plane.
        path_loss: `(n_steps,)`, its true losses.
        path_height: `(n_steps,)`, the surface under it; `fidelity` compares the two.
        off_plane: `(n_steps,)`, distance of the run from the PC plane, in units of weights.
        explained_variance_ratio: `(2,)`; it does not measure fidelity.
        anchors: `(n_anchors,)`, rows whose planes were blended.
        plane: which planes.
        k: stride of velocity and acceleration, in recorded steps.
        sigma: bandwidth as it was asked for.
        sigma_absolute: `(n_anchors,)`, kernel widths on the path, in units of weights.
        kernel: the weights of the planes.
        sampling: all that was settled before the kernel, and what was evaluated for it.
        n_evaluations: losses on which it rests.

    Example:
        >>> import loss_viz as lv
        >>> run = lv.train("x^2", steps=60, progress=False)
        >>> land = lv.landscape(run, resolution=(9, 7), progress=False)
        >>> land.loss.shape, land.path.shape, land.path_height.shape
        ((7, 9), (61, 2), (61,))
        >>> bool(np.abs(land.at(land.path[:3]) / run.loss[:3] - 1).max() < 0.02)  # the surface under the first steps
        True
    """

    sampling: Sampling
    kernel: Kernel
    loss: Float[np.ndarray, "n_y n_x"]
    path_height: Float[np.ndarray, " n_steps"]
    n_evaluations: int

    def __post_init__(self) -> None:
        for array in (self.x, self.y, self.loss, self.support, self.path_height, self.anchors):
            array.setflags(write=False)

    def __repr__(self) -> str:
        size = f"{len(self.x)} x {len(self.y)}"
        runs = ", ".join(map(repr, self.runs))
        return f"Landscape({self.plane} planes, {size}, k={self.k}, sigma={self.sigma!r}, of {runs})"

    @property
    def runs(self) -> tuple[Run, ...]:
        """All runs in it."""
        return self.run_set.runs

    @property
    def run(self) -> Run:
        """The run, the first one of several."""
        return self.run_set.runs[0]

    @property
    def run_set(self) -> RunSet:
        """The runs that it is of, one after the other."""
        return self.sampling.run_set

    @property
    def projection(self) -> Projection:
        """The plane of the picture."""
        return self.sampling.projection

    @property
    def planes(self) -> Planes:
        """The planes that were blended."""
        return self.sampling.planes

    @property
    def anchors(self) -> Int[np.ndarray, " n_anchors"]:
        """Rows whose planes were blended."""
        return self.sampling.anchors

    @property
    def plane(self) -> str:
        """Which planes."""
        return self.sampling.plane

    @property
    def k(self) -> int:
        """Stride of velocity and acceleration, in recorded steps."""
        return self.sampling.k

    @property
    def sigma(self) -> float | str:
        """Bandwidth as it was asked for."""
        return self.kernel.sigma

    @property
    def x(self) -> Float[np.ndarray, " n_x"]:
        """Coordinates along PC1, in units of weights."""
        return self.sampling.x

    @property
    def y(self) -> Float[np.ndarray, " n_y"]:
        """Coordinates along PC2."""
        return self.sampling.y

    @property
    def support(self) -> Float[np.ndarray, "n_y n_x"]:
        """exp(-d² / (2 (0.03 diag)²)) for the distance d to the path."""
        return self.sampling.support

    @property
    def path(self) -> Float[np.ndarray, "n_steps 2"]:
        """The run on the plane."""
        return self.projection.path

    @property
    def path_loss(self) -> Float[np.ndarray, " n_steps"]:
        """The runs' true losses."""
        return self.run_set.loss

    @property
    def off_plane(self) -> Float[np.ndarray, " n_steps"]:
        """Distance of the run from the PC plane, in units of weights."""
        return self.projection.off_plane

    @property
    def explained_variance_ratio(self) -> Float[np.ndarray, " 2"]:
        """Shares of the variance of the weights along PC1 and PC2."""
        return self.projection.explained_variance_ratio

    @property
    def sigma_absolute(self) -> Float[np.ndarray, " n_anchors"]:
        """Kernel widths on the path, in units of weights; all equal for a fixed `sigma`."""
        return self.kernel.width

    @property
    def settings(self) -> dict[str, Any]:
        """What it was made with, in plain values: `"landscape"`, the arguments of `loss_viz.landscape`, and `"runs"`.

        `"train"` of each run holds the arguments of `loss_viz.train`, or None for a run of your own.
        """
        return describe_settings(self.sampling, self.sigma)

    def to_json(self) -> str:
        """Its settings as one line of JSON."""
        return to_json(self.settings)

    def to_xarray(self) -> Any:
        """Its numbers as an `xarray.Dataset`; `land.to_xarray().to_netcdf("land.nc")` writes them to a file.

        Dimensions are `y` and `x` for `loss` and `support`; `step` for `path_x`, `path_y`, `path_loss`,
        `path_height` and `off_plane`, with the steps of several runs one after the other, told apart by the
        coordinate `run`; and `anchor`, a place among them, for `sigma`. The attribute `settings` holds its settings
        as JSON.

        Raises:
            ImportError: xarray is not installed.
        """
        return build_dataset(self.sampling, self.kernel, self.loss, self.path_height, self.settings)

    def to_csv(self, folder: str | os.PathLike[str]) -> tuple[Path, Path]:
        """Write its numbers to two tables in a folder, which is made where it is not there.

        `surface.csv` has a row for each point of the grid: x, y, loss, support. `path.csv` has a row for each step:
        run, step, x, y, its true loss, the height of the surface there, and the distance off the plane. Numbers are
        written in as many digits as bring them back exactly. The first line of each is a comment with its settings:
        `pandas.read_csv(path, skiprows=1)`.

        Returns:
            The paths of both.

        Raises:
            OSError: the folder cannot be made, or written to.

        Example:
            >>> import loss_viz as lv
            >>> from tempfile import mkdtemp
            >>> land = lv.landscape(lv.train("x^2", steps=60, progress=False), resolution=9, progress=False)
            >>> surface, path = land.to_csv(mkdtemp())
            >>> x, y, loss, support = np.loadtxt(surface, delimiter=",", skiprows=2).T
            >>> bool((loss == land.loss.ravel()).all())
            True
        """
        return write_tables(folder, self.sampling, self.loss, self.path_height, self.settings)

    def at(self, points: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, " n"]:
        """Blended heights `(n,)` at any `points` `(n, 2)` of the plane.

        Raises:
            TypeError: no array of numbers.
            ValueError: points of another shape, or not finite, or so far away that no distance can be told.
        """
        points = check_array("points", points, ("n", 2), advice="For one point pass point[None].").astype(np.float64)
        if not len(points):
            return np.empty(0)
        if not np.isfinite(points).all():
            raise ValueError("`points` must be finite, some are nan or inf. Leave those rows out.")
        if (np.abs(points) > LARGEST).any():
            raise ValueError(f"`points` must lie within {LARGEST:g}, some do not. Leave those rows out.")
        return PlaneLosses(points, self.planes, self.run_set.objective).blend(self.kernel, tqdm(disable=True))[0]


def check_landscape(landscape: Any) -> None:
    """Refuse what is no landscape, such as a run.

    Raises:
        TypeError: it is something else.
    """
    check_type("landscape", landscape, Landscape, "a Landscape", advice="Pass what `loss_viz.landscape` returns.")


def blend_surface(sampling: Sampling, kernel: Kernel, bar: tqdm) -> Surface:
    """The heights over the grid of a survey."""
    heights, n_evaluations = sampling.grid.blend(kernel, bar)
    shape = len(sampling.y), len(sampling.x)
    return Surface(sampling.x, sampling.y, heights.reshape(shape), sampling.support, n_evaluations)


def blend_path(sampling: Sampling, surface: Surface, kernel: Kernel, bar: tqdm) -> Landscape:
    """The landscape of a survey: a surface of it, completed by the heights under the run."""
    path_height, n_evaluations = sampling.path.blend(kernel, bar)
    return Landscape(sampling, kernel, surface.loss, path_height, surface.n_evaluations + n_evaluations)
