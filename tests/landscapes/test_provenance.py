"""Settings of a landscape as JSON, and the landscape made again from them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import loss_viz as lv
from loss_viz.landscapes.provenance import read_settings
from loss_viz.settings import to_json


@pytest.mark.parametrize(
    ("train", "view"),
    [
        ({}, {"resolution": (7, 5)}),
        ({"every": 4, "dtype": torch.float64, "n_points": 31}, {"resolution": 6, "k": 2, "sigma": 0.05}),
        ({"width": 5, "depth": 2, "activation": "tanh", "optimizer": "sgd", "lr": 0.05, "seed": 3}, {"n_anchors": 9}),
        ({}, {"axes": "random", "seed": 11, "resolution": (4, 3)}),
        ({}, {"axes": ("PC1", "2.weight"), "plane": "flat", "center": 20}),
        ({}, {"blend": "losses", "plane": "parallel", "bounds": ((0.0, 1.0), (-0.5, 0.5))}),
        ({}, {"steps": (10, 30), "k": 3}),
        ({}, {"n_anchors": None, "resolution": (4, 3)}),
        ({"optimizer": "nadam", "scheduler": "cosine"}, {}),
        ({"scheduler": "linear", "every": 4, "optimizer": "sgd"}, {"steps": (8, 24), "k": 1}),
    ],
)
def test_settings_make_the_same_landscape_again(train, view):
    run = lv.train("x^2", **{"steps": 42} | train, progress=False)
    land = lv.landscape(run, **{"resolution": (5, 4)} | view, progress=False)
    settings = json.loads(land.to_json())
    assert settings == land.settings
    again = lv.reproduce(settings, progress=False)
    for name in ("x", "y", "loss", "path", "path_loss", "path_height", "support", "anchors", "sigma_absolute"):
        assert np.array_equal(getattr(again, name), getattr(land, name)), name
    for name in set(settings) - {"runs"}:
        assert again.settings[name] == settings[name]
    trained = [saved["runs"][0]["train"] for saved in (settings, again.settings)]
    assert trained[0] == trained[1] is not None  # of a part of a run as far as the part goes


def test_several_runs_keep_their_names():
    runs = lv.compare("x^2", ["adam", "sgd"], steps=20, progress=False)
    land = lv.landscape({"one": runs[0], "other": runs[1]}, resolution=(4, 3), progress=False)
    assert [saved["name"] for saved in land.settings["runs"]] == ["one", "other"]
    assert [saved["train"]["optimizer"] for saved in land.settings["runs"]] == ["adam", "sgd"]
    again = lv.reproduce(land.settings, progress=False)
    assert np.array_equal(again.loss, land.loss)
    assert again.run_set.names == land.run_set.names


def cube(x):
    return x**3


@pytest.mark.parametrize(
    "train",
    [
        {"target": cube},
        {"target": "x^3", "optimizer": torch.optim.NAdam},
        {"target": "x^3", "activation": torch.nn.ELU},
        {"target": "x^3", "scheduler": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 3)},
        {"target": "x^3", "optimizer": lambda p: [torch.optim.Adam([one]) for one in p]},
    ],
)
def test_runs_that_train_cannot_repeat_have_no_arguments(train):
    run = lv.train(**train, steps=12, progress=False)
    land = lv.landscape(run, k=2, resolution=3, progress=False)
    saved = json.loads(land.to_json())["runs"][0]
    assert saved["train"] is None
    assert saved["settings"]["seed"] == 52
    assert saved["loss"] == [run.loss[0], run.loss[-1]]
    assert saved["step"] == [0, 12]


def test_a_run_with_a_schedule_that_ended_early_is_made_again():
    """The schedule depends on the steps that were asked for."""
    settings = {"optimizer": "sgd", "lr": 5.0, "scheduler": "cosine", "steps": 60, "progress": False}
    with pytest.warns(RuntimeWarning, match="The loss became"):
        run = lv.train("x^3", **settings)
    assert 4 < len(run) < 50
    land = lv.landscape(run, k=1, resolution=3, progress=False)
    assert land.settings["runs"][0]["train"]["steps"] == 60
    with pytest.warns(RuntimeWarning, match="The loss became"):
        again = lv.reproduce(json.loads(land.to_json()), progress=False)
    np.testing.assert_array_equal(again.run.weights, run.weights)


def test_a_run_with_code_is_not_made_again():
    run = lv.train("x", steps=12, scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 3), progress=False)
    land = lv.landscape(run, k=2, resolution=3, progress=False)
    with pytest.raises(ValueError, match=r"its model, function, optimizer or schedule was code\. Pass it, as in"):
        lv.reproduce(land.settings, progress=False)
    np.testing.assert_array_equal(lv.reproduce(land.settings, runs=run, progress=False).loss, land.loss)


def test_runs_with_other_data_have_no_arguments(run):
    for changed in (
        replace(run, task=replace(run.task, y=run.task.y + 1)),
        replace(run, task=None),
        replace(run, step=run.step**2),
        replace(run, settings={}),
    ):
        land = lv.landscape(changed, k=2, resolution=3, progress=False)
        assert land.settings["runs"][0]["train"] is None
    assert lv.landscape(run, k=2, resolution=3, progress=False).settings["runs"][0]["train"]["dtype"] == "float64"


def test_an_interrupted_run_has_the_steps_it_took():
    run = lv.train("x^2", steps=23, every=10, progress=False)
    assert run.step.tolist() == [0, 10, 20, 23]
    saved = lv.landscape(run, k=1, resolution=3, progress=False).settings["runs"][0]
    assert (saved["train"]["steps"], saved["train"]["every"]) == (23, 10)


def test_an_interrupted_landscape_is_marked(run):
    land = lv.landscape(run, resolution=8, progress=False)
    columns = [0, 4, 7]
    coarse = replace(land, x=land.x[columns], loss=land.loss[:, columns], support=land.support[:, columns])
    assert land.settings["complete"] is True
    assert coarse.settings["complete"] is False


def test_anything_becomes_json():
    strange = {
        "path": np.arange(3.0),
        "n": np.int64(3),
        "bad": [np.inf, -np.inf, np.nan],
        "model": torch.nn.Identity(),
        7: (True, None),
        "name": "</script><b>σ",
    }
    text = to_json(strange)
    assert text.isascii()
    assert "<" not in text
    saved = json.loads(text)
    assert saved == {
        "path": [0.0, 1.0, 2.0],
        "n": 3,
        "bad": ["inf", "-inf", "nan"],
        "model": "Identity()",
        "7": [True, None],
        "name": "</script><b>σ",
    }


@pytest.mark.parametrize("lacking", ["runs", "landscape", "torch", "complete"])
def test_missing_settings_are_refused(run, lacking):
    saved = lv.landscape(run, resolution=5, progress=False).settings
    part = {name: value for name, value in saved.items() if name != lacking}
    with pytest.raises(ValueError, match=r"must be those of a landscape, and whole.* Pass `Landscape\.settings`"):
        lv.reproduce(part, progress=False)


def test_incomplete_runs_in_settings_are_refused(run):
    saved = lv.landscape(run, resolution=5, progress=False).settings
    [one] = saved["runs"]
    for wrong in (5, one | {"train": {"dtype": "load"}}, one | {"loss": ["a", "b"]}, one | {"name": 5}):
        with pytest.raises(ValueError, match="must be those of a landscape, and whole"):
            lv.reproduce(saved | {"runs": [wrong]}, progress=False)


@pytest.mark.parametrize("behind", ["}", ', "version": 2, "runs": ' + "[" * 100_000, ', "version": 2, "runs": 5}'])
def test_invalid_settings_in_a_file_are_refused(tmp_path, behind):
    path = tmp_path / "settings.json"
    path.write_text('{"format": "loss_viz settings"' + behind, encoding="utf-8")
    with pytest.raises(ValueError, match=r"settings of version None|no settings of loss_viz, or only a part"):
        read_settings(path)
    path.write_bytes(b" " * (2**20 - 7) + path.read_bytes()[:30] + b', "version": 2, "runs": [], "landscape": {}}')
    assert read_settings(path)["runs"] == []  # wherever in the file they start


def test_settings_of_the_first_version_are_read_in_the_words_of_today(run, tmp_path):
    """Their surfaces were averages of losses, on planes with other names."""
    land = lv.landscape(run, k=3, resolution=(4, 3), progress=False)
    path = tmp_path / "settings.json"
    for old, expected in {
        "local": ("pca", "local", "last", "losses"),
        "parallel": ("pca", "parallel", "last", "losses"),
        "global": ("pca", "flat", "mean", "planes"),
        "final": ("pca", "flat", "last", "planes"),
        "random": ("random", "flat", "last", "planes"),
        "saddle": ("saddle", "flat", "last", "planes"),
    }.items():
        view = {"k": 3, "sigma": "auto", "resolution": [4, 3], "plane": old, "n_anchors": 200, "seed": 0}
        path.write_text(json.dumps(land.settings | {"version": 1, "landscape": view}))
        given = lv.reproduce(path, progress=False).given
        assert (given.axes, given.plane, given.center, given.blend) == expected
    path.write_text(json.dumps(land.settings | {"version": 1, "landscape": view | {"plane": "valley"}}))
    with pytest.raises(ValueError, match="`plane`='valley', which this version does not draw"):
        read_settings(path)
