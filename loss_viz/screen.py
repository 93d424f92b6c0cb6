"""What is on the panel's screen, and what was found out about it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from .bundle import Bundle
from .captions import write_cautions
from .diagnostics import Fidelity, fidelity, measure_held_out
from .folds import Fold, find_folds
from .landscapes import Landscape, Surface
from .levels import Level, name_level
from .plateaus import Plateau, find_plateaus
from .projection import Projection
from .scales import Scale

CLICK_REACH = 0.08  # of the path's diagonal: a click on the surface so near to the path means the path


@dataclass(frozen=True, eq=False)
class Stays:
    """Where runs lie still, and what they have learned there.

    Attributes:
        plateaus: of all runs.
        levels: the fit that each of them matches, or None.
    """

    plateaus: tuple[Plateau, ...] = ()
    levels: tuple[Level | None, ...] = ()

    def find(self, step: int) -> tuple[Plateau, Level | None] | None:
        """The plateau on which a step lies, or else the longest one, with its fit; None where there is none."""
        pairs = list(zip(self.plateaus, self.levels, strict=True))
        here = [pair for pair in pairs if pair[0].start <= step <= pair[0].end]
        return max(here or pairs, key=lambda pair: pair[0].end - pair[0].start, default=None)


@dataclass(frozen=True, eq=False)
class Facts:
    """How true a landscape is."""

    fit: Fidelity
    held_out: Fidelity | None
    folds: tuple[Fold, ...]
    cautions: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Frame:
    """The surface that is on screen, and the one beside it. Heights under the run that are not known yet are nan."""

    bundle: Bundle
    projection: Projection
    surface: Surface
    height: Float[np.ndarray, " n_steps"]
    scale: Scale
    landscape: Landscape | None = None
    beside: Landscape | None = None
    facts: Facts | None = None

    def find_step(self, point: dict[str, Any]) -> int | None:
        """The training step that a click means; None where it is on nothing that has one."""
        if point["pane"] == "fit":
            return None
        trace, _, which = point["trace"].partition("-")
        if trace in ("surface", "ball"):
            seen = self.beside.projection if self.beside and point["pane"] == "beside" else self.projection
            distance = np.linalg.norm(seen.path - [point["x"], point["y"]], axis=1)
            row = int(distance.argmin())
            return int(self.bundle.step[row]) if distance[row] <= CLICK_REACH * seen.diagonal else None
        if trace not in ("trajectory", "loss", "step", "factor"):
            return None
        return int(self.bundle.step[self.bundle.starts[int(which or 0)] + point["index"]])


def find_stays(bundle: Bundle) -> Stays:
    """The plateaus of all runs, named where that can be."""
    found = [(plateau, name_level(run, plateau)) for run in bundle.runs for plateau in find_plateaus(run)]
    return Stays(tuple(plateau for plateau, _ in found), tuple(level for _, level in found))


def find_facts(landscape: Landscape) -> Facts:
    """Measure how true a landscape is, with the planes near each anchor and without them."""
    folds = tuple(find_folds(landscape))
    return Facts(fidelity(landscape), measure_held_out(landscape), folds, tuple(write_cautions(landscape, folds)))
