"""Scripts and style sheets of the panel and the HTML page, and Plotly's own JavaScript."""

import re
from pathlib import Path

from plotly.offline import get_plotlyjs

STATIC = Path(__file__).parent.parent / "static"

# Plotly 5.24.0 requests this style sheet as soon as it is loaded, with or without a map to draw.
FETCHED = re.compile(r"https://unpkg\.com/maplibre-gl[^\"']*\.css")
MODULE = "const module = {exports: {}}, exports = module.exports;\n"  # Plotly assigns itself to `module.exports`


def read_static(name: str) -> str:
    """Return the text of a file in `loss_viz/static`."""
    return (STATIC / name).read_text(encoding="utf-8")


def read_plotly() -> str:
    """Return the source of plotly.js as the head of a JavaScript module that makes no network requests.

    After it, `module.exports` is Plotly.

    Example:
        >>> source = read_plotly()
        >>> "plotly.js v" in source, FETCHED.search(source)
        (True, None)
    """
    return MODULE + FETCHED.sub("data:text/css,", get_plotlyjs())
