"""The site of loss_viz. `python -m sphinx -M html .docs .docs/_build` builds it, and fetches nothing."""

import importlib.metadata
import sys
from importlib.util import find_spec
from pathlib import Path

import plotly

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # for `pages`
PANELS = HERE / "notebooks" / "panels"  # made by opening.py while the notebooks run
PANELS.mkdir(parents=True, exist_ok=True)

project = "loss_viz"
version = release = importlib.metadata.version(project)
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_nb", "pages"]
exclude_patterns = ["_build", "notebooks/panels"]
default_role = "py:obj"  # `code` in docstrings, and a link where it is a public name

html_theme = "furo"
html_title = "loss_viz"
html_theme_options = {"top_of_page_buttons": []}
html_static_path = [
    "_static",
    str(PANELS),
    str(Path(plotly.__file__).parent / "package_data" / "plotly.min.js"),
]
html_css_files = ["site.css"]
html_math_renderer = "mathml"  # of `pages`: no script, no font
html_copy_source = False
html_show_copyright = False

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_timeout = 600  # seconds a cell
nb_execution_raise_on_error = True
nb_render_markdown_format = "myst"  # with tables
nb_output_stderr = "remove"
nb_ipywidgets_js = {}  # which a CDN would serve

autodoc_mock_imports = [name for name in ("lightning", "transformers") if find_spec(name) is None]
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
napoleon_attr_annotations = False
napoleon_use_ivar = True
