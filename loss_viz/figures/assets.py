"""What the panel and the HTML page send to a browser: scripts, style sheets, Plotly's own JavaScript, and numbers."""

import re
from pathlib import Path

import numpy as np
from plotly.offline import get_plotlyjs

STATIC = Path(__file__).parent.parent / "static"

# Plotly 5.24.0 requests this style sheet as soon as it is loaded, with or without a map to draw.
FETCHED = re.compile(r"https://unpkg\.com/maplibre-gl[^\"']*\.css")
MODULE = "const module = {exports: {}}, exports = module.exports;\n"  # Plotly assigns itself to `module.exports`


def narrow_floats(array: np.ndarray) -> np.ndarray:
    """Return an array of floats in float32, or in float64 where a finite number would become infinite, or 0.

    Example:
        >>> narrow_floats(np.array([1.0, np.inf])).dtype.name, narrow_floats(np.array([1e300])).dtype.name
        ('float32', 'float64')
    """
    with np.errstate(over="ignore", under="ignore"):
        narrow = array.astype(np.float32)
    kept = (np.isfinite(narrow) == np.isfinite(array)) & ((narrow == 0) == (array == 0))
    return narrow if kept.all() else array.astype(np.float64)


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
