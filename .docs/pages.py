"""Sphinx extension of this site: executed notebooks, links to repository files, formulas, and result records."""

import json
import re
from dataclasses import is_dataclass
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from jupyter_cache import get_cache
from sphinx.application import Sphinx
from sphinx.domains.python import PyObject

HERE = Path(__file__).parent
ROOT = HERE.parent
HIDDEN, FOLDED = {"tags": ["remove-cell"]}, {"tags": ["hide-input"]}


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension; called by Sphinx."""
    app.connect("builder-inited", copy_notebooks)
    app.connect("source-read", fix_links)
    app.connect("doctree-read", replace_badges)
    app.connect("html-page-context", load_figures)
    app.connect("autodoc-process-signature", hide_constructor)
    app.connect("autodoc-skip-member", skip_attribute)
    app.add_html_math_renderer("mathml", (write_formula, None), (write_formula, None))
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"
    return {"parallel_read_safe": True}


def copy_notebooks(app: Sphinx) -> None:
    """Copy the notebooks next to the pages, each with opening.py as a hidden first cell; folded cells stay folded.

    Sphinx reads a copy again if it has changed, and runs it if its code is not in the cache.
    """
    get_cache(app.config.nb_execution_cache_path).list_cache_records()  # creates it before parallel jobs use it
    template = (HERE / "opening.py").read_text(encoding="utf-8").replace("DIGEST", digest_package())
    opening = {"cell_type": "code", "id": "opening", "metadata": HIDDEN, "outputs": [], "execution_count": None}
    (HERE / "notebooks").mkdir(exist_ok=True)
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for cell in notebook["cells"]:
            if cell["id"] == "colab":
                cell["metadata"] |= HIDDEN
            elif cell["metadata"].get("jupyter", {}).get("source_hidden"):
                cell["metadata"] |= FOLDED
        notebook["cells"].insert(0, opening | {"source": template.replace("NOTEBOOK", path.stem)})
        text, copy = json.dumps(notebook), HERE / "notebooks" / path.name
        if not copy.exists() or copy.read_text(encoding="utf-8") != text:
            copy.write_text(text, encoding="utf-8")


def digest_package() -> str:
    """Return a digest of the files of loss_viz."""
    digest = sha256()
    for path in sorted((ROOT / "loss_viz").rglob("*.*")):
        if path.suffix != ".pyc" and path.is_file():
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def fix_links(app: Sphinx, page: str, source: list[str]) -> None:
    """Replace links to files of the repository, as needed on GitHub, by links to pages of the site."""
    if "/" not in page:
        source[0] = source[0].replace("](../README.md", "](index.md")
        source[0] = re.sub(r"\]\(\.\./(notebooks/|CHANGELOG\.md|CONTRIBUTING\.md)", r"](\1", source[0])


def replace_badges(app: Sphinx, page: nodes.document) -> None:
    """Replace images on other sites by their text, so that readers fetch nothing from there."""
    for image in list(page.findall(nodes.image)):
        if "://" in image["uri"]:
            image.replace_self(nodes.inline(text=image["alt"], classes=["badge"]))


def load_figures(app: Sphinx, page: str, *_: Any) -> None:
    """Load Plotly on the pages of notebooks only."""
    if page.startswith("notebooks/"):
        app.add_js_file("plotly.min.js", priority=600)
        app.add_js_file("figures.js", priority=601)


def hide_constructor(app: Sphinx, what: str, name: str, value: Any, *_: Any) -> tuple[str, str] | None:
    """Hide the constructors of records, which functions return and users do not create."""
    return ("", "") if what == "class" and is_dataclass(value) else None


def skip_attribute(app: Sphinx, what: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """Skip properties that the docstring of their class lists as attributes."""
    if not isinstance(member, property) or member.fget is None:
        return None
    owner = getattr(import_module(member.fget.__module__), member.fget.__qualname__.partition(".")[0])
    return True if re.search(rf"^ +{name}: ", owner.__doc__ or "", re.MULTILINE) else None


def write_formula(translator: Any, node: nodes.math | nodes.math_block) -> None:
    """Write TeX as MathML, which browsers render natively."""
    formula = tex2mathml(node.astext(), as_block=isinstance(node, nodes.math_block))
    translator.body.append(f'<div class="formula">{formula}</div>' if isinstance(node, nodes.math_block) else formula)
    raise nodes.SkipNode
