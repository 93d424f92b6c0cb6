"""Two thousand random actions in the browser: speed and memory stay constant.

    LOSS_VIZ_SOAK=2000 pytest -s tests/panel/test_soak.py

Takes up to a quarter of an hour and is skipped by default. The first and the last hundred actions are the same, from
the same settings, and each is waited for; the actions between them are not.
"""

import contextlib
import json
import os
import time

import numpy as np
import pytest
from lab import Lab, Notebook, Panel, list_moves, open_chromium, write_notebook

N_ACTIONS = int(os.environ.get("LOSS_VIZ_SOAK", "0"))
MINUTES = 15
N_TIMED = 100

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not N_ACTIONS, reason="long; LOSS_VIZ_SOAK=2000 runs it"),
]

SETTINGS = {"target": "x^3", "steps": 300, "resolution": 21}
# Records in the page when the figures were last up to date.
WATCH = """() => {
    const picture = document.querySelector('.lossviz-picture');
    if (!window.watcher) {
        window.watcher = new MutationObserver(() => {
            if (picture.getAttribute('aria-busy') === 'false') window.drawn = performance.now();
        });
        window.watcher.observe(picture, {attributes: true, attributeFilter: ['aria-busy']});
    }
    window.drawn = 0;
    return performance.now();
}"""
CELLS = (
    f"import loss_viz as lv\nexplorer = lv.Explorer(**{SETTINGS})\nstart = dict(explorer.settings)\nexplorer",
    # Everything that the kernel holds; it contains nothing but the panel.
    "import gc, json, pathlib, threading, ipywidgets\n"
    "gc.collect()\n"
    "table = ipywidgets.widgets.widget._instances\n"
    "listeners = [one._trait_notifiers for one in table.values()]\n"
    "print(json.dumps({\n"
    "    'resident': int(pathlib.Path('/proc/self/statm').read_text().split()[1]) * 4096,\n"
    "    'threads': threading.active_count(),\n"
    "    'widgets': len(table),\n"
    "    'observers': sum(len(some) for own in listeners for kinds in own.values() for some in kinds.values()),\n"
    "}))",
    "for name, value in start.items():\n    setattr(explorer, name, value)\nassert explorer.wait(120)\nprint('back')",
    "import numpy as np\n"
    "twin = lv.Explorer(**explorer.settings)\n"
    "assert explorer.wait(120) and twin.wait(120)\n"
    "mine, theirs = explorer.landscape, twin.landscape\n"
    "same = [np.allclose(mine.loss, theirs.loss, rtol=1e-6), np.array_equal(mine.path, theirs.path)]\n"
    "same += [explorer.balls == twin.balls, explorer.settings == twin.settings]\n"
    "twin.close()\n"
    "print(*same)",
)


def time_actions(panel, notebook, n):
    """Return the seconds until each of the same actions is drawn, without those that change nothing."""
    assert notebook.run_cell(2).strip() == "back"
    panel.wait_drawn(timeout=120)
    rng = np.random.default_rng(1)
    moves, seconds = list_moves(panel, rng), []
    for _ in range(n):
        move = moves[rng.integers(len(moves))]
        begun = panel.page.evaluate(WATCH)
        move()
        panel.wait_drawn(timeout=120)
        drawn = panel.page.evaluate("() => window.drawn")
        if drawn > begun:
            seconds.append((drawn - begun) / 1000)
    return np.array(seconds)


def measure_page(page):
    """Return heap bytes, listeners and nodes of the page after garbage collection."""
    client = page.context.new_cdp_session(page)
    client.send("HeapProfiler.collectGarbage")
    client.send("Performance.enable")
    metrics = {one["name"]: one["value"] for one in client.send("Performance.getMetrics")["metrics"]}
    client.detach()
    return np.array([metrics[name] for name in ("JSHeapUsedSize", "JSEventListeners", "Nodes")])


def test_speed_and_memory_stay_constant_over_two_thousand_actions(tmp_path):
    began = time.monotonic()
    write_notebook(tmp_path / "soak.ipynb", *CELLS)
    with contextlib.closing(Lab(tmp_path)) as lab, open_chromium() as browser:
        page = browser.new_page(viewport={"width": 1280, "height": 1100})
        notebook = Notebook(page, lab, "soak.ipynb")
        notebook.run_cell(0)
        panel = Panel(notebook)
        panel.wait_drawn()
        n_timed = min(N_TIMED, N_ACTIONS // 4)
        time_actions(panel, notebook, n_timed // 4)  # warm-up
        spent = time.monotonic()
        first = time_actions(panel, notebook, n_timed)
        spent = time.monotonic() - spent
        rng = np.random.default_rng(int(os.environ.get("LOSS_VIZ_SEED", "0")))
        moves, n_between = list_moves(panel, rng), N_ACTIONS - 2 * n_timed
        kernel, held, before = [], [], None
        for i in range(n_between):
            moves[rng.integers(len(moves))]()
            page.wait_for_timeout(int(rng.choice([0, 20, 300], p=[0.7, 0.25, 0.05])))
            if i % (n_between // 8) == 0:  # JupyterLab itself keeps some memory for every executed cell
                panel.wait_drawn(timeout=120)
                held.append(measure_page(page) - (before - held[-1] if held else 0))
                kernel.append(json.loads(notebook.run_cell(1)))
                panel.press("step", "ArrowLeft")
                panel.wait_drawn()
                before = measure_page(page)
            # Leave time for the last actions and for a new panel.
            if time.monotonic() - began > 60 * MINUTES - 1.1 * spent - 20:
                break
        n_between = i + 1
        last = time_actions(panel, notebook, n_timed)
        same = notebook.run_cell(3).split()
        errors = notebook.errors
        page.close()

    ratio = float(np.median(last) / np.median(first))
    print(f"\n{n_between + 2 * n_timed} actions in {(time.monotonic() - began) / 60:.1f} minutes")
    print(
        f"median seconds of the first {len(first)}: {np.median(first):.3f}; of the last: {np.median(last):.3f}; "
        f"ratio {ratio:.2f}"
    )
    held = np.array(held) / [2**20, 1, 1]
    for name, values in zip(("heap, MB", "listeners", "nodes"), held.T, strict=True):
        print(f"{name}: {values.round().astype(int).tolist()}")
    resident = [one.pop("resident") / 2**20 for one in kernel]
    print(f"resident, MB: {np.round(resident).astype(int).tolist()}; {kernel[-1]}")
    assert errors == []
    assert same == ["True"] * 4
    warm = len(held) // 3
    assert resident[-1] < 1.1 * resident[warm]
    assert (held[-1] < [1.25, 1.02, 1.02] * held[warm]).all()
    assert kernel[-1] == kernel[warm]
    assert ratio < 1.2
    assert n_between + 2 * n_timed >= 0.9 * N_ACTIONS, "out of time"
