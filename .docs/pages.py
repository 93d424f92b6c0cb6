"""What this site needs beyond Sphinx: the notebooks, links into the repository, formulas, records as they are read."""

import json
import re
from dataclasses import is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.domains.python import PyObject

HERE = Path(__file__).parent
NOTEBOOKS = HERE.parent / "notebooks"
HIDDEN = {"tags": ["remove-cell"]}


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("builder-inited", copy_notebooks)
    app.connect("source-read", relink)
    app.connect("doctree-read", spell_badges)
    app.connect("html-page-context", load_figures)
    app.connect("autodoc-process-signature", hide_constructor)
    app.connect("autodoc-skip-member", skip_attribute)
    app.add_html_math_renderer("mathml", (write_formula, None), (write_formula, None))
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"
    return {"parallel_read_safe": True}


def copy_notebooks(app: Sphinx) -> None:
    """Put the notebooks beside the pages, each with a cell before its own (opening.py); folded cells are not shown."""
    opening = {"cell_type": "code", "id": "opening", "metadata": HIDDEN, "outputs": [], "execution_count": None}
    for path in NOTEBOOKS.glob("*.ipynb"):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for cell in notebook["cells"]:
            if cell["metadata"].get("jupyter", {}).get("source_hidden"):
                cell["metadata"] |= HIDDEN
        source = (HERE / "opening.py").read_text(encoding="utf-8").replace("NOTEBOOK", path.stem)
        notebook["cells"].insert(0, opening | {"source": source})
        text, copy = json.dumps(notebook), HERE / "notebooks" / path.name
        if not copy.exists() or copy.read_text(encoding="utf-8") != text:  # what is new is run again
            copy.write_text(text, encoding="utf-8")


def relink(app: Sphinx, page: str, source: list[str]) -> None:
    """Pages link to the repository's files, as they must where they are read there; here those are pages, too."""
    if "/" not in page:
        source[0] = source[0].replace("](../README.md", "](index.md")
        source[0] = re.sub(r"\]\(\.\./(notebooks/|CHANGELOG\.md|CONTRIBUTING\.md)", r"](\1", source[0])


def spell_badges(app: Sphinx, page: nodes.document) -> None:
    """A picture from another site would be fetched by every reader: its words instead."""
    for picture in list(page.findall(nodes.image)):
        if "://" in picture["uri"]:
            picture.replace_self(nodes.inline(text=picture["alt"], classes=["badge"]))


def load_figures(app: Sphinx, page: str, *_: Any) -> None:
    """Plotly on the pages of notebooks alone."""
    if page.startswith("notebooks/"):
        app.add_js_file("plotly.min.js", priority=600)
        app.add_js_file("figures.js", priority=601)


def hide_constructor(app: Sphinx, what: str, name: str, value: Any, *_: Any) -> tuple[str, str] | None:
    """Records are handed over by functions; nobody calls them."""
    return ("", "") if what == "class" and is_dataclass(value) else None


def skip_attribute(app: Sphinx, what: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """What is among the attributes of a class is not told twice."""
    if not isinstance(member, property) or member.fget is None:
        return None
    owner = getattr(import_module(member.fget.__module__), member.fget.__qualname__.partition(".")[0])
    return True if re.search(rf"^ +{name}: ", owner.__doc__ or "", re.MULTILINE) else None


def write_formula(translator: Any, node: nodes.math | nodes.math_block) -> None:
    """TeX as MathML, which browsers draw by themselves."""
    formula = tex2mathml(node.astext(), as_block=isinstance(node, nodes.math_block))
    translator.body.append(f'<div class="formula">{formula}</div>' if isinstance(node, nodes.math_block) else formula)
    raise nodes.SkipNode
