"""Trainings that go wrong, before everything that looks at a run: each has a picture, or is refused in words."""

import base64
import json
import re
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from failed_trainings import RUNS, VIEWS, PanelMessage, draw_plainly, record, square, train

import loss_viz as lv

pytestmark = pytest.mark.slow

OURS = str(Path(lv.__file__).parent)
NEVER_BEGIN = {"weights that were nan", "a loss that was inf"}
# What may be said, and of which run in which view.
SENTENCES = {
    r"`k`=\d+ needs at least 2k \+ 1 = \d+ recorded steps": lambda run, view: len(run) < 11,
    r"`log`=True needs losses above 0": lambda run, view: "logarithmic" in view and not is_positive(run),
    r"`axes`='random' needs a weight matrix": lambda run, view: view == "axes random" and not run.task,
    r"Eigenvectors need at least 2 weights": lambda run, view: run.objective.n_params == 1,
    r"`axes`='pca' needs at least 2 recorded steps": lambda run, view: len(run) == 1,
    r"`axes` must be two independent directions": lambda run, view: view == "axes PC1 and sharpest",
    r"The Hessian needs a loss that PyTorch can differentiate twice": lambda run, view: not run.task,
    r"The eigenvectors of the Hessian could not be found": lambda run, view: view in (*CURVED, "geometry"),
    r"An escape needs a plateau that is left": lambda run, view: view == "maps" and ends_on_a_plateau(run),
    r"`block_radius`=0.03 leaves no": lambda run, view: view in ("held out", "costs"),
    r"The weights of a run must lie within 1e\+140": lambda run, view: abs(run.weights).max() > 1e140,
}


def ends_on_a_plateau(run):
    return lv.find_plateaus(run)[-1].end == run.step[-1]


def is_positive(run):
    grids = draw_plainly(run), lv.landscape(run, resolution=6, progress=False)  # that of the panel
    return run.loss.min() > 0 and all(land.loss.min() > 0 for land in grids)


CURVED = ("axes hessian", "axes saddle", "axes PC1 and sharpest")


@pytest.mark.parametrize("name", [name for name in RUNS if name not in NEVER_BEGIN])
def test_a_bad_run_has_a_picture_or_a_sentence(name, record_property):
    run = RUNS[name]()
    record_property("cases", len(VIEWS))
    ends = {view: find_end(look, run) for view, look in VIEWS.items()}
    assert list(ends.values()).count("") >= 2
    for view, message in ends.items():
        if message:
            assert any(re.search(said, message) and may(run, view) for said, may in SENTENCES.items()), (view, message)
            assert re.search(r"[.;:] [A-Z'`]", message), (view, message)


def find_end(look, run):
    """What is said in place of a picture; nothing where there is one."""
    try:
        look(run)
        return ""
    except ValueError as error:
        if not (
            isinstance(error, PanelMessage) or traceback.extract_tb(error.__traceback__)[-1].filename.startswith(OURS)
        ):
            raise
        return str(error).replace("&#x27;", "'")


@pytest.mark.parametrize("name", sorted(NEVER_BEGIN))
def test_a_run_that_cannot_begin_is_refused(name):
    with pytest.raises(ValueError, match=r"finite.*\. (Check its data|Start from finite weights)"):
        RUNS[name]()


def test_an_optimizer_without_a_learning_rate_may_train():
    run = train("x", steps=3, optimizer=lambda parameters: NoRate(parameters, {}))
    assert run.settings["lr"] is None
    assert len(run) == 4


class NoRate(torch.optim.Optimizer):
    def step(self, closure=None):
        return closure()


def test_losses_that_float32_cannot_hold_are_drawn(tmp_path):
    path = [[1 - t / 30, t / 40] for t in range(30)]
    for factor in (1e300, 1e-300):
        run = record(lambda m, factor=factor: square(m) * factor, path, torch.float64)
        panel = lv.Explorer([run], k=5, resolution=5)
        assert panel.wait(60.0)
        loss, sent = panel.landscape.loss, panel.surface_surface["z"]
        drawn = np.frombuffer(sent["data"], dtype=sent["dtype"])
        np.testing.assert_allclose(drawn, loss.ravel(), rtol=1e-6)
        page = lv.export_html(panel.landscape, tmp_path / "a.html", progress=False).read_text("utf-8")
        panel.close()
        data = json.loads(re.search(r'id="lossviz-data">(.*?)</script>', page, re.DOTALL)[1])
        arrays = [np.frombuffer(base64.b64decode(one["base64"]), dtype=one["dtype"]) for one in data["arrays"]]
        assert any(np.array_equal(array, loss.ravel()) for array in arrays)
