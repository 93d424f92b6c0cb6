import inspect
from dataclasses import asdict, fields

import pytest
import torch

import loss_viz as lv
from loss_viz.settings import (
    LANDSCAPE,
    OPTIONS,
    OWN_VECTOR,
    TRAINING,
    VIEW,
    LandscapeSettings,
    TrainSettings,
    check_setting,
    explorer_settings,
    preset_for,
    to_script,
)

WRONG = {
    "target": "import os",
    "width": 0,
    "depth": 13,
    "activation": "swish",
    "optimizer": "sdg",
    "lr": -1.0,
    "steps": 2.5,
    "seed": -1,
    "k": 0,
    "sigma": "wide",
    "resolution": (9, 7),
    "axes": "pcs",
    "plane": "global",
    "step": -1,
    "loss_axis": "lin",
    "min_support": float("nan"),
    "beside": "local planes",
    "part": (5, 2),
    "bounds": ((0.0, 1.0), (1.0, 0.0)),
}


def test_every_option_takes_its_default_and_refuses_a_wrong_value_by_its_name():
    assert {*WRONG, "height"} == set(OPTIONS) == {*TRAINING, *VIEW}  # the heights are those of each panel
    for name, option in OPTIONS.items():
        assert option.label
        assert option.hint.endswith(".")
        if option.default is not None:
            assert check_setting(name, option.default) == option.default
    for name in WRONG:
        with pytest.raises((TypeError, ValueError)) as error:
            check_setting(name, WRONG[name])
        assert error.value.argument == name


@pytest.mark.parametrize(("function", "table"), [(lv.train, TrainSettings), (lv.landscape, LandscapeSettings)])
def test_the_functions_have_the_defaults_of_the_table(function, table):
    parameters = inspect.signature(function).parameters
    presets = {"width", "lr", "steps", "seed"} if table is TrainSettings else set()
    for row in fields(table):
        if row.name != "target":
            assert parameters[row.name].default == (None if row.name in presets else row.default)


def test_presets_differ_for_the_targets_of_the_post():
    assert preset_for("x") == (8, 0.01, 52, 200)
    assert preset_for(" x ^ 2") == preset_for("x**2") == (8, 0.01, 56, 500)
    assert preset_for("x^2", "robust") == (64, 0.001, 0, 500)
    assert preset_for(torch.sin) == preset_for("x^3") == (8, 0.01, 52, 2000)


VALUES = {name: option.default for name, option in OPTIONS.items()} | {"step": 9, "log": True}
LAND = {name: VALUES[name] for name in LANDSCAPE}


def test_code_of_the_panel_for_a_run_of_its_own_and_for_given_runs():
    assert to_script({"landscape": LAND, "runs": [{"train": VALUES}]}, VALUES) == (
        "import loss_viz as lv\n\n"
        "run = lv.train('x^3', width=8, depth=1, activation='silu', optimizer='adam', lr=0.01, steps=2000, seed=52)\n"
        "land = lv.landscape(run, k='auto', sigma='auto', resolution=61, axes='pca', plane='auto')\n"
        "lv.surface_figure(land, step=9, log=True)"
    )
    view = VALUES | {"beside": "flat", "min_support": 0.25, "k": 3}
    assert to_script({"landscape": LAND}, view, name="runs") == (
        "import loss_viz as lv\n\n"
        "land = lv.landscape(runs, k=3, sigma='auto', resolution=61, axes='pca', plane='auto')\n"
        "beside = lv.landscape(runs, k=3, sigma='auto', resolution=61, axes='pca', plane='flat')\n"
        "lv.surface_figure(land, beside, step=9, log=True, min_support=0.25)"
    )


def test_code_of_a_page_names_what_differs_from_the_defaults():
    trained = lv.train("x", steps=4, every=2, n_points=9, dtype=torch.float64, progress=False)
    land = lv.landscape(trained, k=1, axes="random", seed=3, n_anchors=2, resolution=(4, 3), progress=False)
    settings = land.settings
    assert to_script(settings) == (
        "import torch\n\nimport loss_viz as lv\n\n"
        "run = lv.train('x', width=8, depth=1, activation='silu', optimizer='adam', lr=0.01, steps=4, seed=52, "
        "n_points=9, every=2, dtype=torch.float64)\n"
        "land = lv.landscape(run, k={k}, sigma={sigma}, resolution=(4, 3), axes='random', plane='auto', "
        "n_anchors=2, seed=3)\n"
        "lv.surface_figure(land, step={step}, log={log})"
    )
    trained = lv.train("x", steps=4, scheduler="cosine", optimizer="NAdam", progress=False)
    code = to_script(lv.landscape(trained, k=1, resolution=(4, 3), progress=False).settings)
    assert "optimizer='nadam', lr=0.01, steps=4, seed=52, scheduler='cosine')" in code
    own = {"name": "own", "train": None}
    assert "\nrun = ...  # a run of your own" in to_script(settings | {"runs": [own]})
    several = to_script(settings | {"runs": [own, settings["runs"][0] | {"name": "a 'b'"}]})
    assert several.split("\n")[4:8] == ["run = {", "    'own': ...,", f"    \"a 'b'\": {_training(settings)},", "}"]


def test_code_has_the_arguments_without_a_control_and_a_gap_for_own_directions():
    given = asdict(LandscapeSettings()) | {"steps": [3, 9], "bounds": [[0.0, 1.0], [-1.0, 2.0]], "center": 5}
    code = to_script({"landscape": given | {"axes": [OWN_VECTOR, "PC1"], "blend": "losses"}})
    assert code.split("\n")[2] == (
        "land = lv.landscape(run, k={k}, sigma={sigma}, resolution=61, axes=(..., 'PC1'), plane='auto', center=5, "
        "blend='losses', steps=(3, 9), bounds=((0.0, 1.0), (-1.0, 2.0)))"
    )


def _training(settings):
    return to_script(settings).split("run = ")[1].split("\n")[0]


@pytest.mark.parametrize(
    "changed",
    [
        *[{"resolution": (5, 4)}, {"n_anchors": 3}, {"seed": 1}, {"resolution": (900, 900)}, {"center": "mean"}],
        *[{"blend": "losses"}, {"steps": [0, 5]}, {"axes": ["PC1", "sharpest"]}, {}],
    ],
)
def test_settings_of_a_panel_only_where_it_draws_the_same(changed):
    train = dict(VALUES, n_points=100, every=1, dtype="float32")
    land = asdict(LandscapeSettings()) | {"resolution": (5, 5)} | changed
    settings = {"landscape": land, "runs": [{"train": train}], "complete": True}
    found = explorer_settings(settings, step=7, log=True)
    if changed:
        assert found is None
        return
    assert found == {**{name: VALUES[name] for name in OPTIONS}, "resolution": 5, "step": 7, "loss_axis": "log"}
    assert explorer_settings(settings | {"complete": False}, step=7, log=True) is None
    zoomed = settings | {"landscape": land | {"bounds": [[0, 1], [0, 2]]}}  # as read from a file
    assert explorer_settings(zoomed, step=7, log=True)["bounds"] == ((0, 1), (0, 2))
    given = explorer_settings(settings | {"runs": [{"train": train | {"every": 2}}]}, step=7, log=True)
    assert set(given) == set(VIEW)  # for Explorer(run, ...), since it cannot train this run
