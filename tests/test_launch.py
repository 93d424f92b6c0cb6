"""Colab and Binder: badges and links, the first cell of the notebooks, and Binder's environment."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # a dependency of pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SLUG = PROJECT["urls"]["Repository"].removeprefix("https://github.com/")
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

COLAB = f"https://colab.research.google.com/github/{SLUG}/blob/main/notebooks/{{}}"
BINDER = f"https://mybinder.org/v2/gh/{SLUG}/main?urlpath=lab/tree/notebooks/{{}}"
LINK = re.compile(
    r"(?:git(?:\+| clone )https://github\.com|mybinder\.org/v2/gh|colab\.research\.google\.com/github)/([\w.-]+/[\w.-]+)"
)

CELL = f"""\
# @title On Colab: install loss_viz and allow its widgets. Elsewhere this cell does nothing.
import sys

if "google.colab" in sys.modules:
    from google.colab import output

    %pip install -q "loss_viz @ git+https://github.com/{SLUG}"
    output.enable_custom_widget_manager()"""

# Runs the cell in IPython, with or without a fake of Colab's module, and prints the calls and the new names.
RUN_CELL = """
import sys, types
from IPython.core.interactiveshell import InteractiveShell

shell = InteractiveShell()
shell.history_manager.enabled = False
shell.register_magic_function(lambda line: print("pip", line), "line", "pip")
if sys.argv[2] == "colab":
    output = types.SimpleNamespace(enable_custom_widget_manager=lambda: print("widgets enabled"))
    sys.modules["google.colab"] = types.SimpleNamespace(output=output)
    sys.modules["google"] = types.SimpleNamespace(colab=sys.modules["google.colab"])
own = set(shell.user_ns)
shell.run_cell(sys.argv[1]).raise_error()
print("new:", *(name for name in shell.user_ns if name not in own and not name.startswith("_")))
"""


def run_cell(host):
    command = [sys.executable, "-W", "ignore", "-c", RUN_CELL, CELL, host]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def test_every_link_names_the_repository_of_pyproject():
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", SLUG)
    for path in (*NOTEBOOKS, ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        for found in LINK.findall(path.read_text(encoding="utf-8")):
            assert found == SLUG, f"to rewrite the links: sed -i 's#{found}#{SLUG}#g' README.md notebooks/*.ipynb"


def test_the_badges_of_the_readme_open_the_panel_on_colab_and_binder():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for link in (COLAB, BINDER):
        assert re.search(rf"\[!\[[^]]+\]\(https://\S+\.svg\)\]\({re.escape(link.format('02_explore.ipynb'))}\)", readme)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_each_notebook_starts_with_the_colab_cell_and_links_to_itself(path):
    first, title, *_ = nbformat.read(path, as_version=4).cells
    assert first.source == CELL
    assert first.metadata == {"cellView": "form", "jupyter": {"source_hidden": True}}  # its code is folded
    assert title.cell_type == "markdown"
    assert title.source.startswith("# ")
    for link in (COLAB, BINDER):
        assert f"]({link.format(path.name)})" in title.source


def test_the_cell_installs_the_package_and_enables_widgets_on_colab():
    command = f'pip install -q "loss_viz @ git+https://github.com/{SLUG}"'
    assert run_cell("colab") == [command, "widgets enabled", "new: sys output"]


def test_the_cell_does_nothing_elsewhere():
    assert run_cell("elsewhere") == ["new: sys"]


def read_pins():
    lines = (ROOT / "binder/requirements.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith(("#", "--"))]


def test_binder_pins_every_dependency_within_the_bounds_of_pyproject():
    # Without what images and data sets need, which no notebook uses: the image on Binder stays small.
    lab = [line for line in PROJECT["optional-dependencies"]["lab"] if not line.startswith("loss_viz[")]
    required = [*PROJECT["dependencies"], *lab]
    bounds: dict[str, SpecifierSet] = {}
    for requirement in map(Requirement, required):
        bounds[requirement.name] = bounds.get(requirement.name, SpecifierSet()) & requirement.specifier
    pins = {pin.name: re.fullmatch(r"==([\d.]+(?:\+cpu)?)", str(pin.specifier)) for pin in read_pins()}
    assert set(pins) == set(bounds)
    for name, pin in pins.items():
        assert pin, f"binder/requirements.txt must pin {name} with =="
        assert bounds[name].contains(pin[1])


def test_binder_installs_pytorch_for_the_cpu():
    [torch] = [pin for pin in read_pins() if pin.name == "torch"]
    assert str(torch.specifier).endswith("+cpu")  # with CUDA it takes five gigabytes
    assert "\n--extra-index-url https://" in (ROOT / "binder/requirements.txt").read_text(encoding="utf-8")


def test_binder_installs_the_package_after_its_pins():
    version = (ROOT / "binder/runtime.txt").read_text(encoding="utf-8").strip().removeprefix("python-")
    assert SpecifierSet(PROJECT["requires-python"]).contains(version)
    post_build = ROOT / "binder/postBuild"
    assert os.access(post_build, os.X_OK)
    subprocess.run(["bash", "-n", post_build], check=True)
    assert post_build.read_text(encoding="utf-8").splitlines()[-1] == "pip install --no-deps ."
