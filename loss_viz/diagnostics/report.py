"""All findings about a landscape, measured once."""

from collections.abc import Sequence
from dataclasses import dataclass

from loss_viz.diagnostics.fidelity import Fidelity, fidelity, measure_held_out
from loss_viz.diagnostics.folds import Fold, find_folds
from loss_viz.diagnostics.geometry import COSINE_LIMITS, fit_cosines
from loss_viz.diagnostics.plateaus import Plateau, PolynomialFit, find_plateaus, match_polynomial
from loss_viz.landscapes.landscape import Landscape
from loss_viz.runs.run_set import RunSet


def write_cautions(landscape: Landscape, folds: Sequence[Fold]) -> list[str]:
    """What to keep in mind before this picture, in sentences; often none."""
    cautions = []
    if folds:
        worst = max(folds, key=lambda fold: fold.factor)
        passes = "passes over its own place" if len(folds) == 1 else f"passes over its own place {len(folds)} times"
        cautions.append(
            f"The path {passes} at different losses (steps {worst.step} and {worst.other_step} differ by "
            f"{write_factor(worst.factor)}): the surface can show only one of them."
        )
    shares = fit_cosines(landscape)
    if all(share > limit for share, limit in zip(shares, COSINE_LIMITS, strict=True)):
        cautions.append(
            f"PC1 and PC2 are cosines of time (R² {shares[0]:.2f} and {shares[1]:.2f}), as those of a random walk are: "
            "the arch of the path may mean nothing."
        )
    return cautions


def write_factor(factor: float) -> str:
    """A factor of fidelity in three digits."""
    return f"×{factor:.2f}" if factor < 10 else f"×{factor:.3g}"


@dataclass(frozen=True, eq=False)
class PlateauSummary:
    """Where runs lie still, and what they have learned there.

    Attributes:
        plateaus: of all runs.
        levels: the fit that each of them matches, or None.
    """

    plateaus: tuple[Plateau, ...] = ()
    levels: tuple[PolynomialFit | None, ...] = ()

    def find(self, step: int) -> tuple[Plateau, PolynomialFit | None] | None:
        """The plateau on which a step lies, or else the longest one, with its fit; None where there is none."""
        pairs = list(zip(self.plateaus, self.levels, strict=True))
        here = [pair for pair in pairs if pair[0].start <= step <= pair[0].end]
        return max(here or pairs, key=lambda pair: pair[0].end - pair[0].start, default=None)


@dataclass(frozen=True, eq=False)
class Report:
    """How true a landscape is."""

    fit: Fidelity
    held_out: Fidelity | None
    folds: tuple[Fold, ...]
    cautions: tuple[str, ...]


def summarize_plateaus(run_set: RunSet) -> PlateauSummary:
    """The plateaus of all runs, named where that can be."""
    found = [(plateau, match_polynomial(run, plateau)) for run in run_set.runs for plateau in find_plateaus(run)]
    return PlateauSummary(tuple(plateau for plateau, _ in found), tuple(level for _, level in found))


def assess(landscape: Landscape) -> Report:
    """Measure how true a landscape is, with the planes near each anchor and without them."""
    folds = tuple(find_folds(landscape))
    return Report(fidelity(landscape), measure_held_out(landscape), folds, tuple(write_cautions(landscape, folds)))
