"""Files saved by version 0.1 open, and give the numbers that they had.

The page lacks its style and its module; everything else in `tests/data` is as version 0.1 wrote it.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import loss_viz as lv
from loss_viz.landscapes.provenance import read_settings

DATA = Path(__file__).parent / "data"
PNG, PAGE = DATA / "landscape_v1.png", DATA / "page_v1.html"
LOSS = 0.17530697584152222, 0.09059009701013565, 0.08264598995447159  # at steps 0, 30 and 60
TRAIN = {"target": "x^2", "width": 8, "depth": 1, "activation": "silu", "optimizer": "adam", "lr": 0.01, "seed": 56}


def assert_landscape(land):
    assert land.loss.shape == (9, 11)
    assert land.loss[[0, 4, 8], [0, 5, 10]] == pytest.approx(
        [0.2779305975436754, 0.09880740792845631, 0.10590322536412779], abs=1e-6
    )
    assert land.path_height[[0, 60]] == pytest.approx([0.17530697584152222, 0.08264599740505219], abs=1e-6)


def test_a_run():
    run = lv.load_run(DATA / "run_v1.safetensors")
    assert run.settings == {**TRAIN, "steps": 60}
    assert run.step.tolist() == list(range(61))
    assert run.weights.shape == (61, 25)
    assert run.weights[60, :3] == pytest.approx([1.4201310873031616, -0.22306391596794128, 0.0978463739156723])
    assert run.loss[[0, 30, 60]] == pytest.approx(LOSS, abs=1e-12)
    assert run.objective(run.weights[[0, 30, 60]]) == pytest.approx(LOSS, abs=1e-6)
    assert_landscape(lv.landscape(run, resolution=(11, 9), progress=False))


@pytest.mark.parametrize(("path", "resolution"), [(PNG, [11, 9]), (PAGE, [9, 7])])
def test_settings(path, resolution):
    settings = read_settings(path)
    [run] = settings["runs"]
    assert run["train"] == {**TRAIN, "steps": 60, "n_points": 100, "every": 1, "dtype": "float32"}
    assert run["loss"] == pytest.approx([LOSS[0], LOSS[2]], abs=1e-12)
    chosen = {"k": 5, "sigma": "auto", "resolution": resolution, "plane": "local", "n_anchors": 200, "seed": 0}
    assert settings["landscape"] == chosen
    assert (settings["version"], settings["complete"]) == (1, True)


def test_a_landscape_is_made_again():
    run = lv.load_run(DATA / "run_v1.safetensors")
    again = lv.reproduce(PNG, runs=run, progress=False)
    assert_landscape(again)
    trained = lv.reproduce(PNG, progress=False)
    np.testing.assert_allclose(trained.loss, again.loss, rtol=0.02)  # another version of PyTorch may round differently
    assert trained.settings["landscape"] == read_settings(PNG)["landscape"]
    assert lv.reproduce(PAGE, runs=run, progress=False).loss.shape == (7, 9)


def test_snapshots_of_a_recorder():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
        x = torch.randn(20, 2)
    y = x.prod(1, keepdim=True)
    run = lv.Run.from_checkpoints(model, lambda m: (m(x) - y).square().mean(), DATA / "snapshots_v1")
    assert run.step.tolist() == [0, 5, 10]
    assert run.weights.shape == (3, 13)
    expected = [0.0011810153955593705, 0.3516654074192047, -0.593028724193573]
    assert np.asarray(run.weights)[2, :3] == pytest.approx(expected, abs=1e-12)
    assert run.loss == pytest.approx([0.6736043095588684, 0.4439423978328705, 0.3987480103969574], abs=1e-6)
