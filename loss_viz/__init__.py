"""See why a training run behaves as it does.

    import loss_viz as lv

    run = lv.train("x^3")            # record a run
    land = lv.landscape(run)         # the loss around it, from local planes along it
    lv.fidelity(land)                # how far the picture is from the run
    lv.surface_figure(land)          # the surface, the trajectory and the ball
    lv.Explorer("x^3")               # all of it in a panel: slide, and see

    recorder = lv.Recorder(model, loss_fn).attach(optimizer)    # the same for a training of your own
    run = recorder.run()

Names are imported when they are first used, so that `import loss_viz` is instant and drawing libraries are loaded
only by those who draw.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loss_viz.diagnostics.fidelity import Fidelity as Fidelity
    from loss_viz.diagnostics.fidelity import SigmaCurve as SigmaCurve
    from loss_viz.diagnostics.fidelity import disagreement_map as disagreement_map
    from loss_viz.diagnostics.fidelity import fidelity as fidelity
    from loss_viz.diagnostics.fidelity import held_out_fidelity as held_out_fidelity
    from loss_viz.diagnostics.fidelity import mixing_map as mixing_map
    from loss_viz.diagnostics.fidelity import sigma_curve as sigma_curve
    from loss_viz.diagnostics.folds import Fold as Fold
    from loss_viz.diagnostics.folds import find_folds as find_folds
    from loss_viz.diagnostics.geometry import Geometry as Geometry
    from loss_viz.diagnostics.geometry import Sharpness as Sharpness
    from loss_viz.diagnostics.geometry import fit_cosines as fit_cosines
    from loss_viz.diagnostics.geometry import trace_geometry as trace_geometry
    from loss_viz.diagnostics.geometry import trace_sharpness as trace_sharpness
    from loss_viz.diagnostics.plateaus import Escape as Escape
    from loss_viz.diagnostics.plateaus import Level as Level
    from loss_viz.diagnostics.plateaus import Plateau as Plateau
    from loss_viz.diagnostics.plateaus import find_plateaus as find_plateaus
    from loss_viz.diagnostics.plateaus import fit_levels as fit_levels
    from loss_viz.diagnostics.plateaus import name_level as name_level
    from loss_viz.diagnostics.plateaus import trace_escape as trace_escape
    from loss_viz.export.html import export_html as export_html
    from loss_viz.export.images import export_gif as export_gif
    from loss_viz.export.images import export_mp4 as export_mp4
    from loss_viz.export.images import export_png as export_png
    from loss_viz.figures.curves import fidelity_figure as fidelity_figure
    from loss_viz.figures.curves import loss_curve_figure as loss_curve_figure
    from loss_viz.figures.diagnostics import geometry_figure as geometry_figure
    from loss_viz.figures.diagnostics import map_figure as map_figure
    from loss_viz.figures.diagnostics import sigma_figure as sigma_figure
    from loss_viz.figures.surface import animate as animate
    from loss_viz.figures.surface import compare_figure as compare_figure
    from loss_viz.figures.surface import contour_figure as contour_figure
    from loss_viz.figures.surface import surface_figure as surface_figure
    from loss_viz.landscapes.compute import landscape as landscape
    from loss_viz.landscapes.landscape import Landscape as Landscape
    from loss_viz.landscapes.provenance import read_settings as read_settings
    from loss_viz.landscapes.reproduce import reproduce as reproduce
    from loss_viz.objective.objective import Objective as Objective
    from loss_viz.panel.explorer import Explorer as Explorer
    from loss_viz.runs.recorder import Recorder as Recorder
    from loss_viz.runs.run import Run as Run
    from loss_viz.runs.run import load_run as load_run
    from loss_viz.runs.training import compare as compare
    from loss_viz.runs.training import train as train
    from loss_viz.tasks.regression import Task as Task

_ROOMS = {
    "train": "runs.training",
    "Task": "tasks.regression",
    "compare": "runs.training",
    "Run": "runs.run",
    "Recorder": "runs.recorder",
    "load_run": "runs.run",
    "Objective": "objective.objective",
    "landscape": "landscapes.compute",
    "Landscape": "landscapes.landscape",
    "fidelity": "diagnostics.fidelity",
    "Fidelity": "diagnostics.fidelity",
    "held_out_fidelity": "diagnostics.fidelity",
    "mixing_map": "diagnostics.fidelity",
    "disagreement_map": "diagnostics.fidelity",
    "find_folds": "diagnostics.folds",
    "Fold": "diagnostics.folds",
    "sigma_curve": "diagnostics.fidelity",
    "SigmaCurve": "diagnostics.fidelity",
    "trace_geometry": "diagnostics.geometry",
    "Geometry": "diagnostics.geometry",
    "trace_sharpness": "diagnostics.geometry",
    "Sharpness": "diagnostics.geometry",
    "fit_cosines": "diagnostics.geometry",
    "find_plateaus": "diagnostics.plateaus",
    "Plateau": "diagnostics.plateaus",
    "name_level": "diagnostics.plateaus",
    "fit_levels": "diagnostics.plateaus",
    "Level": "diagnostics.plateaus",
    "trace_escape": "diagnostics.plateaus",
    "Escape": "diagnostics.plateaus",
    "surface_figure": "figures.surface",
    "contour_figure": "figures.surface",
    "loss_curve_figure": "figures.curves",
    "fidelity_figure": "figures.curves",
    "sigma_figure": "figures.diagnostics",
    "map_figure": "figures.diagnostics",
    "geometry_figure": "figures.diagnostics",
    "compare_figure": "figures.surface",
    "animate": "figures.surface",
    "export_gif": "export.images",
    "export_mp4": "export.images",
    "export_png": "export.images",
    "read_settings": "landscapes.provenance",
    "reproduce": "landscapes.reproduce",
    "export_html": "export.html",
    "Explorer": "panel.explorer",
}

__all__ = list(_ROOMS)
__version__ = version("loss_viz")


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module 'loss_viz' has no attribute {name!r}; it offers {', '.join(_ROOMS)}")
    value = getattr(import_module(f".{_ROOMS[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
