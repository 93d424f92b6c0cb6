"""From settings to a landscape, stage by stage; each stage is made again only when a setting that it reads changes."""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from tqdm import tqdm

from .bundle import Bundle, bundle_runs
from .holdout import choose_kernel
from .kernels import Kernel
from .landscapes import Landscape, Surface, blend_path, blend_surface
from .projection import Projection
from .settings import TRAINING
from .sigmas import SigmaCurve, sigma_curve
from .surveys import OWN_AXES, Survey, lay_anew, project, survey
from .training import Training, descend, prepare_training, require_room

N_KEPT = 4
RUN_BYTES = 2**26  # of the runs kept, the latest apart: wide nets fill a small session's memory
SKETCH_SIZE, SKETCH_ANCHORS = 21, 50  # a tenth of the work of a landscape, or less
MAX_BYTES = 2**28

Settings = Mapping[str, Any]


class Stages:
    """The last few runs, and the last few results of every later stage for one of them.

    To go back to earlier settings of the same run is as quick as to stay.

    Args:
        own: runs that are there already; where they are given nothing is ever trained.
    """

    def __init__(self, own: Bundle | None = None) -> None:
        self._own = own
        self._latest: Bundle | None = None
        self._kept: dict[str, OrderedDict[Hashable, Any]] = {}

    def find_runs(self, settings: Settings) -> Bundle | None:
        """The runs of these settings, if they are known."""
        return self._own or self._kept.get("run", OrderedDict()).get(_key_training(settings))

    def train(self, training: Training, settings: Settings, on_step: Callable[[int, float], object]) -> Bundle:
        """Train anew what `prepare` made of the settings. A run that ended early counts as theirs, too."""
        trained = self._keep("run", _key_training(settings), bundle_runs(descend(training, on_step=on_step)))
        kept = self._kept["run"]
        while len(kept) > 1 and sum(one.runs[0].weights.nbytes for one in kept.values()) > RUN_BYTES:
            kept.popitem(last=False)
        return trained

    def project(self, bundle: Bundle, plane: str, bar: tqdm) -> Projection:
        """The plane of the picture; one for all those that the PCs span."""
        kind = plane if plane in OWN_AXES else "PC"
        return self._recall("projection", (bundle, kind), lambda: project(bundle, plane, bar=bar))

    def survey(self, bundle: Bundle, settings: Settings, bar: tqdm) -> Survey:
        """Planes and grid; what was evaluated on them is kept with it, for every sigma.

        Other runs than the last time take the place of all that was kept of those.
        """
        if bundle is not self._latest:
            self._latest = bundle
            self._kept = {stage: kept for stage, kept in self._kept.items() if stage == "run"}
        k, plane, resolution = (settings[name] for name in ("k", "plane", "resolution"))

        def make() -> Survey:
            for kept in self._kept.get("survey", {}).values():
                if (kept.k, kept.plane) == (k, plane):
                    return lay_anew(kept, resolution)
            return survey(bundle, self.project(bundle, plane, bar), k=k, plane=plane, resolution=resolution, bar=bar)

        return self._recall("survey", (bundle, k, plane, resolution), make)

    def sketch(self, around: Survey, settings: Settings, bar: tqdm) -> Surface:
        """A quick look: fewer planes on a coarser grid."""
        bundle, k, plane = around.bundle, around.k, around.plane
        coarse = self._recall(
            "sketch",
            (bundle, k, plane),
            lambda: survey(
                bundle, around.projection, k=k, plane=plane, resolution=SKETCH_SIZE, n_anchors=SKETCH_ANCHORS, bar=bar
            ),
        )
        return blend_surface(coarse, self._choose_kernel(coarse, settings, bar), bar)

    def blend_surface(self, around: Survey, settings: Settings, bar: tqdm) -> Surface:
        """The heights over the grid."""
        kernel = self._choose_kernel(around, settings, bar)
        return self._recall("surface", (around, kernel), lambda: blend_surface(around, kernel, bar))

    def blend_path(self, around: Survey, settings: Settings, bar: tqdm) -> Landscape:
        """The whole landscape."""
        kernel = self._choose_kernel(around, settings, bar)
        surface = self.blend_surface(around, settings, bar)
        return self._recall("landscape", (around, kernel), lambda: blend_path(around, surface, kernel, bar))

    def measure_costs(self, landscape: Landscape, bar: tqdm) -> SigmaCurve | None:
        """What each bandwidth costs; None where there is nothing to blend, or too little to leave anything out."""
        if len(landscape.planes) < 2:
            return None

        def measure() -> SigmaCurve | None:
            try:
                return sigma_curve(landscape, bar=bar)
            except ValueError:
                return None

        return self._recall("costs", landscape.planes, measure)

    def knows_surface(self, around: Survey, settings: Settings) -> bool:
        """Whether the surface needs no work."""
        kernel = self._kept.get("kernel", OrderedDict()).get((around.planes, settings["sigma"]))
        return kernel is not None and (around, kernel) in self._kept.get("surface", OrderedDict())

    def _choose_kernel(self, around: Survey, settings: Settings, bar: tqdm) -> Kernel:
        sigma = settings["sigma"]
        return self._recall("kernel", (around.planes, sigma), lambda: choose_kernel(around, sigma, bar))

    def _recall(self, stage: str, key: Hashable, make: Callable[[], Any]) -> Any:
        kept = self._kept.setdefault(stage, OrderedDict())
        if key in kept:
            kept.move_to_end(key)
            return kept[key]
        return self._keep(stage, key, make())

    def _keep(self, stage: str, key: Hashable, value: Any) -> Any:
        kept = self._kept.setdefault(stage, OrderedDict())
        kept[key] = value
        kept.move_to_end(key)
        while len(kept) > N_KEPT:
            kept.popitem(last=False)
        return value


def prepare(settings: Settings) -> Training:
    """Check and build the training that the settings describe.

    Raises:
        ValueError: a value that cannot be, or a run that would not fit in memory.
    """
    chosen = {name: settings[name] for name in TRAINING if name != "target"}
    training = prepare_training(settings["target"], **chosen)
    require_room(training.model, training.steps, training.every, MAX_BYTES)
    return training


def _key_training(settings: Settings) -> tuple[Hashable, ...]:
    return tuple(settings[name] for name in TRAINING)
