"""`import loss_viz` is instant, numerics load no drawing library, and every public name is documented.

The direction of imports is checked by `lint-imports`, from the contracts in pyproject.toml.
"""

import inspect
import subprocess
import sys

import pytest

import loss_viz

DRAWING_LIBRARIES = {"plotly", "ipywidgets", "anywidget", "matplotlib", "PIL", "imageio_ffmpeg"}


def loaded_after(statement):
    code = f"import sys\n{statement}\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_import_is_instant_and_numerics_load_no_drawing_library():
    assert not loaded_after("import loss_viz") & (DRAWING_LIBRARIES | {"torch", "sklearn", "numpy"})
    computing = "import loss_viz as lv\nr = lv.train('x', steps=20)\nlv.fidelity(lv.landscape(r, resolution=3))"
    loaded = loaded_after(computing)
    assert "torch" in loaded
    assert not loaded & {"plotly", "anywidget"}


@pytest.mark.parametrize("name", loss_viz.__all__)
def test_public_names_are_documented(name):
    value = getattr(loss_viz, name)
    assert inspect.getdoc(value)
    assert name in dir(loss_viz)


def test_no_module_has_the_name_of_a_public_function():
    assert not any(inspect.ismodule(getattr(loss_viz, name)) for name in loss_viz.__all__)


def test_an_unknown_name_is_refused():
    with pytest.raises(AttributeError, match="nothing"):
        loss_viz.nothing  # noqa: B018
