"""A cell that runs before each notebook of the site, and is not shown: there is no front end here."""

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

NAME = "NOTEBOOK"  # pages.py puts in which
FOLDER = Path("panels")  # conf.py has it copied into _static
numbers = count(1)


def show_panel(explorer: lv.Explorer) -> None:
    """What stands here for the panel: the page of `export_html`, with a few k and σ to choose from."""
    explorer.wait()
    path = FOLDER / f"{NAME}_{next(numbers)}.html"
    strides = {1, 5, 20} if explorer.run.task else set()  # networks of another kind take long
    settings = {"k": sorted(strides | {explorer.k}), "sigma": ["auto", 0.02, 0.06], "step": explorer.step}
    lv.export_html(explorer.landscape, path, **settings, progress=False)
    words = "The panel needs a running kernel. This page in its place has been computed beforehand."
    place = f"../_static/{path.name}"
    frame = f'<iframe src="{place}" title="{words}" loading="lazy"></iframe>'
    link = f'<a href="{place}">On its own.</a>'
    display(HTML(f"<figure>{frame}<figcaption>{words} {link}</figcaption></figure>"))


class FigureInPage(MimetypeRenderer):
    """A figure as data, which _static/figures.js draws when it comes into view."""

    def to_mimebundle(self, fig_dict: dict[str, Any]) -> dict[str, str]:
        """A box of the figure's height, with the figure in it."""
        layout = fig_dict["layout"]
        height = layout.get("height", 450)
        width = "min-width: 960px; " if layout.keys() & {"scene2", "xaxis2"} else ""  # two side by side
        data = to_json_plotly(fig_dict).replace("</", "<\\/")
        box = f'<div style="{width}height: {height}px"><script type="application/json">{data}</script></div>'
        return {"text/html": f'<div class="figure">{box}</div>'}


pio.renderers["page"] = FigureInPage()
pio.renderers.default = "page"
comm.create_comm = comm.DummyComm
ipywidgets.Widget._ipython_display_ = lambda _: None  # progress bars
lv.Explorer._ipython_display_ = show_panel
