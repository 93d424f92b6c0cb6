"""The site: its reference is complete, its examples run, its links point to something, and it builds."""

import doctest
import importlib
import os
import re
import runpy
import subprocess
import sys
import typing
from html.parser import HTMLParser
from importlib.util import find_spec
from inspect import isfunction
from pathlib import Path

import nbformat
import plotly.graph_objects as go
import pytest

import loss_viz

ROOT = Path(__file__).parent.parent
DOCS = ROOT / ".docs"
PAGES = sorted(DOCS.glob("*.md"))
REFERENCE = sorted((DOCS / "reference").glob("*.rst"))
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *PAGES]
CALLBACKS = ["lightning.RecorderCallback", "transformers.RecorderCallback"]

needs_sphinx = pytest.mark.skipif(find_spec("myst_nb") is None, reason='the site needs pip install -e ".[docs]"')


def read(path):
    return path.read_text(encoding="utf-8")


def read_blocks(page):
    return re.findall(r"```python\n(.*?)```", read(DOCS / f"{page}.md"), flags=re.DOTALL)


def list_anchors(text):
    """Return the anchors of the headings of a page, as GitHub creates them."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def list_links(text):
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def list_entries(indent):
    """Return the names in the reference, without `loss_viz.`, of the entries with this indentation."""
    found = (re.findall(rf"^{indent}\.\. auto\w+:: (\S+)$", read(page), re.MULTILINE) for page in REFERENCE)
    return sorted(name.removeprefix("loss_viz.") for names in found for name in names)


def test_the_reference_lists_exactly_the_public_names():
    assert list_entries(indent="") == sorted([*loss_viz.__all__, *CALLBACKS])
    listed = re.findall(r"^reference/\w+$", read(DOCS / "index.md"), re.MULTILINE)
    assert sorted(listed) == [f"reference/{page.stem}" for page in REFERENCE]


def test_the_reference_lists_every_record_that_a_public_function_returns():
    functions = [value for value in (getattr(loss_viz, name) for name in loss_viz.__all__) if isfunction(value)]
    hints = [typing.get_type_hints(function)["return"] for function in functions]
    classes = {one for hint in hints for one in (hint, *typing.get_args(hint)) if hasattr(one, "__qualname__")}
    records = {f"{one.__module__}.{one.__qualname__}".removeprefix("loss_viz.") for one in classes if is_own(one)}
    assert records
    assert records <= set(list_entries(indent=" +"))


def is_own(value):
    return value.__module__.startswith("loss_viz.") and value.__qualname__ not in loss_viz.__all__


@pytest.mark.parametrize("name", [*loss_viz.__all__, *CALLBACKS])
def test_every_public_name_has_an_example_that_the_tests_run(name):
    framework, _, callback = name.partition(".")
    if callback and find_spec(framework) is None:
        pytest.skip(f"{framework} is not installed")
    value = getattr(importlib.import_module(f"loss_viz.{framework}"), callback) if callback else getattr(loss_viz, name)
    module = importlib.import_module(value.__module__)
    assert Path(module.__file__).is_relative_to(ROOT / "loss_viz")  # whose doctests are collected
    collected = {test.name: test for test in doctest.DocTestFinder().find(module)}  # as pytest does
    examples = collected[f"{module.__name__}.{value.__name__}"].examples
    assert any(example.want for example in examples)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_point_to_files_and_headings_that_exist(path):
    for link in list_links(read(path)):
        target, _, anchor = link.partition("#")
        if target.startswith("https://"):
            continue
        file = (path.parent / target).resolve() if target else path
        assert file.is_file(), link
        assert file.is_relative_to(ROOT), link
        assert not anchor or anchor in list_anchors(read(file)), link


def test_links_and_anchors_are_found_in_markdown():
    text = "## How *true* is it?\n[a](x.md#how-true-is-it) ![b](c.png)\n```sh\n# a comment [d](e)\n```\n"
    assert list_links(text) == ["x.md#how-true-is-it", "c.png"]
    assert list_anchors(text) == {"how-true-is-it"}


def test_the_examples_of_the_panel_page_open_panels(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    opening, following, watching = read_blocks("panel")
    exec(compile(opening, "panel.md", "exec"), names)
    explorer = names["explorer"]
    assert explorer.wait()
    assert explorer.landscape.k == 5
    explorer.close()
    exec(compile(following, "panel.md", "exec"), names)
    explorer = names["explorer"]
    assert explorer.wait(60.0)
    assert len(explorer.run) == 301
    explorer.close()
    exec(compile(watching, "panel.md", "exec"), names)


@pytest.mark.parametrize("page", ["your_model", pytest.param("several_runs", marks=pytest.mark.slow), "speed", "truth"])
def test_the_examples_of_a_page_run_one_after_another_and_end_with_figures(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for code in read_blocks(page):
        *lines, last = code.strip().splitlines()
        exec(compile("\n".join(lines), f"{page}.md", "exec"), names)
        figure = eval(last, names)
        assert isinstance(figure, go.Figure)
        for text in re.findall(r'# "(.*)"', last):  # what the page says that the figure says
            assert text in figure.to_json()


def test_the_examples_of_the_page_on_sharing_write_files(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib").use("agg")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for code in read_blocks("share"):
        exec(compile(code, "share.md", "exec"), names)
    names["plt"].close("all")
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {"run.html", "figure.pdf", "mine.svg", "land.stl"}


RECIPES = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", read(DOCS / "recipes.md"), flags=re.MULTILINE | re.DOTALL))


@pytest.mark.filterwarnings("default")  # of other libraries
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_with_its_library_and_ends_with_a_figure(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", RECIPES[name], flags=re.DOTALL)
    for library in re.findall(r"^(?:import|from) (\w+)", "".join(blocks), flags=re.MULTILINE):
        pytest.importorskip(library)
    if "accelerate" in sys.modules:  # which other tests may have set up, once for the process
        sys.modules["accelerate"].state.AcceleratorState._reset_state(reset_partial_state=True)
    names: dict = {}
    assert blocks
    for code in blocks:
        *lines, last = code.strip().splitlines()
        exec(compile("\n".join(lines), "recipes.md", "exec"), names)
        made = eval(last, names)
        assert isinstance(made, go.Figure) or made.stat().st_size > 1000


@needs_sphinx
def test_the_configuration_names_files_and_modules_that_exist(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    config = runpy.run_path(str(DOCS / "conf.py"))
    assert config["version"] == loss_viz.__version__
    assert all((DOCS / path).exists() for path in config["html_static_path"])
    for name in ("html_theme", "extensions"):
        for module in [config[name]] if isinstance(config[name], str) else config[name]:
            assert find_spec(module), module


class Requests(HTMLParser):
    """Addresses that a browser requests when it opens a page."""

    def __init__(self, page):
        super().__init__()
        self.addresses = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        wanted = {"script": "src", "img": "src", "iframe": "src", "link": "href", "source": "src"}.get(tag)
        self.addresses += [value for name, value in attrs if name == wanted and value]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Build the site without warnings or executed notebooks; LOSS_VIZ_SITE names one in which they are executed."""
    if "LOSS_VIZ_SITE" in os.environ:
        return Path(os.environ["LOSS_VIZ_SITE"]) / "html"
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-M", "html", DOCS, folder, "-q", "-W", "-D", "nb_execution_mode=off"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return folder / "html"


@pytest.mark.slow
@needs_sphinx
def test_the_site_makes_no_requests_to_other_sites(site):
    pages = sorted(site.rglob("*.html"))
    assert {page.stem for page in pages} >= {path.stem for path in [*PAGES, *(ROOT / "notebooks").glob("*.ipynb")]}
    for page in pages:
        for address in Requests(read(page)).addresses:
            assert not re.match(r"(\w+:)?//", address), (page.name, address)
            file = re.split("[?#]", address)[0]
            assert not file or (page.parent / file).is_file(), (page.name, address)
    for style in site.rglob("*.css"):
        assert not re.search(r"@import|url\(\W?(https?:)?//", read(style)), style.name
    reference = "".join(read(page) for page in (site / "reference").glob("*.html"))
    for name in loss_viz.__all__:
        assert f'id="loss_viz.{name}"' in reference, name
    assert "<math" in read(site / "method.html")
    assert "\\theta" not in read(site / "method.html")


@pytest.mark.slow
@pytest.mark.browser
@needs_sphinx
def test_no_page_is_wider_than_its_window(site):
    """At the narrowest common width of each layout of the theme; one page of a panel stands for all."""
    from lab import open_chromium

    pages, panels = sorted(site.rglob("*.html")), sorted((site / "_static").glob("*.html"))
    too_wide = []
    with open_chromium() as browser:
        page = browser.new_page()
        for file in [one for one in pages if one not in panels[1:]]:
            page.goto(file.as_uri())
            for width in (390, 768, 1024, 1440):
                page.set_viewport_size({"width": width, "height": 900})
                extra = page.evaluate("document.scrollingElement.scrollWidth - document.scrollingElement.clientWidth")
                too_wide += [(file.name, width, extra)] if extra > 0 else []
        table = page.goto((site / "truth.html").as_uri()) and page.locator("table").first
        page.set_viewport_size({"width": 390, "height": 900})
        assert table.evaluate("table => table.scrollWidth > table.parentElement.clientWidth")  # and scrolls in its box
    assert not too_wide


@needs_sphinx
def test_images_on_other_sites_are_replaced_by_their_text(monkeypatch):
    from docutils.core import publish_doctree

    monkeypatch.syspath_prepend(str(DOCS))
    pages = importlib.import_module("pages")
    badge, own = ".. image:: https://a.example/badge.svg\n   :alt: Launch\n\n", ".. image:: own.png\n"
    page = publish_doctree(badge + own)
    pages.replace_badges(None, page)
    assert "Launch" in page.astext()
    assert [image["uri"] for image in page.findall(pages.nodes.image)] == ["own.png"]


def write_notebook(path, *cells, **metadata):
    notebook = nbformat.v4.new_notebook(metadata=metadata)
    kinds = {"code": nbformat.v4.new_code_cell, "markdown": nbformat.v4.new_markdown_cell}
    notebook.cells = [kinds[kind](text) for kind, text in cells]
    nbformat.write(notebook, path)


@needs_sphinx
def test_the_wall_has_a_tile_for_each_notebook_that_opens_a_panel(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    wall = importlib.import_module("wall")
    notebooks, panels = tmp_path / "notebooks", tmp_path / "panels"
    notebooks.mkdir()
    panels.mkdir()
    links = "[Open in Colab](https://a.example/b.ipynb) ·\n[Launch on Binder](https://c.example)"
    text = f"# Why is *it* <slow>?\n\n{links}\n\nIt waits for [*x³*](x.md). Then it\ngoes on."
    opens = ("code", "explorer = lv.Explorer(run)\nexplorer")
    write_notebook(notebooks / "02_b.ipynb", ("code", "import loss_viz as lv"), ("markdown", text), opens)
    write_notebook(notebooks / "01_a.ipynb", ("markdown", "# A\n\nText."), opens, finding="It was `this`.")
    write_notebook(notebooks / "03_c.ipynb", ("markdown", "# C\n\nNo panel."), ("code", "lv.surface_figure(land)"))
    for name in ("02_b_2.png", "02_b_1.png", "02_b_1.html", "03_c_1.png"):
        (panels / name).touch()
    tiles = wall.list_tiles(notebooks, panels)
    assert tiles == [
        wall.Tile("01_a", "A", "It was `this`.", ""),
        wall.Tile("02_b", "Why is *it* <slow>?", "It waits for *x³*.", "02_b_1"),
    ]
    html = wall.write_wall(tiles)
    assert Requests(html).addresses == ["_static/02_b_1.png"]
    assert re.findall(r'href="([^"]*)"', html) == [
        *["notebooks/01_a.html"] * 2,
        *["_static/02_b_1.html", "notebooks/02_b.html", "_static/02_b_1.html", "notebooks/02_b.html"],
    ]
    assert "<p>It was <code>this</code>.</p>" in html
    assert '<a href="notebooks/02_b.html">Why is <em>it</em> &lt;slow&gt;?</a>' in html
    assert 'alt="Why is it &lt;slow&gt;?"' in html
    write_notebook(notebooks / "04_d.ipynb", ("markdown", "No title."), opens)
    with pytest.raises(ValueError, match=r"04_d\.ipynb needs a title"):
        wall.list_tiles(notebooks, panels)


@needs_sphinx
def test_findings_on_the_wall_are_short(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    wall = importlib.import_module("wall")
    tiles = wall.list_tiles(ROOT / "notebooks", DOCS / "_build" / "panels")
    assert len(tiles) >= 3
    assert {tile.name: tile.finding for tile in tiles if len(tile.finding) > 160} == {}
