"""Report: every finding about a landscape, measured once."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int
from tqdm import tqdm

from loss_viz.diagnostics.fidelity import NEAR, Fidelity, fidelity, find_unsettled, measure_held_out
from loss_viz.diagnostics.folds import MIN_FACTOR, Fold, find_folds
from loss_viz.diagnostics.plateaus import Plateau, find_plateaus
from loss_viz.diagnostics.predictions import measure_ahead, measure_batch_norm_lag, measure_between
from loss_viz.landscapes.landscape import Landscape, check_landscape
from loss_viz.planes.projection import Projection
from loss_viz.runs.run import LossCheck, describe_check
from loss_viz.runs.run_set import RunSet

# Squared correlations of PC1 and PC2 with cosines of time above which `warnings` mentions them. Smooth runs that learn
# something reach 0.98 and 0.92, as random walks do: this is a warning, not a verdict.
COSINE_LIMITS = (0.9, 0.7)
RIDES_ABOVE = 1.05  # factor from which `warnings` says that the run lies above the surface
Row = tuple[str, str, str]  # name, value, comment


class Report:
    """Every finding about one landscape, from `assess`. Each is measured when it is first read, and then kept.

    Example:
        >>> import loss_viz as lv
        >>> land = lv.landscape(lv.train("x^2", steps=60, progress=False), resolution=9, progress=False)
        >>> report = lv.assess(land)
        >>> report.fidelity.median < 1.02, len(report.folds), report.warnings
        (True, 0, ())
    """

    def __init__(self, landscape: Landscape) -> None:
        self._landscape = landscape

    @cached_property
    def checks(self) -> tuple[LossCheck, ...]:
        """For each run, how far its losses are from those of the model itself, loaded afresh at some steps."""
        return tuple(run.check for run in self._landscape.runs)

    @cached_property
    def fidelity(self) -> Fidelity:
        """Factors between surface and true loss at every recorded step."""
        return fidelity(self._landscape)

    @cached_property
    def held_out(self) -> Fidelity | None:
        """Factors at the anchors without the planes near each; None if nothing can be left out."""
        return measure_held_out(self._landscape, tqdm(disable=True))

    def measure_held_out(self, bar: tqdm) -> Fidelity | None:
        """Measure `held_out` under a progress bar; exceptions that the bar raises stop it, and leave it unmeasured."""
        if "held_out" not in vars(self):
            self.held_out = measure_held_out(self._landscape, bar)
        return self.held_out

    @cached_property
    def between(self) -> Fidelity:
        """Factors on straight lines between steps or ends of the runs: are ridges between them real?"""
        return measure_between(self._landscape, progress=False)

    @cached_property
    def ahead(self) -> Fidelity | None:
        """Factors at the last fifth of a run, in a picture of the rest; None for several runs or a very short one."""
        land = self._landscape
        if len(land.runs) > 1 or len(land.run) < 10 or land.plane == "flat":
            return None
        return measure_ahead(land, progress=False)

    @cached_property
    def batch_norm_lag(self) -> Fidelity | None:
        """Factors between the losses with running statistics and with batch statistics; None without batch norm."""
        return measure_batch_norm_lag(self._landscape)

    @cached_property
    def following(self) -> float:
        """Share of a displacement in the picture that the planes follow, from 0 to 1; the rest stays at the anchors."""
        axes, inside = self._landscape.projection.components, self._landscape.planes.inside
        if inside is None:
            return 1.0
        followed = np.linalg.pinv(axes @ axes.T) @ inside
        return float(np.trace(followed, axis1=1, axis2=2).mean() / 2)

    @cached_property
    def unsettled(self) -> Bool[np.ndarray, "n_y n_x"]:
        """Grid points near the run whose height depends on the choice of anchors: off by 0.1 decades with half of them.

        One loss for each grid point near the run.
        """
        return find_unsettled(self._landscape)

    @cached_property
    def n_holes(self) -> int:
        """Points of the grid without a finite height."""
        return int((~np.isfinite(self._landscape.loss)).sum())

    @cached_property
    def spikes(self) -> Int[np.ndarray, " n_spikes"]:
        """Training steps whose loss the surface misses by more than a factor of 1.5, outside all folds."""
        far = np.nan_to_num(self.fidelity.factor, nan=1.0) > MIN_FACTOR
        run_set = self._landscape.run_set
        for fold in self.folds:
            rows = np.arange(len(run_set))[run_set.rows[fold.run]]
            far[rows[(run_set.step[rows] >= fold.start) & (run_set.step[rows] <= fold.end)]] = False
        return run_set.step[far]

    @cached_property
    def folds(self) -> tuple[Fold, ...]:
        """Places where the surface can show only one of several losses."""
        return tuple(find_folds(self._landscape))

    @cached_property
    def plateaus(self) -> tuple[list[Plateau], ...]:
        """Plateaus of each run."""
        return tuple(map(find_plateaus, self._landscape.runs))

    @cached_property
    def cosines(self) -> tuple[float, float]:
        """Squared correlations of PC1 with cos(π t/T) and of PC2 with cos(2π t/T), from 0 to 1.

        The principal components of a random walk are cosines whatever the loss (Antognini & Sohl-Dickstein, "PCA of
        high dimensional random walks with comparison to neural network training", 2018), so an arch proves nothing.
        nan where this has no meaning: axes that are not PCs, several runs, or a run that never moves.
        """
        land, run = self._landscape, self._landscape.run
        if len(land.runs) > 1 or land.given.axes != "pca" or len(run) < 3:
            return np.nan, np.nan
        time = (run.step - run.step[0]) / (run.step[-1] - run.step[0])
        squares = []
        for axis in range(2):
            pair = np.stack([land.path[:, axis], np.cos((axis + 1) * np.pi * time)])
            squares.append(float(np.corrcoef(pair)[0, 1] ** 2) if np.ptp(pair[0]) > 0 else np.nan)
        return squares[0], squares[1]

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        """Sentences on what this picture cannot show; often none."""
        land = self._landscape
        sentences = [describe_check(check) for check in self.checks if not check.passed]
        shown, asked = (len(land.x), len(land.y)), land.requested
        if shown != asked:
            sentences.append(f"Stopped early: {shown[0]} x {shown[1]} of {asked[0]} x {asked[1]} points.")
        if self.n_holes:
            sentences.append(
                f"{self.n_holes} of {land.loss.size} points have no height: the {land.height_name} failed."
            )
        if land.projection.n_cut:
            sentences.append(f"{land.projection.n_cut} of {len(land.runs)} runs lead far out of the picture.")
        if self.folds:
            worst, times = max(self.folds, key=lambda fold: fold.factor), len(self.folds)
            titles = land.run_set.titles
            here, there = f"step {worst.step}", f"step {worst.other_step}"
            if len(titles) > 1:
                here, there = f"{here} of {titles[worst.run]}", f"{there} of {titles[worst.other_run]}"
            sentences.append(
                f"The path passes over itself {'once' if times == 1 else f'{times} times'} at different losses "
                f"({here} and {there} differ by {write_factor(worst.factor)}): the surface can show only one of them."
            )
        if len(self.spikes):
            n = len(self.spikes)
            sentences.append(
                f"The surface misses {'a spike' if n == 1 else f'{n} steps'} of the run, such as step "
                f"{self.spikes[0]}, by more than {write_factor(MIN_FACTOR)}."
            )
        ratio = None if self.held_out is None else self.held_out.ratio
        known = np.empty(0) if ratio is None else ratio[np.isfinite(ratio) & (ratio > 0)]
        if len(known) and (low := float(np.median(known))) < 1 / RIDES_ABOVE:
            sentences.append(
                f"The surface lies below the run, by {write_factor(1 / low)} in the median of left-out steps: averaged "
                "weights lie lower than single steps, as where mini-batch noise lifts them."
            )
        lag = self.batch_norm_lag
        if lag is not None and lag.max > MIN_FACTOR:
            worst_step = lag.step[np.nan_to_num(lag.factor).argmax()]
            sentences.append(
                f"Running statistics of batch normalization lag behind: at step {worst_step} the loss differs by "
                f"{write_factor(lag.max)} from that on batch statistics, which "
                "lambda m: loss_fn(m.train()) as the loss would draw."
            )
        if all(square > limit for square, limit in zip(self.cosines, COSINE_LIMITS, strict=True)):
            sentences.append(
                f"PC1 and PC2 are cosines of time (R² {self.cosines[0]:.2f} and {self.cosines[1]:.2f}), as those of a "
                "random walk are: the arch of the path may mean nothing."
            )
        return tuple(sentences)

    def rows(self) -> list[Row]:
        """Return name, value and comment of each measure of fidelity, as the panel, the page and `print` show them."""
        fits = {"error, median": self.fidelity} | ({"held out": self.held_out} if self.held_out else {})
        return [(name, write_factor(fit.median), f"p90 {write_factor(fit.p90)}") for name, fit in fits.items()]

    def __repr__(self) -> str:
        plateaus = [plateau for of_run in self.plateaus for plateau in of_run]
        levels = [f"{plateau.level:.3g}" + (f" ({plateau.fit.name})" if plateau.fit else "") for plateau in plateaus]
        more = {"between steps": self.between, "ahead": self.ahead}
        rows = self.rows()
        rows += [(name, write_factor(fit.median), f"p90 {write_factor(fit.p90)}") for name, fit in more.items() if fit]
        rows += [("planes follow", f"{self.following:.0%}", "of a displacement in the picture")]
        near = int((self._landscape.support >= NEAR).sum())
        settled = 1 - self.unsettled.sum() / max(1, near)
        rows += [("settled", f"{settled:.1%}", "of the grid near the run would be as high with half the anchors")]
        rows += [("checked", f"{sum(c.n for c in self.checks)} steps", "losses against those of the model itself")]
        rows += [variance_row(self._landscape.projection)]
        rows += [("plateaus", str(len(plateaus)), ", ".join(levels)), ("folds", str(len(self.folds)), "")]
        table = [f"{name:<14} {value:<8} {comment}".rstrip() for name, value, comment in rows]
        return "\n".join([*table, *self.warnings])


def assess(landscape: Landscape) -> Report:
    """Return the report on a landscape: fidelity, held-out fidelity, folds, plateaus, cosines and warnings.

    Calling it again returns the same report; findings that have been read are not measured again.

    Example:
        >>> import loss_viz as lv
        >>> land = lv.landscape(lv.train("x^3", progress=False), progress=False)
        >>> assess(land).rows()[0][0], assess(land) is assess(land)
        ('error, median', True)
    """
    check_landscape(landscape)
    # A weak dictionary would never drop it, because the report refers to its landscape.
    return vars(landscape).setdefault("_report", Report(landscape))


@dataclass(frozen=True, eq=False)
class PlateauSummary:
    """Plateaus of several runs.

    Attributes:
        plateaus: plateaus of all runs, run by run.
    """

    plateaus: tuple[Plateau, ...] = ()

    def find(self, step: int) -> Plateau | None:
        """Return the plateau at a training step, else the longest one; None if there is none."""
        here = [plateau for plateau in self.plateaus if plateau.start <= step <= plateau.end]
        return max(here or self.plateaus, key=lambda plateau: plateau.end - plateau.start, default=None)


def summarize_plateaus(run_set: RunSet) -> PlateauSummary:
    """Return the plateaus of all runs, which are known before there is a landscape."""
    return PlateauSummary(tuple(plateau for run in run_set.runs for plateau in find_plateaus(run)))


def write_factor(factor: float) -> str:
    """Return a factor of fidelity in three digits."""
    return f"×{factor:.2f}" if factor < 10 else f"×{factor:.3g}"


def variance_row(projection: Projection) -> Row:
    """Return name, value and comment of the explained variance."""
    return "variance", f"{projection.explained_variance_ratio.sum():.1%}", "no measure of fidelity"
