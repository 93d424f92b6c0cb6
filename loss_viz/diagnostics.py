"""How far a picture is from the run that it shows."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from .landscapes import Landscape


@dataclass(frozen=True, eq=False)
class Fidelity:
    """Factors between the surface and the true loss along the path: max(height/true, true/height), 1 is exact.

    Anchors are steps of the run, and with narrow kernels their own factors are 1 by construction; where there are
    more steps than anchors, most of the steps measured here are not anchors.

    Attributes:
        factor: `(n_steps,)`; infinite where the surface and the loss differ in sign or only one of them is zero.
    """

    factor: Float[np.ndarray, " n_steps"]

    @property
    def median(self) -> float:
        """Half of the steps are drawn within this factor of their loss."""
        return float(np.median(self.factor))

    @property
    def p90(self) -> float:
        """Nine steps of ten are drawn within this factor."""
        return float(np.quantile(self.factor, 0.9, method="inverted_cdf"))

    @property
    def max(self) -> float:
        """The worst step."""
        return float(self.factor.max())

    @property
    def start(self) -> float:
        """The first step, where a single plane does worst."""
        return float(self.factor[0])

    def __repr__(self) -> str:
        return f"Fidelity(median={self.median:.3f}, p90={self.p90:.3f}, max={self.max:.3f}, start={self.start:.3f})"


def fidelity(landscape: Landscape) -> Fidelity:
    """Compare the surface under the path with the run's own losses, step by step.

    Example:
        >>> import loss_viz as lv
        >>> run = lv.train("x^2", steps=60, progress=False)
        >>> fidelity(lv.landscape(run, resolution=9, progress=False)).median < 1.02
        True
    """
    height, true = landscape.path_height, landscape.path_loss
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = height / true
        factor = np.where(ratio > 0, np.maximum(ratio, 1 / ratio), np.inf)
    return Fidelity(np.where(height == true, 1.0, factor))
