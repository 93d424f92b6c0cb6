"""The README: its code runs as stated, and its links and notebooks are in order."""

import json
import re
from pathlib import Path

import nbformat
import plotly.graph_objects as go
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("code", BLOCKS, ids=["five_lines", "own_model"])
def test_its_code_runs_and_ends_with_a_figure(code, capsys):
    lines = code.strip().splitlines()
    names: dict = {}
    exec(compile("\n".join(lines[:-1]), "README.md", "exec"), names)
    assert isinstance(eval(lines[-1], names), go.Figure)
    assert all(text in code for text in re.findall(r"Fidelity\(median=\d\.\d\d", capsys.readouterr().out))


def list_words(text):
    """Return the words that a reader sees: no code blocks, comments, images or addresses of links."""
    for hidden in (r"```.*?```", r"<!--.*?-->", r"!\[[^]]*\]\([^)]*\)"):
        text = re.sub(hidden, " ", text, flags=re.DOTALL)
    text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text)
    return [word for word in text.split() if re.search(r"\w", word)]


def test_it_can_be_read_in_two_minutes():
    assert list_words("# A *b*\n[![c](d e)](f) [g](h) | `i j` |\n<!-- k -->\n```sh\nl\n```\n- – m") == [
        *("A", "*b*", "g", "`i", "j`", "m"),
    ]
    assert 300 < len(list_words(README)) <= 900


def test_it_opens_with_a_short_film_that_repeats():
    [path] = re.findall(r"\]\(([^)]+\.gif)\)", README)
    assert (ROOT / path).stat().st_size <= 1_000_000
    durations = []
    with Image.open(ROOT / path) as film:
        assert film.info["loop"] == 0  # for ever
        for frame in range(film.n_frames):
            film.seek(frame)
            durations.append(film.info["duration"])
    assert len(durations) > 50
    assert 6000 <= sum(durations) <= 8000
    assert min(film.size) >= 600


def test_its_links_point_to_files_that_exist():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target.startswith("https://") or (ROOT / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.name)
def test_notebooks_are_stored_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert "widgets" not in notebook.metadata
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs
            assert cell.execution_count is None
    assert json.loads(path.read_text(encoding="utf-8"))["metadata"]["kernelspec"]["name"] == "python3"
