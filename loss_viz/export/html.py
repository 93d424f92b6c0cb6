"""HTML export: one self-contained file with all data, the panel's figures and Plotly."""

import os
from collections.abc import Sequence
from html import escape
from importlib.metadata import version
from pathlib import Path
from string import Template

from loss_viz._files import atomic_write, check_destination
from loss_viz._validation import check_bool
from loss_viz.export.page_data import page_data
from loss_viz.export.variants import LandscapeVariants, Sigma, Source, compute_variants, runs_of
from loss_viz.figures.assets import read_plotly, read_static
from loss_viz.settings import explorer_settings, to_json


def export_html(
    source: Source,
    path: str | os.PathLike[str],
    *,
    k: Sequence[int] | None = None,
    sigma: Sequence[Sigma] | None = None,
    resolution: int | tuple[int, int] | None = None,
    step: int | None = None,
    log: bool | None = None,
    progress: bool = True,
) -> Path:
    """Write an HTML file that shows a run without Python: it opens from disk or any server and makes no requests.

    The page shows what the panel shows: the surface, the run at its **true** losses, the ball with its stem, the loss
    curve with its plateaus, and for runs of `train` the function the network has learned. A play button, a slider, the
    keyboard and clicks on the curve move the ball. Sliders for `k` and `sigma` choose among landscapes computed by this
    call, each with its own errors; the loss axis can be linear or logarithmic.

    The file also contains everything needed to compute it again, as JSON under the id `loss_viz-settings`:
    `"landscape"` holds the arguments of `loss_viz.landscape`, `"train"` in each of the `"runs"` those of
    `loss_viz.train`, `"explorer"` those of `Explorer`, and `"page"` `k`, `sigma`, `step` and `log` of this function.

    Numbers are computed in float64 and stored in float32 (seven digits), the networks' outputs in steps of 1/65535 of
    their range, colors in steps of 1/255. At most 8000 recorded steps are drawn, and outputs are stored at no more than
    2621 of them for a task of 100 points, chosen half by arc length in weight space and half by time; several runs
    share these numbers. The page says where steps were left out, and what its figures cannot show (see `Landscape`).

    Args:
        source: one run, or several as a list or by name as a dict, drawn on a common plane; or a landscape, whose
            plane, grid and anchors are kept.
        path: file to write; an existing file is replaced once the new one is complete.
        k: strides; by default 1, 2, 5, 10 and 20, without those for which a run is too short, and the stride that
            `"auto"` takes; or none, if it takes parallel planes. They have no effect on planes other than local ones.
        sigma: bandwidths; `"auto"`, 0.01, 0.03, 0.06 and 0.1 by default. The page opens with the pair of a landscape,
            which is always included; for runs with the first of each list, or what `"auto"` takes.
        resolution: points along each axis, or a pair `(n_x, n_y)`; 61 by default. A landscape keeps its own.
        step: training step at which to draw the ball first; the last one by default.
        log: open on the logarithmic loss axis, or on the linear one; by default on the logarithmic one where all losses
            are above 0. The page has a control for it.
        progress: show a progress bar if it takes more than a second. Ctrl-C stops the work and leaves no file.

    Returns:
        The path. With the defaults the file is smaller than 8 MB, of which Plotly takes 4.8; each pair of k and σ adds
        about 60 kB at 61 x 61 points and 2000 steps.

    Raises:
        TypeError: if `source` is neither runs nor a landscape, or `k` or `sigma` is not a list.
        ValueError: if an argument is out of range, the runs do not share model and loss, a landscape has its own
            resolution, or no use for the stride or bandwidth given, or `log=True` with a loss that is not positive.
        OSError: if the folder does not exist or is not writable, or the disk is full.

    Example:
        >>> import loss_viz as lv
        >>> from tempfile import TemporaryDirectory
        >>> run = lv.train("x^2", steps=60, progress=False)
        >>> with TemporaryDirectory() as folder:
        ...     path = export_html(run, f"{folder}/run.html", k=[5], sigma=["auto", 0.06], progress=False)
        ...     path.name, 4 < path.stat().st_size / 1e6 < 8
        ('run.html', True)
    """
    place = check_destination(path)
    runs_of(source).nearest_rows(step)  # raises before the work if the step lies outside the runs
    if log is not None:
        check_bool("log", log)
    variants = compute_variants(source, k=k, sigma=sigma, resolution=resolution, progress=progress)
    with atomic_write(place) as part:
        part.write_text(page_html(variants, step, log), encoding="utf-8", newline="\n")
    return place


def page_html(variants: LandscapeVariants, step: int | None, log: bool | None = None) -> str:
    """Return the page as text.

    Args:
        variants: the landscapes.
        step: training step at which to draw the ball first; None for the last one.
        log: whether the page opens on the logarithmic axis; None if that is possible.

    Raises:
        ValueError: if the step lies outside all runs, or `log=True` with a loss that is not positive.
    """
    data, settings = page_data(variants, step, log), variants.opening.settings
    opened = {"step": data["values"]["step"], "log": data["values"]["loss_axis"] == "log"}
    explorer = explorer_settings(settings, **opened)
    settings = settings | {"page": {**variants.choices, **opened}, "explorer": explorer}
    scripts = [read_static(f"{name}.js") for name in ("figure_widget", "panel", "page")]
    script = "\n".join([read_plotly(), *scripts])
    return Template(read_static("page.html")).substitute(
        title=escape(_title(variants)),
        summary=escape(data["summary"]),
        notes="\n".join(f"<li>{escape(note)}</li>" for note in data["notes"]),
        style="\n".join(read_static(f"{name}.css") for name in ("figure_widget", "panel", "page")),
        settings=to_json(settings),
        data=to_json(data),
        script=script.replace("</script", r"<\/script").replace("<!--", r"<\!--"),
        version=version("loss_viz"),
    )


def _title(variants: LandscapeVariants) -> str:
    """Return the task, and the names of several runs or of runs without a task."""
    run_set = variants.run_set
    run, names = run_set.runs[0], [name for name in run_set.names if name]
    words = [run.task.name] if run.task else []
    if len(run_set.runs) > 1 or not words:
        words.append(", ".join(names) or "A training run")
    return ": ".join(words)
