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
    from .animation import animate as animate
    from .comparison import compare as compare
    from .curves import fidelity_figure as fidelity_figure
    from .curves import loss_curve_figure as loss_curve_figure
    from .diagnostics import Fidelity as Fidelity
    from .diagnostics import disagreement_map as disagreement_map
    from .diagnostics import fidelity as fidelity
    from .diagnostics import held_out_fidelity as held_out_fidelity
    from .diagnostics import mixing_map as mixing_map
    from .escapes import Escape as Escape
    from .escapes import trace_escape as trace_escape
    from .explorer import Explorer as Explorer
    from .figures import contour_figure as contour_figure
    from .figures import surface_figure as surface_figure
    from .film import export_gif as export_gif
    from .film import export_mp4 as export_mp4
    from .film import export_png as export_png
    from .folds import Fold as Fold
    from .folds import find_folds as find_folds
    from .geometry import Geometry as Geometry
    from .geometry import Sharpness as Sharpness
    from .geometry import fit_cosines as fit_cosines
    from .geometry import trace_geometry as trace_geometry
    from .geometry import trace_sharpness as trace_sharpness
    from .landscapes import Landscape as Landscape
    from .landscaping import landscape as landscape
    from .levels import Level as Level
    from .levels import fit_levels as fit_levels
    from .levels import name_level as name_level
    from .loading import load_run as load_run
    from .objective import Objective as Objective
    from .page import export_html as export_html
    from .plateaus import Plateau as Plateau
    from .plateaus import find_plateaus as find_plateaus
    from .provenance import read_settings as read_settings
    from .provenance import reproduce as reproduce
    from .race import compare_figure as compare_figure
    from .recorder import Recorder as Recorder
    from .reports import geometry_figure as geometry_figure
    from .reports import map_figure as map_figure
    from .reports import sigma_figure as sigma_figure
    from .sigmas import SigmaCurve as SigmaCurve
    from .sigmas import sigma_curve as sigma_curve
    from .tasks import Task as Task
    from .training import train as train
    from .trajectory import Run as Run

_ROOMS = {
    "train": "training",
    "Task": "tasks",
    "compare": "comparison",
    "Run": "trajectory",
    "Recorder": "recorder",
    "load_run": "loading",
    "Objective": "objective",
    "landscape": "landscaping",
    "Landscape": "landscapes",
    "fidelity": "diagnostics",
    "Fidelity": "diagnostics",
    "held_out_fidelity": "diagnostics",
    "mixing_map": "diagnostics",
    "disagreement_map": "diagnostics",
    "find_folds": "folds",
    "Fold": "folds",
    "sigma_curve": "sigmas",
    "SigmaCurve": "sigmas",
    "trace_geometry": "geometry",
    "Geometry": "geometry",
    "trace_sharpness": "geometry",
    "Sharpness": "geometry",
    "fit_cosines": "geometry",
    "find_plateaus": "plateaus",
    "Plateau": "plateaus",
    "name_level": "levels",
    "fit_levels": "levels",
    "Level": "levels",
    "trace_escape": "escapes",
    "Escape": "escapes",
    "surface_figure": "figures",
    "contour_figure": "figures",
    "loss_curve_figure": "curves",
    "fidelity_figure": "curves",
    "sigma_figure": "reports",
    "map_figure": "reports",
    "geometry_figure": "reports",
    "compare_figure": "race",
    "animate": "animation",
    "export_gif": "film",
    "export_mp4": "film",
    "export_png": "film",
    "read_settings": "provenance",
    "reproduce": "provenance",
    "export_html": "page",
    "Explorer": "explorer",
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
