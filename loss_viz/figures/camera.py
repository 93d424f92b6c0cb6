"""The camera of a surface: the viewpoint from which most of the run is seen."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy.ndimage import map_coordinates

from loss_viz.figures.loss_axis import Scale
from loss_viz.figures.style import BOX
from loss_viz.landscapes.landscape import Landscape, Surface

SIZE = np.array(list(BOX.values()))
RADIUS = 2.04  # from the center of the box, whose height is 0.75, at `distance` 1
AZIMUTHS = np.radians(np.arange(0, 360, 15))
ELEVATIONS = np.radians([28, 42])
CENTER = {"x": 0.0, "y": 0.0, "z": -0.16}  # below the middle, because the axes have their names there
N_POINTS = 100  # of the run
N_SAMPLES = 60  # between a point and the camera
HIDDEN_END = 0.8  # what the length counts where the end of a run is hidden
CLEARANCE = 0.02  # of the height of the box: a run on the surface is not hidden by its own place


def aim_camera(
    surface: Surface | Landscape,
    scale: Scale,
    path: Float[np.ndarray, "n_rows 2"],
    loss: Float[np.ndarray, " n_rows"],
    rows: Sequence[slice],
    *,
    distance: float,
) -> dict[str, Any]:
    """Return Plotly's camera from which most of the runs is seen.

    Of 24 directions at two heights, it takes the one with the greatest visible length of the runs: that of their
    projection, without the parts that the surface hides. The lengths of the directions beside it count half, because a
    slightly different surface may hide what is only just seen; and directions from which no end of a run is hidden are
    preferred.

    Args:
        surface: the surface.
        scale: the loss axis.
        path: the runs in the plane; parts outside the picture do not count.
        loss: their heights.
        rows: the rows of each run.
        distance: of the camera; at 1 the box fills a square scene.
    """
    runs = [_place(surface, scale, path[one], loss[one]) for one in rows]
    ground = scale.fraction(surface.loss)
    eyes = _list_eyes()
    lengths = np.array([sum(_visible_length(surface, ground, points, eye) for points in runs) for eye in eyes])
    around = lengths.reshape(len(ELEVATIONS), len(AZIMUTHS))
    smooth = (2 * around + np.roll(around, 1, axis=1) + np.roll(around, -1, axis=1)).ravel() / 4
    ends = np.concatenate([points[-1:] for points in runs])
    hidden = np.array([not _is_visible(surface, ground, ends, eye).all() for eye in eyes])
    eye = distance * eyes[int(np.argmax(np.round(smooth * np.where(hidden, HIDDEN_END, 1), 6)))]
    return {"eye": dict(zip("xyz", eye.tolist(), strict=True)), "center": CENTER}


def aim(landscape: Landscape, scale: Scale, *, distance: float) -> dict[str, Any]:
    """Return the camera of a complete landscape, see `aim_camera`."""
    rows = landscape.run_set.rows
    return aim_camera(landscape, scale, landscape.path, landscape.path_loss, rows, distance=distance)


def _list_eyes() -> Float[np.ndarray, "n_eyes 3"]:
    elevation, azimuth = (angle.ravel() for angle in np.meshgrid(ELEVATIONS, AZIMUTHS, indexing="ij"))
    flat = np.cos(elevation)
    return RADIUS * np.column_stack([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)])


def _place(
    surface: Surface | Landscape,
    scale: Scale,
    path: Float[np.ndarray, "n_steps 2"],
    loss: Float[np.ndarray, " n_steps"],
) -> Float[np.ndarray, "n 3"]:
    """Return points of the run in the box around the origin, about evenly spaced along it."""
    low, high = np.array([[axis[0], axis[-1]] for axis in (surface.x, surface.y)]).T
    inside = ((path >= low) & (path <= high)).all(axis=1)
    share = np.column_stack([(path - low) / (high - low), scale.fraction(loss)])[inside]
    points = (share - 0.5) * SIZE
    if len(points) <= N_POINTS:
        return points
    along = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    rows = np.searchsorted(along, np.linspace(0, along[-1], N_POINTS))
    return points[np.unique(rows.clip(max=len(points) - 1))]


def _visible_length(
    surface: Surface | Landscape,
    ground: Float[np.ndarray, "n_y n_x"],
    points: Float[np.ndarray, "n 3"],
    eye: Float[np.ndarray, " 3"],
) -> float:
    """Return the length of the run as seen from `eye`, without the segments of which an end is hidden."""
    shown = _is_visible(surface, ground, points, eye)
    forward = -eye / np.linalg.norm(eye)
    steps = np.diff(points, axis=0)
    across = np.linalg.norm(steps - np.outer(steps @ forward, forward), axis=1)
    return float(across[shown[1:] & shown[:-1]].sum())


def view_from(eye: Mapping[str, float], shares: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 2"]:
    """Return where points of the picture, as shares of its sides, appear to a camera far away: to the right, and up."""
    x, y, z = (eye[axis] for axis in "xyz")
    right = np.array([-y, x, 0.0]) / np.hypot(x, y)
    up = np.cross([x, y, z], right) / np.linalg.norm([x, y, z])
    return (shares - 0.5) * SIZE @ np.stack([right, up], axis=1)


def is_seen(
    surface: Surface | Landscape, scale: Scale, shares: Float[np.ndarray, "n 3"], eye: Mapping[str, float]
) -> Bool[np.ndarray, " n"]:
    """Return which points of the picture, as shares of its sides, are seen from the camera."""
    camera = np.array([eye[axis] for axis in "xyz"])
    return _is_visible(surface, scale.fraction(surface.loss), (shares - 0.5) * SIZE, camera)


def _is_visible(
    surface: Surface | Landscape,
    ground: Float[np.ndarray, "n_y n_x"],
    points: Float[np.ndarray, "n 3"],
    eye: Float[np.ndarray, " 3"],
) -> Bool[np.ndarray, " n"]:
    """Return which points are seen from `eye`: the line of sight stays above the surface inside the box."""
    shares = (np.arange(1, N_SAMPLES + 1) / N_SAMPLES)[:, None, None] * 0.75  # the camera is outside the box
    rays = points + shares * (eye - points)
    x, y, z = np.moveaxis(rays / SIZE + 0.5, -1, 0)
    n_y, n_x = ground.shape
    rows = np.interp(y, _shares(surface.y), np.arange(n_y))
    places = np.stack([rows, np.interp(x, _shares(surface.x), np.arange(n_x))])
    above = z + CLEARANCE >= map_coordinates(ground, places, order=1)
    outside = (x < 0) | (x > 1) | (y < 0) | (y > 1) | (z > 1)
    return (above | outside).all(axis=0)


def _shares(ends: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    return (ends - ends[0]) / (ends[-1] - ends[0])
