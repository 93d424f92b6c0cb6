"""Landscapes as figures for papers: PDF, SVG and PNG files, and axes of matplotlib."""

import math
import os
import re
from pathlib import Path
from textwrap import shorten
from typing import Any

from loss_viz._files import atomic_write, check_destination
from loss_viz._validation import (
    argument_error,
    argument_type_error,
    check_bool,
    check_choice,
    check_float,
    check_fraction,
    check_int,
    extra_error,
)
from loss_viz.figures.loss_axis import fit_scale
from loss_viz.landscapes.landscape import Landscape, check_landscape
from loss_viz.settings import to_json

SUFFIXES = (".pdf", ".svg", ".png")
ASPECTS = {"surface": 0.76, "contour": 0.76, "both": 0.42}  # height relative to width
NOTES = 1.4  # inches of height for the notes
COLUMNS = {"single": "85mm", "double": "180mm"}
UNITS = {"mm": 25.4, "cm": 2.54, "in": 1.0, "pt": 72.0}  # in an inch
CSS_PIXELS = 96  # in an inch
LIMITS = {"width": (40, 1200), "height": (30, 1200)}  # in millimetres
FONT_SIZES = 4, 40
MAX_PIXELS = 20_000_000
GENERIC = "serif", "sans-serif", "monospace", "cursive", "fantasy"


def export_image(
    landscape: Landscape,
    path: str | os.PathLike[str],
    *,
    kind: str = "surface",
    width: str | int | float = "single",
    height: str | int | float | None = None,
    font: str | None = None,
    font_size: float = 8.0,
    dpi: int = 300,
    notes: bool = False,
    step: int | None = None,
    log: bool = False,
    min_support: float = 0.0,
    rotate: float = 0.0,
) -> Path:
    """Write a figure for a paper: the surface with level lines, or these alone, the runs at their true losses, balls.

    The suffix of `path` is the format. In a PDF or SVG text is text and lines are lines; the shaded surface is an
    image within it, in which everything hides what is behind it. What the picture shows and what it does not is said in
    its notes. They belong in the caption of the paper: without `notes=True` they are only in the file's description
    (the subject of a PDF). The file also contains the settings that made it, from which `loss_viz.reproduce` computes
    the landscape again. No browser and no graphics card is needed.

    Args:
        landscape: a landscape of one run or of several; `landscape.metric(name)` draws another scalar.
        path: file to write, ending in `.pdf`, `.svg` or `.png`; one that exists is replaced once the new one is
            complete.
        kind: `"surface"`, as `surface_figure` shows it and from the same side; `"contour"`, labeled level lines at
            round losses, over colors that are paler where the surface extrapolates; or `"both"`, side by side.
        width: `"single"` for a column of 85 mm, `"double"` for a page of 180 mm, a length such as `"85mm"`, `"3.35in"`
            or `"240pt"`, or a number of CSS pixels (1/96 inch).
        height: likewise; in proportion to the width by default.
        font: font family, such as `"Times New Roman"` or `"serif"`; DejaVu Sans by default.
        font_size: size of the labels in points; the numbers on the axes are 0.85 times as large.
        dpi: pixels per inch, of a PNG and of the surface in a PDF or SVG.
        notes: write title, errors and warnings around the picture, and draw a color bar.
        step: training step at which to draw the balls; the last one by default.
        log: draw the loss on a logarithmic axis, with the level lines at round losses on it.
        min_support: leave the surface open where its support is below this value, from 0 to 1.
        rotate: angle around the vertical axis from the viewpoint of the interactive figure, in degrees.

    Returns:
        The path.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if the suffix, the kind or the unit is unknown, the font is not installed, the step lies outside the
            run, a number is out of range, or `log=True` with a loss that is not positive.
        OSError: if the folder does not exist or is not writable.
        ImportError: if matplotlib is not installed.

    Example:
        >>> import loss_viz as lv
        >>> from tempfile import mkdtemp
        >>> land = lv.landscape(lv.train("x^2", steps=60, progress=False), k=3, resolution=9, progress=False)
        >>> path = export_image(land, f"{mkdtemp()}/figure.pdf", kind="both", width="double", step=30)
        >>> path.name, lv.reproduce(path, progress=False).k
        ('figure.pdf', 3)
    """
    place = check_destination(path, *SUFFIXES, advice="A film is written by export_gif or export_mp4.")
    check_landscape(landscape)
    check_choice("kind", kind, ASPECTS, advice="Use 'both' for the two side by side.")
    step = _check_step(landscape, step)
    check_bool("notes", notes)
    check_look(log, min_support, rotate)
    inches = read_length("width", width)
    tall = inches * ASPECTS[kind] + NOTES * notes if height is None else read_length("height", height)
    size = inches, tall
    check_int("dpi", dpi, 50, 2400, advice="Use 300.")
    if (pixels := size[0] * size[1] * dpi**2) > MAX_PIXELS:
        raise argument_error(
            "dpi", f"An image must have at most {MAX_PIXELS:,} pixels; `dpi`={dpi} makes {pixels:,.0f}. Use 300."
        )
    if not FONT_SIZES[0] <= check_float("font_size", font_size, "a number of points", advice="Use 8.") <= FONT_SIZES[1]:
        raise argument_error("font_size", f"`font_size` must be from 4 to 40 points, got {font_size}. Use 8.")
    check_matplotlib()
    if font is not None:
        _check_font(font)
    from loss_viz.export.page import Page, describe_landscape

    look: dict[str, Any] = {"kind": kind, "font": font, "font_size": float(font_size), "dpi": float(dpi)}
    look |= {"notes": notes, "step": step, "log": log, "min_support": min_support}
    page = Page(landscape, size=size, rotations=[float(rotate)], line_width=0.15 * font_size, **look)
    view = look | {"width": width, "height": height, "dpi": dpi, "rotate": rotate}
    settings = to_json(landscape.settings | {"export": "export_image", "view": view})
    words = describe_landscape(landscape, step)
    metadata: dict[str, dict[str, str | None]] = {
        ".pdf": {"Subject": words, "Keywords": settings, "CreationDate": None},
        ".svg": {"Description": words, "Keywords": settings, "Date": None},
        ".png": {"Description": words, "loss_viz": settings},
    }
    with atomic_write(place) as part:
        page.save(part, metadata[place.suffix.lower()])
    return place


def plot_landscape(
    landscape: Landscape,
    ax: Any = None,
    *,
    kind: str = "contour",
    step: int | None = None,
    log: bool = False,
    min_support: float = 0.0,
    rotate: float = 0.0,
) -> Any:
    """Draw a landscape into axes of a matplotlib figure of your own, in the style that you have set.

    Fonts, sizes, colors of text and widths of lines are those of matplotlib's rcParams. A surface is computed for the
    resolution at which the figure is shown or saved, as in `savefig("figure.pdf", dpi=300)`, and follows
    `ax.view_init`.

    Args:
        landscape: a landscape of one run or of several.
        ax: flat axes for contours, 3D axes for a surface; by default those of a new pyplot figure.
        kind: `"contour"` or `"surface"`.
        step: training step at which to draw the balls; the last one by default.
        log: draw the loss on a logarithmic axis, with the level lines at round losses on it.
        min_support: leave the surface open where its support is below this value, from 0 to 1.
        rotate: angle around the vertical axis from the viewpoint of the interactive figure, in degrees.

    Returns:
        The axes.

    Raises:
        TypeError: if an argument is of the wrong type, or `ax` not of the right kind.
        ValueError: if the kind is unknown, the step lies outside the run, a number is out of range, or `log=True` with
            a loss that is not positive.
        ImportError: if matplotlib is not installed.

    Example:
        >>> import loss_viz as lv
        >>> from matplotlib.figure import Figure
        >>> land = lv.landscape(lv.train("x^2", steps=60, progress=False), k=3, resolution=9, progress=False)
        >>> ax = plot_landscape(land, Figure().add_subplot(), log=True)
        >>> ax.get_xlabel().split()[0]
        'PC1'
    """
    check_landscape(landscape)
    check_choice("kind", kind, ("contour", "surface"), advice="Draw each into axes of its own.")
    step = _check_step(landscape, step)
    check_look(log, min_support, rotate)
    check_matplotlib()
    from matplotlib import pyplot
    from matplotlib.axes import Axes

    from loss_viz.export.plots import draw_contours, draw_surface, label_contours

    projection = {"surface": "3d", "contour": "rectilinear"}[kind]
    if ax is None:
        ax = pyplot.figure().add_subplot(projection=projection)
    if not isinstance(ax, Axes) or ax.name != projection:
        got = f"{ax.name} axes" if isinstance(ax, Axes) else type(ax).__name__
        raise argument_type_error(
            "ax",
            f"`ax` must be axes of matplotlib with projection={projection!r} for `kind`={kind!r}, got {got}. Make them "
            f"with figure.add_subplot(projection={projection!r}).",
        )
    scale = fit_scale([landscape.loss, landscape.path_loss], log=log, name=landscape.height_name)
    if kind == "surface":
        draw_surface(ax, landscape, scale, step=step, min_support=min_support, rotations=[float(rotate)])
    else:
        lines = draw_contours(ax, landscape, scale, step=step, min_support=min_support)
        label_contours(ax, lines, landscape, scale)
    return ax


def read_length(name: str, value: str | int | float) -> float:
    """Return a length in inches.

    Args:
        name: name of the argument, `"width"` or `"height"`.
        value: a number with a unit, a column, or a number of CSS pixels.

    Raises:
        TypeError: if `value` is neither text nor a number.
        ValueError: if it cannot be read or is out of range.

    Example:
        >>> read_length("width", "single") == read_length("width", "85mm"), read_length("height", 192)
        (True, 2.0)
    """
    what = "a length such as '85mm', '3.35in' or '240pt', 'single', 'double', or a number of CSS pixels"
    advice = "Use 'single' for a column."
    if isinstance(value, str):
        found = re.fullmatch(rf"([-+]?\d*\.?\d+) ?({'|'.join(UNITS)})", COLUMNS.get(value, value))
        if found is None:
            raise argument_error(name, f"`{name}` must be {what}, got {value!r}. {advice}")
        inches = float(found[1]) / UNITS[found[2]]
    else:
        inches = check_float(name, value, what, advice=advice) / CSS_PIXELS
    least, most = LIMITS[name]
    if not least <= 25.4 * inches <= most:
        raise argument_error(name, f"`{name}` must be from {least}mm to {most}mm, got {value!r}. {advice}")
    return inches


def check_look(log: Any, min_support: Any, rotate: Any) -> None:
    """Check the arguments of pictures that are not specific to one function."""
    check_bool("log", log)
    check_fraction("min_support", min_support)
    if not math.isfinite(check_float("rotate", rotate, "a finite number of degrees", advice="Use 0.")):
        raise argument_error("rotate", f"`rotate` must be a finite number of degrees, got {rotate}. Use 0.")


def check_matplotlib() -> None:
    """Raise `ImportError` with the command that installs it unless matplotlib is there."""
    try:
        import matplotlib as _  # noqa: F401
    except ModuleNotFoundError as error:
        raise extra_error("Images and films need matplotlib", error, "film") from error


def _check_step(landscape: Landscape, step: int | None) -> int:
    step = landscape.run_set.last_step if step is None else step
    landscape.run_set.nearest_rows(step)
    return step


def _check_font(font: str) -> None:
    from matplotlib.font_manager import fontManager

    names = fontManager.get_font_names()
    if not isinstance(font, str):
        raise argument_type_error(
            "font", f"`font` must be the name of a font family, got {type(font).__name__}. Use 'serif'."
        )
    if font.lower() not in {name.lower() for name in (*GENERIC, *names)}:
        listed = shorten(", ".join(sorted(names)), 800, placeholder=" …")
        raise argument_error(
            "font", f"`font` must be installed, or one of {', '.join(GENERIC)}; got {font!r}. Installed are: {listed}."
        )
