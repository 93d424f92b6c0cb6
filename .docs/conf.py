"""The site of loss_viz. `python -m sphinx -M html .docs .docs/_build` builds it without network access."""

import importlib.metadata
import sys
from importlib.util import find_spec
from pathlib import Path

import plotly

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # for `pages` and `wall`
BUILD = HERE / "_build"
PANELS = BUILD / "panels"  # written by opening.py while the notebooks run; deleted together with their cache
PANELS.mkdir(parents=True, exist_ok=True)

project = "loss_viz"
version = release = importlib.metadata.version(project)
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "myst_nb", "pages", "wall"]
exclude_patterns = ["_build"]
default_role = "py:obj"  # `code` in docstrings becomes a link if it is a public name

html_theme = "furo"
html_title = "loss_viz"
html_theme_options = {"top_of_page_buttons": []}
html_static_path = [
    "_static",
    str(PANELS),
    str(Path(plotly.__file__).parent / "package_data" / "plotly.min.js"),
]
html_css_files = ["site.css"]
html_math_renderer = "mathml"  # defined in `pages`: needs neither scripts nor fonts
html_copy_source = False
html_show_copyright = False

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "cache"  # notebooks run again only if they or loss_viz have changed, see `pages`
nb_execution_cache_path = str(BUILD / "jupyter_cache")
nb_execution_timeout = 600  # seconds per cell
nb_execution_raise_on_error = True
nb_render_markdown_format = "myst"  # includes tables
nb_output_stderr = "remove"
nb_ipywidgets_js = {}  # would be loaded from a CDN

autodoc_mock_imports = [name for name in ("lightning", "transformers") if find_spec(name) is None]
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
napoleon_attr_annotations = False
napoleon_use_ivar = True
