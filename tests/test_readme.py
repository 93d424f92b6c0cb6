"""The README: its code runs as stated, and its links and notebooks are in order."""

import json
import re
from pathlib import Path

import nbformat
import plotly.graph_objects as go
import pytest

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


def test_its_links_point_to_files_that_exist():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).exists(), target


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
