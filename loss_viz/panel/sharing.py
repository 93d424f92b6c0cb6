"""Files of what the panel shows: a picture, a page, or a film."""

import re
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tqdm import tqdm

from loss_viz.export.films import export_gif
from loss_viz.export.html import export_html
from loss_viz.export.images import check_matplotlib, export_image
from loss_viz.landscapes.landscape import Landscape

FORMATS = {"picture": (".png", "image/png"), "page": (".html", "text/html"), "film": (".gif", "image/gif")}
PICTURE: dict[str, Any] = {"width": "double", "notes": True}
MAX_NAME = 60  # characters of the title


@dataclass(frozen=True)
class FileRequest:
    """A file that someone has asked for in the panel.

    Attributes:
        kind: "picture", "page" or "film".
        landscape: what to draw.
        step: training step of the ball; a film shows them all.
        log: whether the axis of its height is logarithmic.
        min_support: hide the surface where its support is below this value; a page shows all of it.
        asker: which of the views of the panel is to get the file.
    """

    kind: str
    landscape: Landscape
    step: int
    log: bool
    min_support: float
    asker: str

    @property
    def name(self) -> str:
        """Name of the file."""
        return name_file(self.landscape) + FORMATS[self.kind][0]

    @property
    def mime_type(self) -> str:
        """Media type of the file."""
        return FORMATS[self.kind][1]

    def make(self, bar: tqdm) -> bytes:
        """Return the file as the export function writes it; exceptions that `bar` raises stop the work."""
        land = self.landscape
        look: dict[str, Any] = {"log": self.log, "min_support": self.min_support}
        with TemporaryDirectory() as folder:
            path = Path(folder) / self.name
            if self.kind == "picture":
                export_image(land, path, **PICTURE, step=self.step, **look)
            elif self.kind == "film":
                export_gif(land, path, bar=bar, **look)
            else:  # of this landscape alone; others would have to be computed
                only: dict[str, Any] = {"k": [land.k]} if land.plane == "local" else {}
                only |= {"sigma": [land.sigma]} if len(land.planes) > 1 else {}
                export_html(land, path, **only, step=self.step, log=self.log, progress=False)
            bar.update(0)
            return path.read_bytes()


def check_extra(kind: str) -> None:
    """Raise `ImportError` with the command that installs it if a kind of file needs a package that is missing."""
    if kind != "page":
        check_matplotlib()


def name_file(landscape: Landscape) -> str:
    """Return a file name without suffix, of letters, digits and signs that every file system allows.

    Example:
        >>> import loss_viz as lv
        >>> run = lv.train("x^2 / 2", steps=60, progress=False)
        >>> name_file(lv.landscape(run, k=3, resolution=9, progress=False))
        'x^2_2-landscape'
    """
    run_set, height = landscape.run_set, landscape.height_name
    task = run_set.runs[0].task
    title = task.name if task else "-".join(filter(None, run_set.names)) or "run"
    words = f"{title[:MAX_NAME]}-{'landscape' if height == 'loss' else height}"
    return re.sub(r"[^\w^()+=.-]+", "_", words)[: 2 * MAX_NAME].strip("._-")
