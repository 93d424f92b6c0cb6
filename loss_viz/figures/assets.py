"""Scripts and style sheets of the panel and the HTML page, and Plotly's own JavaScript."""

import re
from pathlib import Path

from plotly.offline import get_plotlyjs

# Plotly 5.24.0 asks for this style sheet as soon as it is loaded, whether there is a map to be drawn or not.
FETCHED = re.compile(r"https://unpkg\.com/maplibre-gl[^\"']*\.css")

MODULE = "const module = {exports: {}}, exports = module.exports;\n"  # Plotly leaves itself there


STATIC = Path(__file__).parent.parent / "static"


def read_static(name: str) -> str:
    """Return the text of a file in `loss_viz/static`."""
    return (STATIC / name).read_text(encoding="utf-8")


def read_plotly() -> str:
    """The source of plotly.js as the head of a JavaScript module, which asks nobody for anything.

    Example:
        >>> source = read_plotly()
        >>> "plotly.js v" in source, FETCHED.search(source)
        (True, None)
    """
    return MODULE + FETCHED.sub("data:text/css,", get_plotlyjs())
