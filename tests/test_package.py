"""Distributions: the wheel contains exactly the package, the sdist everything that development needs."""

import email
import json
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("hatchling")

ROOT = Path(__file__).parent.parent
UNTRACKED = {"__pycache__", ".ipynb_checkpoints", "results"}  # folders that may be in a checkout
BUILD = "import sys; from hatchling import build; print(getattr(build, sys.argv[1])(sys.argv[2]))"


def pack(kind, folder, source):
    """Build a wheel or an sdist of a folder as pip would, and return its path."""
    command = [sys.executable, "-c", BUILD, f"build_{kind}", folder]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=True)
    return folder / done.stdout.split()[-1]


def contents(wheel):
    with zipfile.ZipFile(wheel) as packed:
        return {name: packed.read(name) for name in packed.namelist()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return pack("wheel", tmp_path_factory.mktemp("wheel"), ROOT)


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """Return the folder of the unpacked sdist."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(pack("sdist", folder, ROOT)) as packed:
        packed.extractall(folder, filter="data")
    [unpacked] = (path for path in folder.iterdir() if path.is_dir())
    return unpacked


def list_files(folder):
    """Return the paths of the files in a folder and its subfolders, relative to the repository."""
    files = (path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if path.is_file())
    return {path.as_posix() for path in files if not UNTRACKED & set(path.parts)}


def test_the_wheel_contains_the_package_and_nothing_else(wheel):
    package = list_files("loss_viz")
    expected = ("__init__.py", "__init__.pyi", "py.typed", "panel/explorer.py", "static/figure_widget.js")
    assert {f"loss_viz/{name}" for name in expected} <= package
    names = contents(wheel)
    about = {name for name in names if ".dist-info/" in name}
    assert {name.rpartition("/")[2] for name in about} == {"METADATA", "WHEEL", "RECORD", "LICENSE"}
    assert names.keys() - about == package
    for name in package:
        assert names[name] == (ROOT / name).read_bytes()
    assert wheel.stat().st_size < 700_000  # a third of it is the run with which the panel opens


def test_the_metadata_names_repository_and_dependencies(wheel):
    [text] = (text for name, text in contents(wheel).items() if name.endswith("/METADATA"))
    metadata = email.message_from_bytes(text)
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["Project-URL"].startswith("Repository, https://github.com/")
    assert metadata["Description-Content-Type"] == "text/markdown"
    plain = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert not [line for line in plain if line.startswith(("jupyterlab", "pytest", "nbval", "matplotlib"))]


def list_extra(metadata, extra):
    """Return the names of the packages that an extra brings, also by way of other extras of loss_viz."""
    lines = [line for line in metadata.get_all("Requires-Dist") if re.search(rf"extra == ['\"]{extra}['\"]", line)]
    names = {re.match(r"[\w.-]+", line)[0] for line in lines} - {"loss-viz", "loss_viz"}
    for inner in [part for line in lines for part in re.findall(r"^loss[-_]viz\[([\w,]+)\]", line)]:
        names.update(*(list_extra(metadata, one) for one in inner.split(",")))
    return names


def test_each_extra_that_a_message_names_brings_what_is_missing(wheel):
    [text] = (text for name, text in contents(wheel).items() if name.endswith("/METADATA"))
    metadata = email.message_from_bytes(text)
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "loss_viz").rglob("*.py")]
    named = {extra for source in sources for extra in re.findall(r'extra_error\([^)]*error, "(\w+)"', source)}
    brought = {extra: list_extra(metadata, extra) for extra in [*named, "lab"]}
    expected = {"film": {"matplotlib", "imageio-ffmpeg"}, "xarray": {"xarray"}, "lightning": {"lightning"}}
    assert named == {*expected, "transformers"}
    assert {extra: brought[extra] for extra in expected} == expected
    assert brought["transformers"] == {"transformers"}
    assert brought["lab"] == {"jupyterlab", "ipywidgets", *expected["film"], *expected["xarray"]}


def test_the_sdist_contains_everything_that_development_needs(sdist):
    folders = ("loss_viz", "tests", "notebooks", "benchmarks", "binder", ".ci", ".github/images")
    for name in set().union(*map(list_files, folders)):
        assert (sdist / name).read_bytes() == (ROOT / name).read_bytes()
    top = {path.name for path in sdist.iterdir() if not path.name.startswith(".")}
    assert {"PKG-INFO", "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "pyproject.toml"} <= top
    assert not [path for path in sdist.rglob("*") if path.name in {".git", ".venv", *UNTRACKED}]


def test_notebooks_in_the_sdist_have_no_outputs(sdist):
    for path in (sdist / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        assert not any(cell.get("outputs") for cell in cells)


def test_a_wheel_built_from_the_sdist_is_the_same(wheel, sdist, tmp_path):
    again = contents(pack("wheel", tmp_path, sdist))
    assert again == contents(wheel)
