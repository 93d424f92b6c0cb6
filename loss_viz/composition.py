"""A whole screen of the panel, put together from the parts of its views."""

from collections.abc import Mapping, Sequence
from typing import Any

from .bundle import Bundle
from .folds import find_folds
from .panes import (
    Parts,
    camera_parts,
    factor_parts,
    fold_parts,
    path_parts,
    surface_parts,
    title_parts,
)
from .plateaus import Plateau
from .screen import Frame, Stays
from .surveys import Survey


def compose_frame(frame: Frame, around: Survey, settings: Mapping[str, Any], stays: Stays, *, first: bool) -> Parts:
    """All parts of a frame but the balls.

    Args:
        frame: what is to be on screen.
        around: planes and grid of its surface.
        settings: of the panel.
        stays: where the runs lie still.
        first: whether the camera is still to be placed.
    """
    bundle, scale, low = frame.bundle, frame.scale, settings["min_support"]
    parts = join_parts(
        surface_parts(frame.surface, frame.projection, scale, min_support=low),
        path_parts(bundle, frame.projection, frame.height, scale, stays.plateaus),
        fold_parts(frame.landscape, scale, frame.facts.folds if frame.facts else ()),
        factor_parts(bundle, frame.facts),
        title_parts(around, settings["sigma"], frame.landscape),
        camera_parts(frame.surface, scale) if first else {},
    )
    if (land := frame.beside) is None:
        return parts
    return join_parts(
        parts,
        surface_parts(land, land.projection, scale, min_support=low, pane="beside"),
        path_parts(bundle, land.projection, land.path_height, scale, stays.plateaus, pane="beside"),
        fold_parts(land, scale, find_folds(land), pane="beside"),
        title_parts(land.survey, settings["sigma"], land, pane="beside"),
    )


def join_parts(*several: Parts) -> Parts:
    """Parts of one picture in one; those with a name in common are put together."""
    joined: Parts = {}
    for parts in several:
        for name, values in parts.items():
            joined[name] = joined.get(name, {}) | values
    return joined


def summarize(bundle: Bundle, plateaus: Sequence[Plateau]) -> str:
    """The picture in words, for those who do not see it."""
    runs = "; ".join(
        f"{name or 'a run'} of {len(run)} steps, from loss {run.loss[0]:.3g} to {run.loss[-1]:.3g}"
        for name, run in zip(bundle.names, bundle.runs, strict=True)
    )
    sticky = "".join(
        f" It lies on a plateau at loss {plateau.level:.3g} from step {plateau.start} to {plateau.end}."
        for plateau in plateaus
        if len(bundle.runs) == 1
    )
    return f"Loss landscape of {runs}.{sticky}"
