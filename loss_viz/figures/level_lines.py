"""Level lines of a surface at round losses, and the names of the losses on them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.spatial import cKDTree

from loss_viz.figures.camera import is_seen, view_from
from loss_viz.figures.loss_axis import LINE_LIFT, Scale, write_loss
from loss_viz.landscapes.landscape import Landscape, Surface
from loss_viz.landscapes.mesh import trace_level

LEVEL_LIFT = LINE_LIFT / 3  # of the axis
NAME_ROOM = 0.12  # between a name and whatever else is drawn, as a share of the picture: more is no better
N_PLACES = 80  # that are tried for a name
ABOVE = 0.0, 0.0, 0.05  # where a name is to be seen, from its point
SHADE = 16  # of the colors, which say only whether lines and words are to be light or dark
PALER, UNSEEN = 1.2, 0.01  # by which places on strong colors, and hidden ones, still count


def level_arrays(
    surface: Surface | Landscape,
    mesh: Mapping[str, np.ndarray],
    scale: Scale,
    path: Float[np.ndarray, "n_steps 2"],
    loss: Float[np.ndarray, " n_steps"],
    eye: Mapping[str, float],
) -> dict[str, dict[str, Any]]:
    """Return `levels`, lines of the surface at round losses with a row of nan after each, and `level_names`.

    The lines are those of the drawn triangles, `LEVEL_LIFT` of the axis above them; `rgba` is the color of the surface
    there, and at the names. The name of a loss stands on one of its lines, where the surface is pale, and where the
    camera sees it far from the runs, from the edges of the picture and from other names.

    Args:
        surface: the surface.
        mesh: what `surface_arrays` returns for it.
        scale: the loss axis.
        path: the runs in the plane.
        loss: their heights.
        eye: where the camera is.
    """
    used, triangles = np.unique(np.stack([mesh[name] for name in "ijk"], axis=1), return_inverse=True)
    z = scale.draw(mesh["z"][used])
    vertices = np.column_stack([mesh["x"][used], mesh["y"][used], z, mesh["rgba"][used]])
    ends = np.array([surface.x[[0, -1]], surface.y[[0, -1]]]).T
    flat, gap = (path - ends[0]) / np.ptp(ends, axis=0), np.full((1, 7), np.nan)
    taken = [view_from(eye, np.column_stack([flat, scale.fraction(loss)]))]
    lines, names, text = [np.empty((0, 7))], [np.empty((0, 7))], []
    for value, level in zip(scale.levels(), scale.draw(scale.levels()), strict=True):
        found = trace_level(vertices[:, :3], triangles.reshape(-1, 3), float(level))
        drawn = [_follow(vertices, *line) for line in found]
        if drawn:
            lines += [row for line in drawn for row in (line, gap)]
            points = np.concatenate(drawn)
            points = points[:: 1 + len(points) // N_PLACES]
            height = np.full((len(points), 1), (level - scale.low) / (scale.high - scale.low))
            shares = np.hstack([(points[:, :2] - ends[0]) / np.ptp(ends, axis=0), height])
            paleness = PALER - points[:, 6] / 255  # words are best read on pale colors
            view = view_from(eye, shares)
            room = np.minimum(cKDTree(taken[0]).query(view)[0], 2 * np.minimum(shares, 1 - shares)[:, :2].min(axis=1))
            if names[1:]:
                room = np.minimum(room, cKDTree(np.concatenate(taken[1:])).query(view)[0] / 2)
            seen = UNSEEN + is_seen(surface, scale, shares + ABOVE, eye)
            best = int((room.clip(max=NAME_ROOM) * paleness * seen).argmax())
            taken.append(view[best : best + 1])
            names.append(points[best : best + 1])
            text.append(write_loss(float(value)))
    arrays = [_as_arrays(np.concatenate(rows), scale) for rows in (lines, names)]
    return {"levels": arrays[0], "level_names": arrays[1] | {"text": text}}


def _follow(
    vertices: Float[np.ndarray, "n 7"], edges: Int[np.ndarray, "m 2"], place: Float[np.ndarray, " m"]
) -> Float[np.ndarray, "m 7"]:
    """Return the points and colors at places on edges of the mesh."""
    start, stop = vertices[edges[:, 0]], vertices[edges[:, 1]]
    return start + place[:, None] * (stop - start)


def _as_arrays(points: Float[np.ndarray, "n 7"], scale: Scale) -> dict[str, np.ndarray]:
    x, y, height = points[:, :3].T
    z = scale.lift(10**height if scale.log else height, LEVEL_LIFT)
    rgba = (SHADE * np.rint(np.nan_to_num(points[:, 3:]) / SHADE)).clip(max=255).astype(np.uint8)
    return {"x": x, "y": y, "z": z, "rgba": rgba}
