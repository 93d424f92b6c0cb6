"""Files saved by version 0.1 open. Runs are what they were; landscapes are drawn as averages of losses, as they were.

Their kernels are those of today, so a landscape has the numbers that it had only within some percent.

The page lacks its style and its module; everything else in `tests/data` is as version 0.1 wrote it.
"""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import loss_viz as lv
from loss_viz.landscapes.provenance import START, VERSION, check_settings, read_settings
from loss_viz.settings import LandscapeSettings

DATA = Path(__file__).parent / "data"
PNG, PAGE = DATA / "landscape_v1.png", DATA / "page_v1.html"
LOSS = 0.17530697584152222, 0.09059009701013565, 0.08264598995447159  # at steps 0, 30 and 60
TRAIN = {"target": "x^2", "width": 8, "depth": 1, "activation": "silu", "optimizer": "adam", "lr": 0.01, "seed": 56}


def assert_landscape(land):
    assert (land.loss.shape, land.plane, land.k, land.blend.of) == ((9, 11), "local", 5, "losses")
    was = [0.2779305975436754, 0.09880740792845631, 0.10590322536412779]
    assert land.loss[[0, 4, 8], [0, 5, 10]] == pytest.approx(was, rel=0.05)
    assert land.path_height[[0, 60]] == pytest.approx([0.17530697584152222, 0.08264599740505219], rel=0.05)


def test_a_run():
    run = lv.load_run(DATA / "run_v1.safetensors")
    assert run.settings == {**TRAIN, "steps": 60}
    assert run.step.tolist() == list(range(61))
    assert run.weights.shape == (61, 25)
    assert run.weights[60, :3] == pytest.approx([1.4201310873031616, -0.22306391596794128, 0.0978463739156723])
    assert run.loss[[0, 30, 60]] == pytest.approx(LOSS, abs=1e-12)
    assert run.objective(run.weights[[0, 30, 60]]) == pytest.approx(LOSS, abs=1e-6)


@pytest.mark.parametrize(("path", "resolution"), [(PNG, [11, 9]), (PAGE, [9, 7])])
def test_settings(path, resolution):
    settings = read_settings(path)
    [run] = settings["runs"]
    assert run["train"] == {**TRAIN, "steps": 60, "n_points": 100, "every": 1, "dtype": "float32"}
    assert run["loss"] == pytest.approx([LOSS[0], LOSS[2]], abs=1e-12)
    chosen = {"k": 5, "resolution": resolution, "plane": "local", "blend": "losses"}
    assert settings["landscape"] == asdict(LandscapeSettings()) | chosen
    assert (settings["version"], settings["complete"]) == (VERSION, True)


def read_old(folder, **changed):
    """Return the settings of the old picture with another plane, as they are read from a file."""
    text = PNG.read_bytes().partition(START)[2]
    old, _ = json.JSONDecoder().raw_decode((START + text).decode("latin-1"))
    path = folder / "old.json"
    path.write_text(json.dumps(old | {"landscape": old["landscape"] | changed}), encoding="utf-8")
    return read_settings(path)


@pytest.mark.parametrize(
    ("plane", "today"),
    [
        ("local", {"plane": "local", "blend": "losses"}),
        ("parallel", {"plane": "parallel", "blend": "losses"}),
        ("global", {"plane": "flat", "center": "mean"}),
        ("final", {"plane": "flat"}),
        *((axes, {"plane": "flat", "axes": axes}) for axes in ("random", "hessian", "saddle")),
    ],
)
def test_a_plane_of_version_1_has_another_name_today(plane, today, tmp_path):
    settings = read_old(tmp_path, plane=plane, seed=3)
    chosen = {"k": 5, "resolution": [11, 9], "seed": 3}
    assert settings["landscape"] == asdict(LandscapeSettings()) | chosen | today
    check_settings(settings)


def test_a_plane_that_is_gone_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"old.json holds settings with `plane`='valley', which this version does not"):
        read_old(tmp_path, plane="valley")
    with pytest.raises(ValueError, match=r"`plane`='\[\]', which this version does not draw any more\. Draw the"):
        read_old(tmp_path, plane=[])


def test_a_landscape_is_made_again():
    run = lv.load_run(DATA / "run_v1.safetensors")
    again = lv.reproduce(PNG, runs=run, progress=False)
    assert_landscape(again)
    trained = lv.reproduce(PNG, progress=False)
    assert trained.run.weights == pytest.approx(run.weights, abs=1e-3)  # another version of PyTorch may round otherwise
    np.testing.assert_allclose(trained.loss, again.loss, rtol=0.02)
    assert trained.settings["landscape"] == read_settings(PNG)["landscape"]
    assert lv.reproduce(PAGE, runs=run, progress=False).loss.shape == (7, 9)


def test_a_part_of_a_run_is_made_again():
    land = lv.landscape(lv.train("x", steps=12, progress=False), steps=(3, 9), resolution=4, progress=False)
    again = lv.reproduce(land.settings, progress=False)
    assert again.run.step.tolist() == list(range(3, 10))
    assert again.settings["landscape"] == land.settings["landscape"]
    np.testing.assert_array_equal(again.loss, land.loss)


@pytest.mark.parametrize("changed", [{"axes": None}, {"axes": 5}, {"steps": 5}, {"steps": [1]}, {"steps": "ab"}])
def test_settings_of_another_type_are_refused(changed):
    settings = read_settings(PNG)
    with pytest.raises(ValueError, match="must be those of a landscape, and whole"):
        check_settings(settings | {"landscape": settings["landscape"] | changed})


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
