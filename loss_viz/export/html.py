"""One file that shows a picture anywhere: no kernel, no network, and all of Plotly inside."""

import os
from collections.abc import Sequence
from html import escape
from importlib.metadata import version
from pathlib import Path
from string import Template
from typing import Any

from loss_viz.export.page_data import page_data
from loss_viz.export.variants import LandscapeVariants, Sigma, Source, compute_variants, read_source
from loss_viz.figures.assets import read_plotly, read_static
from loss_viz.landscapes.provenance import to_json
from loss_viz.settings import explorer_settings


def export_html(
    source: Source,
    path: str | os.PathLike[str],
    *,
    k: Sequence[int] | None = None,
    sigma: Sequence[Sigma] | None = None,
    resolution: int | tuple[int, int] | None = None,
    step: int | None = None,
    progress: bool = True,
) -> Path:
    """Write one HTML file that shows a run to everybody: it opens from disk or from any server, and asks nobody.

    In it are the surface, the run at its **true** losses and the ball with its stem, as the panel shows them, the loss
    curve with its plateaus, and for a run of `train` what the network has learned. The ball rolls, or goes where a
    slider, the keyboard or a click on the curve sends it. `k` and `sigma` are sliders over landscapes that are computed
    here and now, each with its own caption of how true it is; losses can be drawn in powers of ten.

    The file holds all that it takes to make it again, as JSON under the id `loss_viz-settings`: `"landscape"` of it are
    the arguments of `loss_viz.landscape`, `"train"` of each of the `"runs"` those of `loss_viz.train`, `"explorer"`
    those of `Explorer`, and `"page"` the `k`, `sigma` and `step` of this function.

    Numbers are computed in float64 and stored in float32, which keeps seven digits; the networks' answers in steps of
    1/65535 of their range, colours in 1/255. Of more than 8000 recorded steps 8000 are drawn, and of more than 2621
    those are kept, of a task with 100 points, at which the network's answer is known, spread half by the way in weight
    space and half by time; several runs share these numbers. The page says where it has thinned. What the pictures do
    not show: see `Landscape`; the page says that, too.

    Args:
        source: a run, several in a list or by name in a dict, which race on one plane; or a landscape, whose plane,
            grid and anchors are kept.
        path: of the file; one that is there is replaced when the new one is complete.
        k: strides; 1, 2, 5, 10 and 20 by default, without those for which a run is too short. Planes other than
            local ones have none, and valley ones keep their own by default.
        sigma: bandwidths; `"auto"`, 0.01, 0.03, 0.06 and 0.1 by default. The page opens with the pair of a landscape,
            which is always in it; for runs with the first of each list, or k = 5 and `"auto"`.
        resolution: points along each axis, or a pair `(n_x, n_y)`; 61 by default. A landscape keeps its own.
        step: the training step at which the ball lies at first; the last one by default.
        progress: show how far the work is when it takes more than a second. Ctrl-C ends it, and leaves no file.

    Returns:
        The path. With the defaults the file is less than 8 MB, 4.8 of which are Plotly; a pair of k and σ adds about
        60 kB at 61 x 61 and 2000 steps.

    Raises:
        TypeError: neither runs nor a landscape, or `k` or `sigma` that is no list.
        ValueError: an argument out of its range, runs that do not share model and loss, or a resolution, stride or
            bandwidth for a landscape that has its own or none.
        OSError: there is no such folder, it cannot be written to, or the disk is full.

    Example:
        >>> import loss_viz as lv
        >>> from tempfile import TemporaryDirectory
        >>> run = lv.train("x^2", steps=60, progress=False)
        >>> with TemporaryDirectory() as folder:
        ...     path = export_html(run, f"{folder}/run.html", k=[5], sigma=["auto", 0.06], progress=False)
        ...     path.name, 4 < path.stat().st_size / 1e6 < 8
        ('run.html', True)
    """
    path = Path(path)
    check_destination(path)
    read_source(source)[0].find_rows(step)  # a wrong one is refused before the work
    variants = compute_variants(source, k=k, sigma=sigma, resolution=resolution, progress=progress)
    write_whole(path, write_page(variants, step))
    return path


def write_page(variants: LandscapeVariants, step: int | None) -> str:
    """The page as text.

    Raises:
        ValueError: the step lies outside all runs.
    """
    sheet = page_data(variants, step)
    told = variants.opening.settings
    page = {**variants.choices, "step": sheet["step"]}
    settings = told | {"page": page, "explorer": explorer_settings(told, step=sheet["step"], log=False)}
    script = [read_plotly(), read_static("figure_widget.js"), read_static("page.js")]
    words: dict[str, Any] = {
        "title": escape(name_page(variants)),
        "summary": escape(sheet["summary"]),
        "notes": "\n".join(f"<li>{escape(note)}</li>" for note in sheet["notes"]),
        "style": read_static("figure_widget.css") + "\n" + read_static("page.css"),
        "settings": to_json(settings),
        "data": to_json(sheet),
        "script": "\n".join(script).replace("</script", r"<\/script").replace("<!--", r"<\!--"),
        "version": version("loss_viz"),
    }
    return Template(read_static("page.html")).substitute(words)


def name_page(variants: LandscapeVariants) -> str:
    """What the page is called: after the task, or else the runs."""
    run_set = variants.run_set
    run, names = run_set.runs[0], [name for name in run_set.names if name]
    words = [run.task.name] if run.task else []
    if len(run_set.runs) > 1 or not words:
        words.append(", ".join(names) or "A training run")
    return ": ".join(words)


def check_destination(path: Path) -> None:
    """Refuse a place for a file before the work that fills it.

    Raises:
        OSError: it is a folder, or the folder is not there or cannot be written to.
    """
    if path.is_dir():
        raise IsADirectoryError(f"`path` must name a file, {str(path)!r} is a folder. Add a name, such as run.html.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"`path` must lie in a folder, {str(path.parent)!r} is none. Make it first.")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"`path` must lie in a folder that can be written to, {str(path.parent)!r} cannot.")


def write_whole(path: Path, text: str) -> None:
    """Write a file, whole or not at all: after an error or a crash, what was there before still is."""
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with part.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
