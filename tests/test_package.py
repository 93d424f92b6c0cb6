"""What is packed: the wheel holds the package and nothing else, the sdist all that one works with."""

import email
import itertools
import json
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("hatchling")

ROOT = Path(__file__).parent.parent
BUILD = "import sys; from hatchling import build; print(getattr(build, sys.argv[1])(sys.argv[2]))"


def pack(kind, folder, source):
    """Build a wheel or an sdist of a folder as pip would, and give the file."""
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
    """The sdist, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(pack("sdist", folder, ROOT)) as packed:
        packed.extractall(folder, filter="data")
    [unpacked] = (path for path in folder.iterdir() if path.is_dir())
    return unpacked


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    package = {path.name for path in (ROOT / "loss_viz").iterdir() if path.is_file()}
    assert {"py.typed", "picture.js", "picture.css", "__init__.py"} <= package
    names = contents(wheel)
    about = {name for name in names if ".dist-info/" in name}
    assert {name.rpartition("/")[2] for name in about} == {"METADATA", "WHEEL", "RECORD", "LICENSE"}
    assert names.keys() - about == {f"loss_viz/{name}" for name in package}
    for name in package:
        assert names[f"loss_viz/{name}"] == (ROOT / "loss_viz" / name).read_bytes()
    assert wheel.stat().st_size < 500_000


def test_its_metadata_tells_where_it_is_from_and_what_it_needs(wheel):
    [text] = (text for name, text in contents(wheel).items() if name.endswith("/METADATA"))
    metadata = email.message_from_bytes(text)
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["Project-URL"].startswith("Repository, https://github.com/")
    assert metadata["Description-Content-Type"] == "text/markdown"
    plain = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert not [line for line in plain if line.startswith(("jupyterlab", "pytest", "nbval", "matplotlib"))]


def test_the_sdist_holds_all_that_one_works_with(sdist):
    ours = (
        *((ROOT / "loss_viz").glob("[a-z_]*.*"), (ROOT / "tests").glob("*.py"), (ROOT / "notebooks").glob("*.ipynb")),
        *((ROOT / "benchmarks").glob("*.py"), (ROOT / "binder").iterdir(), (ROOT / ".github/images").iterdir()),
    )
    for path in itertools.chain(*ours):
        assert (sdist / path.relative_to(ROOT)).read_bytes() == path.read_bytes()
    top = {path.name for path in sdist.iterdir() if not path.name.startswith(".")}
    assert {"PKG-INFO", "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "pyproject.toml"} <= top
    assert not [path for path in sdist.rglob("*") if path.name in {".git", "__pycache__", ".venv", "results"}]


def test_its_notebooks_carry_no_outputs(sdist):
    for path in (sdist / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        assert not any(cell.get("outputs") for cell in cells)


def test_a_wheel_from_the_sdist_is_the_same(wheel, sdist, tmp_path):
    again = contents(pack("wheel", tmp_path, sdist))
    assert again == contents(wheel)
