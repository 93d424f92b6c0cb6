"""A hidden cell that runs before each notebook of the site, where no front end can show widgets."""

from itertools import count
from pathlib import Path
from typing import Any

import comm
import ipywidgets
import plotly.io as pio
from IPython.display import HTML, display
from plotly.io.base_renderers import MimetypeRenderer
from plotly.io.json import to_json_plotly

import loss_viz as lv

NAME = "NOTEBOOK"  # pages.py inserts the name, and a digest of loss_viz, so that outputs are cached per version: DIGEST
FOLDER = Path("../_build/panels")  # conf.py copies it to _static
STILL = {"width": 300, "height": 225, "dpi": 288}  # in CSS pixels: about the size of a tile of the gallery
numbers = count(1)


def show_panel(explorer: lv.Explorer) -> None:
    """Show the page of `export_html`, with a few k and σ to choose from, in place of the panel; write a still too."""
    explorer.wait()
    path = FOLDER / f"{NAME}_{next(numbers)}.html"
    land = explorer.landscape
    strides, widths = ((1, 5, 20), ["auto", 0.02, 0.06]) if explorer.run.task else ((5, 20), ["auto", 0.06])  # slower
    shortest = min(map(len, explorer.runs))
    choice = {"k": sorted({land.k, *(k for k in strides if 2 * k < shortest)})} if land.plane == "local" else {}
    choice |= {"sigma": widths} if len(land.planes) > 1 else {}
    lv.export_html(land, path, **choice, step=explorer.step, progress=False)
    log = min(land.loss.min(), land.path_loss.min()) > 0  # as the page opens
    lv.export_image(land, path.with_suffix(".png"), **STILL, step=explorer.step, log=log)
    caption = "The panel needs a running kernel. This precomputed page replaces it."
    url = f"../_static/{path.name}"
    frame = f'<iframe src="{url}" title="{caption}" loading="lazy"></iframe>'
    link = f'<a href="{url}">Open it on its own.</a>'
    display(HTML(f"<figure>{frame}<figcaption>{caption} {link}</figcaption></figure>"))


class FigureInPage(MimetypeRenderer):
    """A renderer that writes a figure as data, which _static/figures.js draws when it is scrolled into view."""

    def to_mimebundle(self, fig_dict: dict[str, Any]) -> dict[str, str]:
        """Return an element of the figure's height that contains the figure."""
        layout = fig_dict["layout"]
        height = layout.get("height", 450)
        width = "min-width: 960px; " if layout.keys() & {"scene2", "xaxis2"} else ""  # two side by side
        data = to_json_plotly(fig_dict).replace("</", "<\\/")
        box = f'<div style="{width}height: {height}px"><script type="application/json">{data}</script></div>'
        return {"text/html": f'<div class="figure">{box}</div>'}


pio.renderers["page"] = FigureInPage()
pio.renderers.default = "page"
comm.create_comm = comm.DummyComm
ipywidgets.Widget._ipython_display_ = lambda _: None  # hides progress bars
lv.Explorer._ipython_display_ = show_panel
