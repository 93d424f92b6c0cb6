"""What is to be shot for a still or a film, checked before any work begins."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from .animation import choose_steps
from .describing import to_json
from .landscapes import Landscape

LEAST, MOST = (320, 240), 4096  # pixels of a side; the words need as much
MOST_PIXELS = 20_000_000
DURATIONS = 20, 10_000  # milliseconds of a frame; browsers slow down what is faster
LONGEST = 60_000  # of the last one


@dataclass(frozen=True)
class Reel:
    """Stills to be shot one after the other.

    Attributes:
        scene: the landscape in its box.
        shots: for each still its training step, and by how many degrees the box is turned.
        settings: what the film is made with, as JSON.
    """

    scene: Any
    shots: Sequence[tuple[int, float]]
    settings: str

    def play(self, bar: tqdm | None = None, chosen: Sequence[int] | None = None) -> Iterator[Any]:
        """The stills, or those of them that are chosen, as images of Pillow, each when it is asked for."""
        for i in range(len(self.shots)) if chosen is None else chosen:
            yield self.scene.shoot(*self.shots[i])
            if bar is not None:
                bar.update()


def load_film(
    export: str,
    landscape: Landscape,
    *,
    n_frames: int,
    width: int,
    height: int,
    log: bool,
    min_support: float,
    turn: float,
    duration: int,
    hold: int,
) -> Reel:
    """The stills of a film along the runs; the arguments are those of the function that `export` names.

    Raises:
        ValueError: fewer than two frames, a size or a duration out of its range, or `log=True` with a loss that is not
            positive.
        ImportError: matplotlib is not installed.
    """
    _check_size(width, height, 1)
    least, most = DURATIONS
    if not least <= duration <= most:
        raise ValueError(f"`duration` must be from {least} to {most} milliseconds, got {duration}. Use 60.")
    if not 0 <= hold <= LONGEST:
        raise ValueError(f"`hold` must be from 0 to {LONGEST} milliseconds, got {hold}. Use 1500.")
    steps = choose_steps(landscape, n_frames).tolist()
    shots = list(zip(steps, np.linspace(0.0, turn, len(steps)).tolist(), strict=True))
    look = {"log": log, "min_support": min_support, "turn": turn}
    view = {"n_frames": n_frames, "width": width, "height": height, **look, "duration": duration, "hold": hold}
    return _load(export, landscape, shots, view)


def load_still(
    landscape: Landscape,
    step: int,
    *,
    width: int,
    height: int,
    scale: int,
    log: bool,
    min_support: float,
    turn: float,
) -> Reel:
    """One still; the arguments are those of `export_png`.

    Raises:
        ValueError: a step outside the run, a size out of its range, or `log=True` with a loss that is not positive.
        ImportError: matplotlib is not installed.
    """
    landscape.bundle.find_rows(step)
    _check_size(width, height, scale)
    look = {"log": log, "min_support": min_support, "turn": turn}
    view = {"step": step, "width": width, "height": height, "scale": scale, **look}
    return _load("export_png", landscape, [(step, float(turn))], view)


def _load(
    export: str,
    landscape: Landscape,
    shots: Sequence[tuple[int, float]],
    view: dict[str, Any],
) -> Reel:
    try:
        from .scene import Scene
    except ModuleNotFoundError as error:
        raise ImportError(
            f"Pictures and films in files need matplotlib ({error}). Install it with: pip install matplotlib"
        ) from error
    scene = Scene(
        landscape,
        size=(view["width"], view["height"]),
        scale=view.get("scale", 1),
        log=view["log"],
        min_support=view["min_support"],
        turns=sorted({turn for _, turn in shots}),
    )
    return Reel(scene, shots, to_json(landscape.settings | {"export": export, "view": view}))


def _check_size(width: int, height: int, scale: int) -> None:
    for name, side, least in zip(("width", "height"), (width, height), LEAST, strict=True):
        if not least <= side <= MOST:
            raise ValueError(f"`{name}` must be from {least} to {MOST} pixels, got {side}. Use 800 x 600.")
    if scale < 1 or width * height * scale**2 > MOST_PIXELS:
        raise ValueError(
            f"`scale` must be at least 1, and a picture have at most {MOST_PIXELS:,} pixels; got {scale}, which makes "
            f"{width * scale} x {height * scale}. Use 2, or 4 for print."
        )
