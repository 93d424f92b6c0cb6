"""Pictures of the notebooks for the README, from the built site: `python .docs/thumbnails.py` (needs kaleido)."""

import io
import json
import re
from pathlib import Path

import plotly.graph_objects as go
from PIL import Image

HERE = Path(__file__).parent
IMAGES = HERE.parent / ".github" / "images"
PAGES = HERE / "_build" / "html" / "notebooks"
FIGURES = {"01": 6, "03": 3, "04": 0, "05": 5}  # which figure of each page
SIZE = (420, 280)


def find_figure(name: str) -> go.Figure:
    """The chosen figure of a notebook, without what is too small to read here."""
    [page] = PAGES.glob(f"{name}_*.html")
    found = re.findall(r'<script type="application/json">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL)
    figure = go.Figure(**{part: json.loads(found[FIGURES[name]])[part] for part in ("data", "layout")})
    figure.layout.annotations = ()
    figure.update_layout(height=None, title=None, showlegend=False, margin=dict.fromkeys("lrtb", 8))
    figure.update_traces(marker_showscale=False, selector={"type": "scatter3d"})
    figure.update_scenes({f"{axis}axis": {"title": "", "showticklabels": False} for axis in "xyz"})
    return figure.update_xaxes(title="", showticklabels=False).update_yaxes(title="", showticklabels=False)


def main() -> None:
    """Write one picture for each notebook, of 420 x 280 pixels."""
    pictures = {name: Image.open(io.BytesIO(find_figure(name).to_image("png", *SIZE, scale=1))) for name in FIGURES}
    panel = Image.open(IMAGES / "explorer.png").convert("RGB")
    pictures["02"] = panel.crop((420, 70, 1650, 890)).resize(SIZE, Image.Resampling.LANCZOS)
    for name, picture in pictures.items():
        picture.convert("RGB").save(IMAGES / f"notebook_{name}.png", optimize=True)


if __name__ == "__main__":
    main()
