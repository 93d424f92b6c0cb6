"""Write the pictures with which the panel opens while Plotly loads: its own surface of the bundled run, without axes.

    python .docs/panel_stills.py

It needs Playwright and Chromium, as the tests of the panel do.
"""

import base64
import contextlib
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from lab import Lab, Notebook, Panel, open_chromium, write_notebook

from loss_viz.panel.controller import BUNDLED_STILLS

SIZE = 1200, 520
DRAW = """async ([theme, width, height]) => {
    const pane = document.querySelector('.lossviz-pane-surface');
    const { xaxis, yaxis, zaxis, ...scene } = pane.layout.scene;
    for (const [name, axis] of Object.entries({ xaxis, yaxis, zaxis })) scene[name] = { ...axis, visible: false };
    const layout = { ...pane.layout, title: { text: '' }, showlegend: false, scene, width, height };
    const version = Object.keys(globalThis.lossvizPlotly)[0];
    const Plotly = (await globalThis.lossvizPlotly[version]).default;
    return Plotly.toImage({ data: pane.data, layout }, { format: 'webp', width, height, scale: 1.5 });
}"""


def main() -> None:
    """Open the panel in JupyterLab in both themes, and write its surface."""
    with TemporaryDirectory() as name, open_chromium() as browser:
        write_notebook(Path(name) / "panel.ipynb", "import loss_viz as lv\nexplorer = lv.Explorer()\nexplorer")
        with contextlib.closing(Lab(Path(name))) as lab:
            for theme, path in BUNDLED_STILLS.items():
                page = browser.new_page(viewport={"width": 1440, "height": 900})
                notebook = Notebook(page, lab, "panel.ipynb")
                if theme == "dark":
                    page.evaluate("jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Dark'})")
                notebook.run_cell(0)
                Panel(notebook).wait_drawn(90)
                url = page.evaluate(DRAW, [theme, *SIZE])
                path.write_bytes(base64.b64decode(url.partition(",")[2]))
                page.close()


if __name__ == "__main__":
    main()
