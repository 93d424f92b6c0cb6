"""The numbers of a landscape for those who plot elsewhere: a labelled data set, and plain tables."""

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from .bundle import Bundle
from .describing import to_json
from .files import write_whole
from .kernels import Kernel
from .surveys import Survey

COMMENT = "# "
SURFACE = ("x", "y", "loss", "support")
PATH = ("run", "step", "x", "y", "loss", "height", "off_plane")
WEIGHTS = {"units": "weights"}


def build_dataset(
    around: Survey,
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
    projection, bundle, words = around.projection, around.bundle, list(map(str, name_rows(around.bundle)))
    unit = WEIGHTS if np.allclose(np.linalg.norm(projection.components, axis=1), 1) else {"units": "filter norms"}
    axes = [
        {"long_name": f"{name} ({share:.1%} of the variance)", **unit}
        for name, share in zip(projection.axes, projection.explained_variance_ratio, strict=True)
    ]
    variables: dict[str, Any] = {
        "loss": (("y", "x"), loss, {"long_name": "loss, blended from planes along the run"}),
        "support": (("y", "x"), around.support, {"long_name": "how near the run is, from 0 to 1"}),
        "path_x": ("step", projection.path[:, 0], axes[0]),
        "path_y": ("step", projection.path[:, 1], axes[1]),
        "path_loss": ("step", bundle.loss, {"long_name": "true loss of the run"}),
        "path_height": ("step", path_height, {"long_name": "surface under the run"}),
        "off_plane": ("step", projection.off_plane, {"long_name": "distance of the run from the plane", **WEIGHTS}),
    }
    coords: dict[str, Any] = {
        "x": ("x", around.x, axes[0]),
        "y": ("y", around.y, axes[1]),
        "step": ("step", bundle.step, {"long_name": "training step"}),
        "run": ("step", words, {"long_name": "which run the step is of"}),
    }
    if len(around.anchors):
        coords["anchor"] = "anchor", around.anchors, {"long_name": "place among the steps of a plane that was blended"}
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
    around: Survey,
    loss: Float[np.ndarray, "n_y n_x"],
    path_height: Float[np.ndarray, " n_steps"],
    settings: Mapping[str, Any],
) -> tuple[Path, Path]:
    """Write `surface.csv` and `path.csv`, as `Landscape.to_csv` says.

    Raises:
        OSError: the folder cannot be made, or written to.
    """
    x, y = np.meshgrid(around.x, around.y)
    bundle, projection = around.bundle, around.projection
    surface = zip(*(part.ravel().tolist() for part in (x, y, loss, around.support)), strict=True)
    columns = [bundle.step, *projection.path.T, bundle.loss, path_height, projection.off_plane]
    path = zip(name_rows(bundle), *(column.tolist() for column in columns), strict=True)
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    files = place / "surface.csv", place / "path.csv"
    with ExitStack() as stack:  # both are complete before one of them takes its place
        parts = [stack.enter_context(write_whole(file)) for file in files]
        for part, names, rows in zip(parts, (SURFACE, PATH), (surface, path), strict=True):
            _write_table(part, names, rows, to_json(settings))
    return files


def _write_table(path: Path, names: Sequence[str], rows: Iterable[Sequence[Any]], comment: str) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        file.write(f"{COMMENT}{comment}\n")
        writer = csv.writer(file, lineterminator="\n")  # numbers in the fewest digits that bring them back exactly
        writer.writerow(names)
        writer.writerows(rows)


def name_rows(bundle: Bundle) -> list[str]:
    """For each row of a bundle what its run is called."""
    called = [
        name or run.name or (run.task.name if run.task else "run")
        for name, run in zip(bundle.names, bundle.runs, strict=True)
    ]
    return [name for name, run in zip(called, bundle.runs, strict=True) for _ in range(len(run))]
