"""Seconds until the panel has opened, pictures a second while a slider is dragged, and the lag after its release.

`python -m benchmarks.fluency` opens the panel in JupyterLab in Chromium, which draws WebGL in software where it has no
GPU. A picture counts once, in the first frame of the browser that shows new data of the surface or the ball.
"""

import contextlib
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from lab import Lab, Notebook, Panel, open_chromium, write_notebook  # noqa: E402

SECONDS = 4.0  # of each drag
MOVES = 60
# Where each slider is dragged to and fro, as shares of its length.
DRAGS = {"step": (0.1, 0.9), "sigma": (0.3, 0.8), "k": (0.1, 0.5), "resolution": (0.3, 0.9)}

# Notes the time of each animation frame that shows new values of the surface or the ball, whose shapes are meshes.
WATCH = """() => {
    const panes = [...document.querySelectorAll('.lossviz .lossviz-pane')];
    const sum = (values) => Array.from(values).reduce((sum, value, i) => sum + (+value || 0) * Math.cos(i), 0);
    const look = () =>
        panes.flatMap((pane) => pane.data.filter((t) => t.type === 'mesh3d').flatMap((t) => [t.x, t.z].map(sum)));
    const watch = window.watch = {times: [], last: look(), on: true};
    const tick = () => {
        const now = look();
        if (now.some((value, i) => value !== watch.last[i])) {
            watch.last = now;
            watch.times.push(performance.now());
        }
        if (watch.on) requestAnimationFrame(tick);
    };
    tick();
}"""


# Notes when the still picture with which the panel opens is on screen, and when the computed surface replaces it.
OPENING = """() => {
    const opening = window.opening = {start: performance.now()};
    const tick = () => {
        const still = document.querySelector('.lossviz-still');
        if (still?.complete) opening.still ??= performance.now();
        if (opening.still && !still) opening.surface = performance.now();
        else requestAnimationFrame(tick);
    };
    tick();
}"""


def open_panel(notebook: Notebook) -> dict[str, float]:
    """Run the cells in a kernel that has imported nothing, and return the seconds until each picture."""
    notebook.page.evaluate(OPENING)
    notebook.run_all()
    notebook.page.wait_for_function("() => window.opening.surface", timeout=200_000)
    found = notebook.page.evaluate("() => window.opening")
    return {name: (found[name] - found["start"]) / 1000 for name in ("still", "surface")}


def drag(panel: Panel, name: str) -> dict[str, float]:
    """Drag a slider to and fro, and return pictures a second and the seconds from its release to the last picture."""
    page, (low, high) = panel.page, DRAGS[name]
    panel.control(name).scroll_into_view_if_needed()
    box = panel.control(name).bounding_box()
    at = box["y"] + box["height"] / 2

    def place(share: float) -> float:
        return box["x"] + box["width"] * share

    page.mouse.move(place(low), at)
    page.mouse.down()
    panel.wait_drawn()
    page.evaluate(WATCH)
    start = page.evaluate("() => performance.now()")
    for i in range(MOVES):
        there = 2 * (i + 1) / MOVES
        page.mouse.move(place(low + (high - low) * min(there, 2 - there)), at)
        page.wait_for_timeout(
            max(0.0, start + (i + 1) * 1000 * SECONDS / MOVES - page.evaluate("() => performance.now()"))
        )
    released = page.evaluate("() => performance.now()")
    page.mouse.up()
    panel.wait_drawn()
    times = page.evaluate("() => { watch.on = false; return watch.times; }")
    during = sum(start <= time <= released for time in times)
    return {"pictures/s": 1000 * during / (released - start), "lag": max([0.0, *(t - released for t in times)]) / 1000}


def main() -> None:
    """Print the table."""
    with TemporaryDirectory() as name, open_chromium() as browser:
        folder = Path(name)
        write_notebook(folder / "panel.ipynb", "import loss_viz as lv\nlv.Explorer('x^3')")
        with contextlib.closing(Lab(folder)) as lab:
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            notebook = Notebook(page, lab, "panel.ipynb")
            opened = open_panel(notebook)
            print(f"opened: a still picture after {opened['still']:.1f} s, the surface after {opened['surface']:.1f} s")
            panel = Panel(notebook)
            panel.wait_drawn(200)
            print(f"{'dragged':<12}{'pictures/s':>12}{'lag after release, s':>24}")
            for slider in DRAGS:
                found: dict[str, Any] = drag(panel, slider)
                print(f"{slider:<12}{found['pictures/s']:>12.1f}{found['lag']:>24.2f}")
            assert notebook.errors == []


if __name__ == "__main__":
    main()
