import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import loss_viz as lv
from loss_viz.settings import to_json


def make_again(settings):
    """The landscape of some settings, as a reader of them would make it."""
    runs = {}
    for told in settings["runs"]:
        train = told["train"] | {"dtype": getattr(torch, told["train"]["dtype"])}
        runs[told["name"]] = lv.train(**train, progress=False)
    view = settings["landscape"] | {"resolution": tuple(settings["landscape"]["resolution"])}
    return lv.landscape(runs if len(runs) > 1 else next(iter(runs.values())), **view, progress=False)


@pytest.mark.parametrize(
    ("train", "view"),
    [
        ({}, {"resolution": (7, 5)}),
        ({"every": 4, "dtype": torch.float64, "n_points": 31}, {"resolution": 6, "k": 2, "sigma": 0.05}),
        ({"width": 5, "depth": 2, "activation": "tanh", "optimizer": "sgd", "lr": 0.05, "seed": 3}, {"n_anchors": 9}),
        ({}, {"plane": "random", "seed": 11, "resolution": (4, 3)}),
        ({}, {"n_anchors": None, "resolution": (4, 3)}),
    ],
)
def test_settings_make_the_same_landscape_again(train, view):
    run = lv.train("x^2", **{"steps": 42} | train, progress=False)
    land = lv.landscape(run, **{"resolution": (5, 4)} | view, progress=False)
    settings = json.loads(land.to_json())
    assert settings == land.settings
    again = make_again(settings)
    for name in ("x", "y", "loss", "path", "path_loss", "path_height", "support", "anchors", "sigma_absolute"):
        assert np.array_equal(getattr(again, name), getattr(land, name)), name
    assert again.settings == settings


def test_several_runs_are_told_by_name():
    runs = lv.compare("x^2", ["adam", "sgd"], steps=20, progress=False)
    land = lv.landscape({"one": runs[0], "other": runs[1]}, resolution=(4, 3), progress=False)
    assert [told["name"] for told in land.settings["runs"]] == ["one", "other"]
    assert [told["train"]["optimizer"] for told in land.settings["runs"]] == ["adam", "sgd"]
    again = make_again(land.settings)
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
    ],
)
def test_what_cannot_be_trained_again_says_so(train):
    run = lv.train(**train, steps=12, progress=False)
    land = lv.landscape(run, k=2, resolution=3, progress=False)
    told = json.loads(land.to_json())["runs"][0]
    assert told["train"] is None
    assert told["settings"]["seed"] == 52
    assert told["loss"] == [run.loss[0], run.loss[-1]]
    assert told["step"] == [0, 12]


def test_runs_of_other_data_are_not_taken_for_trained_ones(run):
    for changed in (
        replace(run, task=replace(run.task, y=run.task.y + 1)),
        replace(run, task=None),
        replace(run, step=run.step**2),
        replace(run, settings={}),
    ):
        land = lv.landscape(changed, k=2, resolution=3, progress=False)
        assert land.settings["runs"][0]["train"] is None
    assert lv.landscape(run, k=2, resolution=3, progress=False).settings["runs"][0]["train"]["dtype"] == "float64"


def test_an_interrupted_run_is_told_up_to_where_it_came():
    run = lv.train("x^2", steps=23, every=10, progress=False)
    assert run.step.tolist() == [0, 10, 20, 23]
    told = lv.landscape(run, k=1, resolution=3, progress=False).settings["runs"][0]
    assert (told["train"]["steps"], told["train"]["every"]) == (23, 10)


def test_a_grid_of_an_interrupted_landscape_is_told(run):
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
    told = json.loads(text)
    assert told == {
        "path": [0.0, 1.0, 2.0],
        "n": 3,
        "bad": ["inf", "-inf", "nan"],
        "model": "Identity()",
        "7": [True, None],
        "name": "</script><b>σ",
    }


@pytest.mark.parametrize("lacking", ["runs", "landscape", "torch", "complete"])
def test_a_part_of_the_settings_is_no_landscape(run, lacking):
    told = lv.landscape(run, resolution=5, progress=False).settings
    part = {name: value for name, value in told.items() if name != lacking}
    with pytest.raises(ValueError, match=r"must be those of a landscape, and whole.* Pass `Landscape\.settings`"):
        lv.reproduce(part, progress=False)


def test_a_run_of_the_settings_must_be_told_whole(run):
    told = lv.landscape(run, resolution=5, progress=False).settings
    [one] = told["runs"]
    for wrong in (5, one | {"train": {"dtype": "load"}}, one | {"loss": ["a", "b"]}, one | {"name": 5}):
        with pytest.raises(ValueError, match="must be those of a landscape, and whole"):
            lv.reproduce(told | {"runs": [wrong]}, progress=False)


@pytest.mark.parametrize("behind", ["}", ', "version": 1, "runs": ' + "[" * 100_000, ', "version": 1, "runs": 5}'])
def test_a_text_that_begins_as_settings_do_is_refused(tmp_path, behind):
    path = tmp_path / "settings.json"
    path.write_text('{"format": "loss_viz settings"' + behind, encoding="utf-8")
    with pytest.raises(ValueError, match=r"settings of version None|no settings of loss_viz, or only a part"):
        lv.read_settings(path)
    path.write_bytes(b" " * (2**20 - 7) + path.read_bytes()[:30] + b', "version": 1, "runs": [], "landscape": {}}')
    assert lv.read_settings(path)["runs"] == []  # wherever in the file they begin
