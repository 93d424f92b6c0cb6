"""Sphinx extension of this site: the wall of the gallery, a tile for each notebook that opens a panel.

The tiles follow from the notebooks alone. Stills and live pages are written by opening.py while a notebook runs, so the
wall is filled in after all pages have been read. Without a still, as when notebooks are not executed, a tile is text.
"""

import json
import re
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from markdown_it import MarkdownIt
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

HERE = Path(__file__).parent
NOTEBOOKS, PANELS = HERE.parent / "notebooks", HERE / "_build" / "panels"
PANEL = "lv.Explorer("  # in the code of a notebook that opens one


@dataclass(frozen=True)
class Tile:
    """A notebook on the wall.

    Attributes:
        name: name of the notebook, without suffix.
        title: its title, in Markdown.
        finding: one sentence in Markdown: `finding` of the notebook's metadata, else the first of its text.
        panel: name of the page and the still of its first panel, without suffix; empty if there is no still.
    """

    name: str
    title: str
    finding: str
    panel: str


class Place(nodes.General, nodes.Element):
    """The place of the wall until all notebooks have been executed."""


class Wall(SphinxDirective):
    """The directive `wall`."""

    def run(self) -> list[nodes.Node]:
        """Leave a placeholder."""
        return [Place()]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension; called by Sphinx."""
    app.add_node(Place)
    app.add_directive("wall", Wall)
    app.connect("env-updated", lambda *_: ["gallery"])  # written again whenever notebooks were executed again
    app.connect("doctree-resolved", fill_walls)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def fill_walls(app: Sphinx, page: nodes.document, name: str) -> None:
    """Replace the placeholder by the tiles."""
    for place in list(page.findall(Place)):
        place.replace_self(nodes.raw("", write_wall(list_tiles(NOTEBOOKS, PANELS)), format="html"))


def list_tiles(notebooks: Path, panels: Path) -> list[Tile]:
    """Return the tiles of the notebooks in a folder that open a panel.

    Args:
        notebooks: folder of notebooks.
        panels: folder of the pages and stills that their execution has written.

    Raises:
        ValueError: if a notebook has no title or no text.
    """
    tiles = []
    for path in sorted(notebooks.glob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        if PANEL in read_cells(notebook, "code"):
            title, finding = describe(notebook, path.name)
            stills = sorted(panels.glob(f"{path.stem}_[0-9].png"))
            tiles.append(Tile(path.stem, title, finding, stills[0].stem if stills else ""))
    return tiles


def read_cells(notebook: dict[str, Any], kind: str) -> str:
    """Return the text of all cells of a kind."""
    return "\n\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind)


def describe(notebook: dict[str, Any], name: str) -> tuple[str, str]:
    """Return the title of a notebook, and what it found in one sentence, both in Markdown without links.

    Raises:
        ValueError: if there is no title or no text.
    """
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", read_cells(notebook, "markdown"))
    paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text)]
    titles = [part.removeprefix("# ") for part in paragraphs if part.startswith("# ")]
    texts = [part for part in paragraphs if part and not part.startswith(("#", "Open in Colab", "|", "- "))]
    if not titles or not texts:
        raise ValueError(f"{name} needs a title, a line that begins with '# ', and a paragraph of text.")
    return titles[0], notebook["metadata"].get("finding") or re.split(r"(?<=[.?!])\s", texts[0])[0]


def write_wall(tiles: list[Tile]) -> str:
    """Return the wall as HTML, for a page at the top of the site."""
    return '<div class="wall">\n' + "\n".join(map(_write_tile, tiles)) + "\n</div>"


def _write_tile(tile: Tile) -> str:
    title, finding = map(MarkdownIt(options_update={"html": False}).renderInline, (tile.title, tile.finding))
    page, live, picture = f"notebooks/{tile.name}.html", "", ""
    if tile.panel:
        url = f"_static/{tile.panel}"
        words = escape(re.sub(r"[*`]", "", tile.title))
        picture = f'<a href="{url}.html"><img src="{url}.png" alt="{words}" loading="lazy"></a>'
        live = f'<a href="{url}.html">Live page</a> · '
    return (
        f'<div class="tile">{picture}<h2><a href="{page}">{title}</a></h2><p>{finding}</p>'
        f'<p class="links">{live}<a href="{page}">Notebook</a></p></div>'
    )
