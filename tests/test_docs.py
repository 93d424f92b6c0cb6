"""The site: all that is public is in its reference, what it says runs, its links lead somewhere, and it builds."""

import doctest
import importlib
import re
import runpy
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path

import plotly.graph_objects as go
import pytest

import loss_viz

ROOT = Path(__file__).parent.parent
DOCS = ROOT / ".docs"
PAGES = sorted(DOCS.glob("*.md"))
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *PAGES]
CALLBACKS = ["lightning.RecorderCallback", "transformers.RecorderCallback"]

needs_sphinx = pytest.mark.skipif(find_spec("myst_nb") is None, reason='the site needs pip install -e ".[docs]"')


def read(path):
    return path.read_text(encoding="utf-8")


def read_blocks(page):
    return re.findall(r"```python\n(.*?)```", read(DOCS / f"{page}.md"), flags=re.DOTALL)


def list_anchors(text):
    """Anchors of the headings of a page, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def list_links(text):
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def test_the_reference_holds_all_that_is_public_and_nothing_else():
    pages = sorted((DOCS / "reference").glob("*.rst"))
    entries = [name for page in pages for name in re.findall(r"^\.\. auto\w+:: (\S+)$", read(page), re.MULTILINE)]
    assert sorted(name.removeprefix("loss_viz.") for name in entries) == sorted([*loss_viz.__all__, *CALLBACKS])
    listed = re.findall(r"^reference/\w+$", read(DOCS / "index.md"), re.MULTILINE)
    assert sorted(listed) == [f"reference/{page.stem}" for page in pages]


@pytest.mark.parametrize("name", [*loss_viz.__all__, *CALLBACKS])
def test_every_public_name_has_an_example_that_the_tests_run(name):
    room, _, callback = name.partition(".")
    if callback and find_spec(room) is None:
        pytest.skip(f"{room} is not installed")
    value = getattr(importlib.import_module(f"loss_viz.{room}"), callback) if callback else getattr(loss_viz, name)
    module = importlib.import_module(value.__module__)
    assert Path(module.__file__).parent == ROOT / "loss_viz"
    collected = {test.name: test for test in doctest.DocTestFinder().find(module)}  # as pytest does
    examples = collected[f"{module.__name__}.{value.__name__}"].examples
    assert any(example.want for example in examples)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    for link in list_links(read(path)):
        target, _, anchor = link.partition("#")
        if target.startswith("https://"):
            continue
        file = (path.parent / target).resolve() if target else path
        assert file.is_file(), link
        assert file.is_relative_to(ROOT), link
        assert not anchor or anchor in list_anchors(read(file)), link


def test_links_and_anchors_are_found_where_they_are():
    text = "## How *true* is it?\n[a](x.md#how-true-is-it) ![b](c.png)\n```sh\n# no heading [d](e)\n```\n"
    assert list_links(text) == ["x.md#how-true-is-it", "c.png"]
    assert list_anchors(text) == {"how-true-is-it"}


def test_the_panel_opens_as_its_page_says():
    [code] = read_blocks("panel")
    names: dict = {}
    exec(compile(code, "panel.md", "exec"), names)
    explorer = names["explorer"]
    assert explorer.wait()
    assert explorer.landscape.k == 5
    explorer.close()


@pytest.mark.parametrize("page", ["your_model", "several_runs", "speed"])
def test_the_code_of_a_page_runs_and_ends_in_a_figure(page):
    [code] = read_blocks(page)
    *lines, last = code.strip().splitlines()
    names: dict = {}
    exec(compile("\n".join(lines), f"{page}.md", "exec"), names)
    assert isinstance(eval(last, names), go.Figure)


def test_the_page_to_share_is_written_as_its_page_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    [code] = read_blocks("share")
    exec(compile(code, "share.md", "exec"), {})
    assert [path.name for path in tmp_path.iterdir()] == ["run.html"]


@needs_sphinx
def test_the_configuration_names_files_that_are_there(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    config = runpy.run_path(str(DOCS / "conf.py"))
    assert config["version"] == loss_viz.__version__
    assert all((DOCS / path).exists() for path in config["html_static_path"])
    for name in ("html_theme", "extensions"):
        for module in [config[name]] if isinstance(config[name], str) else config[name]:
            assert find_spec(module), module


class Fetched(HTMLParser):
    """Addresses that a browser asks for when it opens a page."""

    def __init__(self, page):
        super().__init__()
        self.addresses = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        wanted = {"script": "src", "img": "src", "iframe": "src", "link": "href", "source": "src"}.get(tag)
        self.addresses += [value for name, value in attrs if name == wanted and value]


@needs_sphinx
def test_the_site_builds_without_a_warning_and_asks_no_other_site(tmp_path):
    """All but the notebooks' outputs: those are made, and tested, with the notebooks themselves."""
    command = [sys.executable, "-m", "sphinx", "-M", "html", DOCS, tmp_path, "-q", "-W", "-D", "nb_execution_mode=off"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    site = tmp_path / "html"
    pages = sorted(site.rglob("*.html"))
    assert {page.stem for page in pages} >= {path.stem for path in [*PAGES, *(ROOT / "notebooks").glob("*.ipynb")]}
    for page in pages:
        for address in Fetched(read(page)).addresses:
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


@needs_sphinx
def test_pictures_of_other_sites_become_words(monkeypatch):
    from docutils.core import publish_doctree

    monkeypatch.syspath_prepend(str(DOCS))
    pages = importlib.import_module("pages")
    badge, own = ".. image:: https://a.example/badge.svg\n   :alt: Launch\n\n", ".. image:: own.png\n"
    page = publish_doctree(badge + own)
    pages.spell_badges(None, page)
    assert "Launch" in page.astext()
    assert [image["uri"] for image in page.findall(pages.nodes.image)] == ["own.png"]
