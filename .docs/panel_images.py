"""Write images of the panel: of all of it, for the pages on it, and the stills with which it opens.

A still is the panel's own surface of the bundled run, without axes. It is shown while Plotly loads.

    python .docs/panel_images.py

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
IMAGE = Path(__file__).parent.parent / ".github" / "images" / "explorer.png"
WIDTH = 1575  # pixels of the image
DRAW = """async ([theme, width, height]) => {
    const pane = document.querySelector('.lossviz-pane-surface');
    const { xaxis, yaxis, zaxis, ...scene } = pane.layout.scene;
    for (const [name, axis] of Object.entries({ xaxis, yaxis, zaxis })) scene[name] = { ...axis, visible: false };
    const layout = { ...pane.layout, title: { text: '' }, showlegend: false, scene, width, height };
    const version = Object.keys(globalThis.lossvizPlotly)[0];
    const Plotly = (await globalThis.lossvizPlotly[version]).default;
    const data = pane.data.filter(({ mode }) => mode !== 'text'); // names of levels would be cut by the surface
    return Plotly.toImage({ data, layout }, { format: 'webp', width, height, scale: 1.5 });
}"""


def main() -> None:
    """Open the panel in JupyterLab in both themes, and write the images."""
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
                if theme == "light":
                    box = page.locator(".lossviz").bounding_box()
                    page.set_viewport_size({"width": 1440 + WIDTH - round(box["width"]), "height": 1200})
                    page.wait_for_timeout(1000)
                    Panel(notebook).wait_drawn(90)
                    page.locator(".lossviz").screenshot(path=IMAGE)
                page.close()


if __name__ == "__main__":
    main()
