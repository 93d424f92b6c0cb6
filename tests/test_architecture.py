"""The house: imports point one way, and its front door opens at once."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import loss_viz

ROOMS = Path(loss_viz.__file__).parent

# Each room and the rooms it may enter. A room is listed after all of them: no import points forward.
MAY_IMPORT = {
    "arguments": set(),  # which stands at every door
    "expression": set(),
    "parameters": set(),
    "probes": set(),
    "rows": set(),
    "pure": {"parameters", "probes"},
    "threads": set(),
    "layers": set(),
    "chunks": set(),
    "objective": {"chunks", "layers", "parameters", "probes", "pure", "threads"},
    "stored": {"parameters"},
    "checkpoints": {"parameters", "stored"},
    "archive": {"checkpoints", "stored"},
    "tasks": {"expression"},
    "trajectory": {"archive", "checkpoints", "objective", "rows", "tasks"},
    "loading": {"archive", "objective", "tasks", "trajectory"},
    "snapshots": {"checkpoints", "parameters", "rows"},
    "recorder": {"objective", "rows", "snapshots", "trajectory"},
    "recording": {"objective", "recorder", "trajectory"},
    "lightning": {"recording"},
    "transformers": {"recording"},
    "optimizers": set(),
    "training": {"expression", "objective", "optimizers", "parameters", "tasks", "trajectory"},
    "bundle": {"objective", "rows", "trajectory"},
    "comparison": {"bundle", "optimizers", "tasks", "training", "trajectory"},
    "plateaus": {"trajectory"},
    "projection": {"rows", "threads"},
    "directions": {"objective", "parameters", "rows"},
    "frames": {"rows"},
    "planes": {"frames", "projection", "rows"},
    "kernels": set(),
    "ledger": set(),
    "cache": {"bundle", "checkpoints", "ledger", "rows"},
    "lifting": {"objective", "planes"},
    "charts": {"ledger", "lifting", "objective", "planes"},
    "estimates": {"charts"},
    "blend": {"charts", "estimates", "kernels", "ledger", "lifting", "objective", "planes", "threads"},
    "surveys": {"blend", "bundle", "cache", "charts", "directions", "frames", "planes", "projection"},
    "holdout": {"kernels", "surveys"},
    "files": set(),
    "describing": {"optimizers", "surveys", "tasks", "trajectory"},
    "tables": {"bundle", "describing", "files", "kernels", "surveys"},
    "landscapes": {
        *("blend", "bundle", "describing", "kernels", "planes"),
        *("projection", "surveys", "tables", "trajectory"),
    },
    "landscaping": {"bundle", "cache", "holdout", "kernels", "landscapes", "surveys"},
    "diagnostics": {"holdout", "landscapes"},
    "folds": {"diagnostics", "kernels", "landscapes"},
    "geometry": {"bundle", "directions", "landscapes", "planes", "rows", "surveys", "trajectory"},
    "sigmas": {"holdout", "landscapes"},
    "levels": {"plateaus", "tasks", "trajectory"},
    "escapes": {"geometry", "plateaus", "trajectory"},
    "provenance": {"bundle", "describing", "landscapes", "landscaping", "training", "trajectory"},
    "scales": set(),
    "captions": {"bundle", "diagnostics", "folds", "geometry", "landscapes", "projection", "trajectory"},
    "drawing": {"bundle", "diagnostics", "landscapes", "projection", "scales"},
    "marks": {"bundle", "drawing", "folds", "landscapes", "plateaus", "projection", "scales"},
    "curves": {
        "bundle",
        "captions",
        "diagnostics",
        "drawing",
        "landscapes",
        "levels",
        "plateaus",
        "scales",
        "trajectory",
    },
    "figures": {"captions", "curves", "drawing", "folds", "landscapes", "marks", "plateaus", "scales"},
    "race": {"captions", "curves", "drawing", "figures", "folds", "landscapes", "scales"},
    "reports": {"captions", "drawing", "geometry", "kernels", "landscapes", "sigmas"},
    "animation": {"drawing", "figures", "landscapes", "planes", "scales"},
    "painter": set(),
    "paper": {"captions", "drawing", "figures", "folds", "landscapes", "scales"},
    "scene": {
        *("captions", "diagnostics", "drawing", "folds", "landscapes", "marks"),
        *("painter", "paper", "plateaus", "scales"),
    },
    "reels": {"animation", "describing", "landscapes", "scene"},
    "palettes": set(),
    "film": {"files", "landscapes", "palettes", "reels"},
    "settings": {"kernels", "optimizers", "surveys", "tasks"},
    "stages": {
        *("bundle", "holdout", "kernels", "landscapes", "projection"),
        *("settings", "sigmas", "surveys", "training"),
    },
    "screen": {
        *("bundle", "captions", "diagnostics", "folds", "landscapes", "levels"),
        *("plateaus", "projection", "scales"),
    },
    "jobs": set(),
    "plotlyjs": set(),
    "picture": {"plotlyjs"},
    "panes": {
        *("bundle", "captions", "curves", "drawing", "figures", "folds", "landscapes", "levels"),
        *("marks", "plateaus", "projection", "scales", "screen", "surveys"),
    },
    "tiles": {"bundle", "captions", "projection", "screen"},
    "sparkline": {"captions", "kernels", "sigmas"},
    "composition": {"bundle", "folds", "panes", "plateaus", "screen", "surveys"},
    "recipes": {"settings"},
    "atlas": {
        *("bundle", "holdout", "jobs", "kernels", "landscapes", "planes", "projection", "screen"),
        *("surveys", "trajectory"),
    },
    "sheets": {
        *("atlas", "bundle", "captions", "composition", "drawing", "landscapes", "panes", "planes"),
        *("recipes", "scales", "screen"),
    },
    "page": {"atlas", "describing", "plotlyjs", "recipes", "sheets"},
    "studio": {
        *("bundle", "chunks", "composition", "jobs", "landscapes", "panes", "picture", "scales", "screen"),
        *("settings", "sigmas", "stages", "surveys", "tiles", "training"),
    },
    "cells": set(),
    "controls": {"kernels", "settings", "training"},
    "desk": {"controls", "kernels", "picture", "settings"},
    "explorer": {
        *("bundle", "cells", "controls", "desk", "figures", "landscapes", "panes"),
        *("picture", "settings", "sigmas", "sparkline", "stages", "studio", "training", "trajectory"),
    },
}
DRAWING_ROOMS = {
    "drawing",
    "marks",
    "curves",
    "figures",
    "race",
    "reports",
    "animation",
    "paper",
    "scene",
    "reels",
    "palettes",
    "film",
    "plotlyjs",
    "picture",
    "panes",
    "controls",
    "desk",
    "explorer",
    "page",
}
DRAWING_LIBRARIES = {"plotly", "ipywidgets", "anywidget", "matplotlib", "PIL", "imageio_ffmpeg"}


def imports(room):
    tree = ast.parse((ROOMS / f"{room}.py").read_text(encoding="utf-8"))
    own, foreign = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            own.add(node.module)
        elif isinstance(node, ast.ImportFrom):
            foreign.add(node.module.split(".")[0])
        elif isinstance(node, ast.Import):
            foreign |= {alias.name.split(".")[0] for alias in node.names}
    return own, foreign


def test_every_room_is_listed_behind_those_it_enters():
    rooms = {module.name for module in pkgutil.iter_modules([str(ROOMS)])}
    assert rooms == set(MAY_IMPORT)
    seen = set()
    for room, entered in MAY_IMPORT.items():
        assert entered <= seen
        seen.add(room)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_point_one_way(room):
    own, foreign = imports(room)
    assert own - {"arguments"} <= MAY_IMPORT[room]
    if room not in DRAWING_ROOMS:
        assert not foreign & DRAWING_LIBRARIES


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_rooms_are_small(room):
    assert len((ROOMS / f"{room}.py").read_text(encoding="utf-8").splitlines()) <= 300


def loaded_after(statement):
    code = f"import sys\n{statement}\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_import_is_instant_and_numerics_load_no_drawing_library():
    assert not loaded_after("import loss_viz") & (DRAWING_LIBRARIES | {"torch", "sklearn", "numpy"})
    computing = "import loss_viz as lv\nr = lv.train('x', steps=20)\nlv.fidelity(lv.landscape(r, resolution=3))"
    loaded = loaded_after(computing)
    assert "torch" in loaded
    assert not loaded & {"plotly", "anywidget"}


def test_the_door_lists_what_it_opens():
    for name in loss_viz.__all__:
        value = getattr(loss_viz, name)
        room = importlib.import_module(f"loss_viz.{loss_viz._ROOMS[name]}")
        assert value is getattr(room, name)
        assert value.__doc__
        assert name in dir(loss_viz)
    tree = ast.parse((ROOMS / "__init__.py").read_text(encoding="utf-8"))
    typed = {alias.asname for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert set(loss_viz.__all__) <= typed
    with pytest.raises(AttributeError, match="has no attribute 'nothing'; it offers train"):
        loss_viz.nothing  # noqa: B018
