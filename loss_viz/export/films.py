"""Films of a landscape: GIF and MP4."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm
from tqdm.auto import tqdm as progress_bar

from loss_viz._files import atomic_write, check_destination
from loss_viz._validation import argument_error, check_bool, check_int, extra_error
from loss_viz.export.images import check_look, check_matplotlib
from loss_viz.figures.surface import choose_steps
from loss_viz.landscapes.landscape import Landscape, check_landscape
from loss_viz.settings import to_json

MIN_SIZE, MAX_SIDE = {"width": 320, "height": 240}, 4096  # pixels; the captions need that much room
DPI, REFERENCE_SIZE, MIN_ZOOM = 100, (800, 600), 0.6  # text grows with the frames; in small ones it stays legible
DURATIONS = 20, 10_000  # milliseconds per frame; browsers slow down shorter ones
MAX_LAST_FRAME = 60_000  # milliseconds
N_SAMPLES = 6  # frames from which the colors of a GIF are chosen
DITHER = 12  # peak-to-peak amplitude of the dither pattern, in 8-bit levels: hides the steps between 256 colors


def export_gif(
    landscape: Landscape,
    path: str | os.PathLike[str],
    *,
    n_frames: int = 60,
    width: int = 800,
    height: int = 600,
    log: bool = False,
    min_support: float = 0.0,
    rotate: float = 0.0,
    notes: bool = True,
    duration: int = 60,
    last_frame: int = 1500,
    progress: bool = True,
    bar: tqdm | None = None,
) -> Path:
    """Write a film of the ball rolling along the run, as an animated GIF that repeats.

    Each frame shows a recorded step and states its true loss; several runs roll at the same step. Frames are spread
    over the run as in `animate`, half by arc length and half by time. No browser or graphics card is needed. The file
    contains the settings that made it, from which `loss_viz.reproduce` computes the landscape again.

    Args:
        landscape: a landscape of one run or of several.
        path: file to write, ending in `.gif`; an existing file is replaced once the new one is complete.
        n_frames: largest number of frames, at least 2.
        width: width in pixels.
        height: height in pixels.
        log: draw the loss on a logarithmic axis.
        min_support: leave the surface open where its support is below this value, from 0 to 1.
        rotate: angle by which the viewpoint moves around the vertical axis until the last frame, in degrees. Any
            rotation makes a GIF about ten times larger.
        notes: write title, errors and warnings around the picture, and draw a color bar. Without them each frame has a
            headline, which says what the run does at its step.
        duration: time per frame, in milliseconds; a GIF stores hundredths of a second.
        last_frame: time the last frame is shown, in milliseconds.
        progress: show a progress bar if it takes more than a second.
        bar: progress bar to advance once per frame; exceptions that it raises stop the work and leave no file.

    Returns:
        The path.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if the suffix is not `.gif`, a number is out of range, or `log=True` with a loss that is not
            positive.
        OSError: if the folder does not exist or is not writable.
        ImportError: if matplotlib is not installed.

    Example:
        >>> import loss_viz as lv
        >>> from tempfile import mkdtemp
        >>> land = lv.landscape(lv.train("x^2", steps=60, progress=False), k=3, resolution=9, progress=False)
        >>> path = export_gif(land, f"{mkdtemp()}/film.gif", n_frames=5, width=400, height=300)
        >>> path.name, lv.reproduce(path, progress=False).k
        ('film.gif', 3)
    """
    place = check_destination(path, ".gif", advice="A still is written by export_image, a video by export_mp4.")
    view = {"n_frames": n_frames, "width": width, "height": height, "log": log, "min_support": min_support}
    view |= {"rotate": rotate, "notes": notes, "duration": duration, "last_frame": last_frame}
    film = _build_film("export_gif", landscape, view)
    n = len(film.shots)
    samples = np.unique(np.linspace(0, n - 1, N_SAMPLES).astype(int)).tolist()
    with _open_bar(place, len(samples) + n, progress, bar) as meter, atomic_write(place) as part:
        palette = choose_palette(list(film.render(meter, samples)))
        frames = (apply_palette(still, palette) for still in film.render(meter))
        durations = [duration] * (n - 1) + [max(duration, last_frame)]
        options: dict[str, Any] = {"duration": durations, "loop": 0, "comment": film.settings.encode()}
        with part.open("wb") as file:
            next(frames).save(file, format="GIF", save_all=True, append_images=frames, **options)
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
    rotate: float = 0.0,
    notes: bool = True,
    duration: int = 60,
    last_frame: int = 1500,
    progress: bool = True,
    bar: tqdm | None = None,
) -> Path:
    """Write the film of `export_gif` as an H.264 video: in full color, and small even if the view rotates.

    The arguments are those of `export_gif`, except that `path` ends in `.mp4` and `width` and `height` are even.

    Returns:
        The path.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: as for `export_gif`; also if `width` or `height` is odd.
        OSError: if the folder does not exist or is not writable.
        ImportError: if matplotlib or imageio-ffmpeg is not installed.

    Example:
        >>> import loss_viz as lv
        >>> from tempfile import mkdtemp
        >>> land = lv.landscape(lv.train("x^2", steps=60, progress=False), k=3, resolution=9, progress=False)
        >>> path = export_mp4(land, f"{mkdtemp()}/film.mp4", n_frames=5, width=400, height=300)
        >>> path.name, lv.reproduce(path, progress=False).k
        ('film.mp4', 3)
    """
    place = check_destination(path, ".mp4", advice="A still is written by export_image, a GIF by export_gif.")
    write_frames = _find_encoder()
    view = {"n_frames": n_frames, "width": width, "height": height, "log": log, "min_support": min_support}
    view |= {"rotate": rotate, "notes": notes, "duration": duration, "last_frame": last_frame}
    film = _build_film("export_mp4", landscape, view, even=True)
    tags = ["-metadata", f"comment={film.settings}", "-movflags", "+faststart", "-crf", "20"]
    options: dict[str, Any] = {"fps": 1000 / duration, "quality": None, "macro_block_size": 2, "output_params": tags}
    repeats = [1] * (len(film.shots) - 1) + [max(1, round(last_frame / duration))]  # all frames last equally long
    with _open_bar(place, len(film.shots), progress, bar) as meter, atomic_write(place) as part:
        video = write_frames(str(part), (width, height), **options)
        try:
            video.send(None)
            for still, n in zip(film.render(meter), repeats, strict=True):
                for _ in range(n):
                    video.send(still.tobytes())
        finally:
            video.close()
    return place


@dataclass(frozen=True)
class FrameSequence:
    """Frames to be rendered one after the other.

    Attributes:
        page: the figure, as a `Page`.
        shots: training step and rotation in degrees of each frame.
        settings: settings of landscape and frames, as JSON.
    """

    page: Any
    shots: Sequence[tuple[int, float]]
    settings: str

    def render(self, bar: tqdm | None = None, chosen: Sequence[int] | None = None) -> Iterator[Any]:
        """Yield the frames, or those with an index in `chosen`, as Pillow images; each is rendered when requested."""
        for i in range(len(self.shots)) if chosen is None else chosen:
            yield self.page.render(*self.shots[i])
            if bar is not None:
                bar.update()


def _build_film(export: str, landscape: Landscape, view: dict[str, Any], *, even: bool = False) -> FrameSequence:
    """Return the frames of a film; `view` holds the arguments of the function named `export`."""
    check_landscape(landscape)
    for side, least in MIN_SIZE.items():
        check_int(side, view[side], least, MAX_SIDE, advice="It counts pixels: use 800 x 600.")
    if even and (view["width"] % 2 or view["height"] % 2):
        size = f"{view['width']} x {view['height']}"
        raise argument_error("width", f"A video needs an even `width` and `height`, got {size}. Add a pixel.")
    check_bool("notes", view["notes"])
    check_look(view["log"], view["min_support"], view["rotate"])
    check_int("n_frames", view["n_frames"], 2, 10_000, advice="Use 60.")
    check_int("duration", view["duration"], *DURATIONS, advice="It counts milliseconds: use 60.")
    check_int("last_frame", view["last_frame"], 0, MAX_LAST_FRAME, advice="It counts milliseconds: use 1500.")
    check_matplotlib()
    from loss_viz.export.page import Page

    steps = choose_steps(landscape, view["n_frames"]).tolist()
    angles = np.linspace(0.0, view["rotate"], len(steps)).tolist()
    pixels = view["width"], view["height"]
    dpi = DPI * max(MIN_ZOOM, min(np.divide(pixels, REFERENCE_SIZE).tolist()))
    look = {name: view[name] for name in ("log", "min_support", "notes")} | {"rotations": sorted(set(angles))}
    page = Page(landscape, size=(pixels[0] / dpi, pixels[1] / dpi), dpi=dpi, step=steps[0], headline=True, **look)
    settings = to_json(landscape.settings | {"export": export, "view": view})
    return FrameSequence(page, list(zip(steps, angles, strict=True)), settings)


def _open_bar(place: Path, total: int, progress: bool, bar: tqdm | None) -> tqdm:
    if bar is None:
        return progress_bar(total=total, desc=place.name, delay=1, leave=False, disable=not progress)
    bar.total = total
    return bar


def choose_palette(stills: Sequence[Any]) -> Any:
    """Return a Pillow image whose palette, white and up to 255 other colors, suits all `stills`.

    Pillow's `MAXCOVERAGE` spreads the colors over all that occur, however few pixels have them: the ball is small and
    must keep its color. Median cut, which counts pixels, changes it more.
    """
    from PIL import Image

    pixels = np.concatenate([np.asarray(still) for still in stills])
    chosen = Image.fromarray(pixels).quantize(255, Image.Quantize.MAXCOVERAGE, kmeans=1)
    palette = Image.new("P", (1, 1))
    palette.putpalette([255, 255, 255, *(chosen.getpalette() or [])[: 3 * 255]])
    return palette


def apply_palette(still: Any, palette: Any) -> Any:
    """Return a still in the colors of `palette`, with an ordered dither.

    The dither depends on a pixel's position and color alone. Where nothing moves, nothing changes between frames, so
    the film does not flicker and its file stays small. Pillow's own dither, Floyd-Steinberg, propagates each change
    across the image.
    """
    from PIL import Image

    pixels = np.asarray(still).astype(np.int16)
    n_rows, n_columns, _ = pixels.shape
    pattern = np.rint(DITHER * _bayer_matrix(3)).astype(np.int16)
    repeats = n_rows // len(pattern) + 1, n_columns // len(pattern) + 1
    dithered = pixels + np.tile(pattern, repeats)[:n_rows, :n_columns, None]
    image = Image.fromarray(dithered.clip(0, 255).astype(np.uint8))
    reduced = image.quantize(palette=palette, dither=Image.Dither.NONE)
    white = (pixels == 255).all(axis=2)
    reduced.paste(0, mask=Image.fromarray(255 * white.astype(np.uint8)))  # the background stays white
    return reduced


def _bayer_matrix(n_doublings: int) -> np.ndarray:
    """Return Bayer's matrix for ordered dithering, `(2^n, 2^n)`, with values from -0.5 to 0.5."""
    order = np.zeros((1, 1), int)
    for _ in range(n_doublings):
        order = np.block([[4 * order, 4 * order + 2], [4 * order + 3, 4 * order + 1]])
    return (order + 0.5) / order.size - 0.5


def _find_encoder() -> Any:
    """Return `imageio_ffmpeg.write_frames` if ffmpeg is available.

    Raises:
        ImportError: if it is not.
    """
    try:
        from imageio_ffmpeg import get_ffmpeg_exe, write_frames

        get_ffmpeg_exe()
    except (ModuleNotFoundError, RuntimeError) as error:  # the package may contain no ffmpeg for this platform
        raise extra_error("Videos need ffmpeg", error, "film", advice="`export_gif` works without.") from error
    return write_frames
