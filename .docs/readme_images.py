"""Film and images of the README, after the site was built: `python .docs/readme_images.py` (with kaleido, Chrome)."""

import io
import json
import re
from pathlib import Path

import plotly.graph_objects as go
from PIL import Image

import loss_viz as lv

HERE = Path(__file__).parent
IMAGES = HERE.parent / ".github" / "images"
PAGES = HERE / "_build" / "html" / "notebooks"
FIGURES = {"01": 6, "03": 3, "04": 0, "05": 5}  # index of the figure on each page
SIZE = (420, 280)


def write_film() -> None:
    """Write the film at the top: the ball on x^3, at 1.5 times the 800 pixels at which pages show it."""
    land = lv.landscape(lv.train("x^3"))
    lv.export_gif(land, IMAGES / "plateau.gif", log=True, notes=False, n_frames=90, width=1200, height=720)


def write_comparison() -> None:
    """Draw x^3 on the PCA plane and on local planes, side by side at the same scale."""
    run = lv.train("x^3")
    lands = [lv.landscape(run, plane="flat", center="mean"), lv.landscape(run)]
    figure = lv.surface_figure(*lands, step=500, log=True, height=480)
    figure.write_image(IMAGES / "sticky_plateau.png", width=1150, scale=1.5)


def find_figure(name: str) -> go.Figure:
    """Return the chosen figure of a notebook, without the text that is too small to read in a thumbnail."""
    [page] = PAGES.glob(f"{name}_*.html")
    found = re.findall(r'<script type="application/json">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL)
    figure = go.Figure(**{part: json.loads(found[FIGURES[name]])[part] for part in ("data", "layout")})
    figure.layout.annotations = ()
    figure.update_layout(height=None, title=None, showlegend=False, margin=dict.fromkeys("lrtb", 8))
    figure.update_traces(marker_showscale=False, selector={"type": "scatter3d"})
    figure.update_scenes({f"{axis}axis": {"title": "", "showticklabels": False} for axis in "xyz"})
    return figure.update_xaxes(title="", showticklabels=False).update_yaxes(title="", showticklabels=False)


def write_thumbnails() -> None:
    """Write an image of 420 x 280 pixels for each notebook."""
    images = {name: Image.open(io.BytesIO(find_figure(name).to_image("png", *SIZE, scale=1))) for name in FIGURES}
    panel = Image.open(IMAGES / "explorer.png").convert("RGB")
    images["02"] = panel.crop((504, 101, 1071, 479)).resize(SIZE, Image.Resampling.LANCZOS)
    for name, image in images.items():
        image.convert("RGB").save(IMAGES / f"notebook_{name}.png", optimize=True)


if __name__ == "__main__":
    write_film()
    write_comparison()
    write_thumbnails()
