"""Landscapes as image and video files."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm
from tqdm.auto import tqdm as progress_bar

from loss_viz._files import check_destination, write_whole
from loss_viz.figures.surface import choose_steps
from loss_viz.landscapes.landscape import Landscape
from loss_viz.landscapes.provenance import to_json

LEAST, MOST = (320, 240), 4096  # pixels of a side; the words need as much

MOST_PIXELS = 20_000_000

DURATIONS = 20, 10_000  # milliseconds of a frame; browsers slow down what is faster

LONGEST = 60_000  # of the last one


@dataclass(frozen=True)
class FrameSequence:
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
) -> FrameSequence:
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
) -> FrameSequence:
    """One still; the arguments are those of `export_png`.

    Raises:
        ValueError: a step outside the run, a size out of its range, or `log=True` with a loss that is not positive.
        ImportError: matplotlib is not installed.
    """
    landscape.run_set.find_rows(step)
    _check_size(width, height, scale)
    look = {"log": log, "min_support": min_support, "turn": turn}
    view = {"step": step, "width": width, "height": height, "scale": scale, **look}
    return _load("export_png", landscape, [(step, float(turn))], view)


def _load(
    export: str,
    landscape: Landscape,
    shots: Sequence[tuple[int, float]],
    view: dict[str, Any],
) -> FrameSequence:
    try:
        from loss_viz.export.scene import Scene
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
    return FrameSequence(scene, shots, to_json(landscape.settings | {"export": export, "view": view}))


def _check_size(width: int, height: int, scale: int) -> None:
    for name, side, least in zip(("width", "height"), (width, height), LEAST, strict=True):
        if not least <= side <= MOST:
            raise ValueError(f"`{name}` must be from {least} to {MOST} pixels, got {side}. Use 800 x 600.")
    if scale < 1 or width * height * scale**2 > MOST_PIXELS:
        raise ValueError(
            f"`scale` must be at least 1, and a picture have at most {MOST_PIXELS:,} pixels; got {scale}, which makes "
            f"{width * scale} x {height * scale}. Use 2, or 4 for print."
        )


KEY = "loss_viz"  # of the text in a PNG

N_SAMPLES = 6  # stills from which the colours of a GIF are chosen


def export_png(
    landscape: Landscape,
    path: str | os.PathLike[str],
    *,
    step: int | None = None,
    width: int = 800,
    height: int = 600,
    scale: int = 2,
    log: bool = False,
    min_support: float = 0.0,
    turn: float = 0.0,
) -> Path:
    """Write one still of a landscape: the surface, the run at its true losses, and the ball.

    It shows what `surface_figure` does, from the same side, and needs neither a browser nor a graphics card. The
    settings that made it are in the file, and `loss_viz.read_settings` hands them back.

    Args:
        landscape: of one run or of several.
        path: ends in `.png`; a file that is there is replaced when the new one is complete.
        step: the training step at which the ball lies; the last one by default.
        width: of the picture, in pixels on a page.
        height: likewise.
        scale: how many pixels each of them is made of, along each side; 3 or 4 for print.
        log: draw the loss on a logarithmic axis.
        min_support: leave the surface open where its support is below this, from 0 to 1.
        turn: degrees to walk around the box, from where the interactive figure is seen.

    Returns:
        The path.

    Raises:
        ValueError: another suffix, a step outside the run, a size out of its range, or `log=True` with a loss that is
            not positive.
        OSError: the folder is missing or cannot be written to.
        ImportError: matplotlib is not installed.

    Example:
        >>> import loss_viz as lv
        >>> from tempfile import mkdtemp
        >>> land = lv.landscape(lv.train("x^2", steps=60, progress=False), resolution=9, progress=False)
        >>> path = export_png(land, f"{mkdtemp()}/still.png", step=30, width=400, height=300)
        >>> lv.read_settings(path)["view"]["step"]
        30
    """
    place = check_destination(path, ".png", "A film is written by export_gif or export_mp4.")
    step = landscape.run_set.last_step if step is None else step
    sequence = load_still(
        landscape, step, width=width, height=height, scale=scale, log=log, min_support=min_support, turn=turn
    )
    from PIL.PngImagePlugin import PngInfo

    about = PngInfo()
    about.add_text(KEY, sequence.settings)
    [still] = sequence.play()
    with write_whole(place) as part:
        still.save(part, pnginfo=about, dpi=(96 * scale, 96 * scale))
    return place


def export_gif(
    landscape: Landscape,
    path: str | os.PathLike[str],
    *,
    n_frames: int = 60,
    width: int = 800,
    height: int = 600,
    log: bool = False,
    min_support: float = 0.0,
    turn: float = 0.0,
    duration: int = 60,
    hold: int = 1500,
    progress: bool = True,
) -> Path:
    """Write a film in which the ball rolls along the run, as a GIF that every page and slide shows; it repeats.

    Each frame stands at a recorded step and tells its true loss; several runs race. Frames are spread as those of
    `animate`, half by arc length and half by time. It needs neither a browser nor a graphics card. The settings
    that made it are in the file, and `loss_viz.read_settings` hands them back.

    Args:
        landscape: of one run or of several.
        path: ends in `.gif`; a file that is there is replaced when the new one is complete.
        n_frames: at most so many; at least 2.
        width: in pixels.
        height: likewise.
        log: draw the loss on a logarithmic axis.
        min_support: leave the surface open where its support is below this, from 0 to 1.
        turn: degrees to walk around the box until the end. The file grows tenfold; 0 stands still.
        duration: of a frame, in milliseconds, of which a GIF keeps hundredths of a second.
        hold: how long the last frame is shown, likewise.
        progress: show a progress bar when it takes more than a second.

    Returns:
        The path.

    Raises:
        ValueError: another suffix, fewer than two frames, a size or a duration out of its range, or `log=True` with a
            loss that is not positive.
        OSError: the folder is missing or cannot be written to.
        ImportError: matplotlib is not installed.

    Example:
        >>> import loss_viz as lv
        >>> from tempfile import mkdtemp
        >>> land = lv.landscape(lv.train("x^2", steps=60, progress=False), resolution=9, progress=False)
        >>> path = export_gif(land, f"{mkdtemp()}/film.gif", n_frames=5, width=400, height=300)
        >>> lv.read_settings(path)["view"]["n_frames"]
        5
    """
    place = check_destination(path, ".gif", "A still is written by export_png, a video by export_mp4.")
    sequence = load_film(
        "export_gif",
        landscape,
        n_frames=n_frames,
        width=width,
        height=height,
        log=log,
        min_support=min_support,
        turn=turn,
        duration=duration,
        hold=hold,
    )
    from loss_viz.export.palettes import choose_palette

    samples = np.unique(np.linspace(0, len(sequence.shots) - 1, N_SAMPLES).astype(int)).tolist()
    with _open_bar(place, len(samples) + len(sequence.shots), progress) as bar, write_whole(place) as part:
        palette = choose_palette(list(sequence.play(bar, samples)))
        frames = (palette.reduce(still) for still in sequence.play(bar))
        durations = [duration] * (len(sequence.shots) - 1) + [max(duration, hold)]
        about: dict[str, Any] = {"duration": durations, "loop": 0, "comment": sequence.settings.encode()}
        with part.open("wb") as file:
            next(frames).save(file, format="GIF", save_all=True, append_images=frames, **about)
    return place


def export_mp4(
    landscape: Landscape,
    path: str | os.PathLike[str],
    *,
    n_frames: int = 60,
    width: int = 800,
    height: int = 600,
    log: bool = False,
    min_support: float = 0.0,
    turn: float = 0.0,
    duration: int = 60,
    hold: int = 1500,
    progress: bool = True,
) -> Path:
    """Write the same film as `export_gif` as a video in H.264, in all colours; a small file even when it turns.

    Args:
        landscape: of one run or of several.
        path: ends in `.mp4`; a file that is there is replaced when the new one is complete.
        n_frames: at most so many; at least 2.
        width: in pixels; even.
        height: likewise.
        log: draw the loss on a logarithmic axis.
        min_support: leave the surface open where its support is below this, from 0 to 1.
        turn: degrees to walk around the box until the end.
        duration: of a frame, in milliseconds.
        hold: how long the last frame is shown, likewise.
        progress: show a progress bar when it takes more than a second.

    Returns:
        The path.

    Raises:
        ValueError: as `export_gif` does; a side that is not even.
        OSError: the folder is missing or cannot be written to.
        ImportError: matplotlib or imageio-ffmpeg is not installed.

    Example:
        >>> import loss_viz as lv
        >>> from tempfile import mkdtemp
        >>> land = lv.landscape(lv.train("x^2", steps=60, progress=False), resolution=9, progress=False)
        >>> path = export_mp4(land, f"{mkdtemp()}/film.mp4", n_frames=5, width=400, height=300)
        >>> lv.read_settings(path)["export"]
        'export_mp4'
    """
    place = check_destination(path, ".mp4", "A still is written by export_png, a GIF by export_gif.")
    if width % 2 or height % 2:
        raise ValueError(f"A video needs an even `width` and `height`, got {width} x {height}. Add a pixel.")
    write_frames = _find_encoder()
    sequence = load_film(
        "export_mp4",
        landscape,
        n_frames=n_frames,
        width=width,
        height=height,
        log=log,
        min_support=min_support,
        turn=turn,
        duration=duration,
        hold=hold,
    )
    tell = ["-metadata", f"comment={sequence.settings}", "-movflags", "+faststart", "-crf", "20"]
    looks: dict[str, Any] = {"fps": 1000 / duration, "quality": None, "macro_block_size": 2, "output_params": tell}
    n_last = max(1, round(hold / duration))  # a video has no frame that is longer than others
    with _open_bar(place, len(sequence.shots), progress) as bar, write_whole(place) as part:
        video = write_frames(str(part), (width, height), **looks)
        try:
            video.send(None)
            for i, still in enumerate(sequence.play(bar), start=1):
                for _ in range(n_last if i == len(sequence.shots) else 1):
                    video.send(still.tobytes())
        finally:
            video.close()
    return place


def _open_bar(place: Path, total: int, progress: bool) -> tqdm:
    return progress_bar(total=total, desc=place.name, delay=1, leave=False, disable=not progress)


def _find_encoder() -> Any:
    """`imageio_ffmpeg.write_frames`, if there is an ffmpeg for it."""
    try:
        from imageio_ffmpeg import get_ffmpeg_exe, write_frames

        get_ffmpeg_exe()
    except (ModuleNotFoundError, RuntimeError) as error:  # it may hold no ffmpeg for this kind of machine
        raise ImportError(
            f"Videos need ffmpeg ({error}). Install it with: pip install imageio-ffmpeg. A GIF does without."
        ) from error
    return write_frames
