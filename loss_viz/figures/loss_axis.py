"""The loss axis: its ends, its ticks, and where a loss stands on it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

# In shares of the axis: the line lies on the surface instead of half inside it, the ball rests on its point.
LINE_LIFT = 0.006

BALL_RADIUS = 0.03

MIN_SPAN = 1e-9  # of an axis, in shares of what stands on it: less is rounding

LEAST = 1e-300  # of an axis: shares of a shorter one are no numbers


@dataclass(frozen=True)
class Scale:
    """The loss axis: its ends in drawn units, which are log10 of the loss where it is logarithmic."""

    low: float
    high: float
    log: bool

    def draw(self, loss: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """Drawn units of a loss."""
        return np.log10(loss) if self.log else loss

    def lift(
        self, loss: Float[np.ndarray, "*shape"], share: float | Float[np.ndarray, "*shape"]
    ) -> Float[np.ndarray, "*shape"]:
        """The loss that stands higher on the axis by a share of its length."""
        drawn = self.draw(loss) + share * (self.high - self.low)
        return 10**drawn if self.log else drawn

    def fraction(self, loss: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """Position on the axis for colours and camera, from 0 to 1; a loss that is not finite stands at its end."""
        return np.nan_to_num((self.draw(loss) - self.low) / (self.high - self.low)).clip(0, 1)

    def axis(self) -> dict[str, Any]:
        """Plotly's words for the axis, with room for the ball."""
        room = BALL_RADIUS * (self.high - self.low)
        axis = {"title": {"text": "loss"}, "range": [self.low - room, self.high + 2 * room]}
        return axis | (log_axis(self.high - self.low) if self.log else {})

    def colorbar(self) -> dict[str, Any]:
        """Plotly's words for the colour bar, ticked in losses."""
        bar = {"title": {"text": "loss"}, "thickness": 12, "len": 0.7, "outlinewidth": 0}
        if not self.log:
            return bar
        every = log_axis(self.high - self.low).get("dtick", 1)
        ticks = np.arange(np.ceil(self.low), np.floor(self.high) + 1, every).tolist()
        if len(ticks) > 1:
            return bar | {"tickvals": ticks, "ticktext": [f"10<sup>{tick:.0f}</sup>" for tick in ticks]}
        ticks = np.linspace(self.low, self.high, 5).tolist()
        return bar | {"tickvals": ticks, "ticktext": [f"{10**tick:.2g}" for tick in ticks]}


def log_axis(decades: float) -> dict[str, Any]:
    """Plotly's words for a logarithmic axis: ticks at powers of ten, at most about eight, where there are two."""
    axis: dict[str, Any] = {"type": "log", "exponentformat": "power"}
    return axis | ({"dtick": int(np.ceil(decades / 8))} if decades >= 2 else {})


def fit_scale(losses: Sequence[np.ndarray], *, log: bool) -> Scale:
    """The axis on which all the losses of some arrays, of any shapes, fit; those that are not finite are left out.

    Raises:
        ValueError: `log=True` with a loss that is not positive; or no finite loss at all.
    """
    every = np.concatenate([part.ravel() for part in losses])
    finite = every[np.isfinite(every)]
    if not len(finite):
        raise ValueError("A loss axis needs one finite loss, none is. Look at what `loss_fn` gives for these weights.")
    if log:
        check_positive(finite.min())
    low, high = (float(np.log10(end) if log else end) for end in (finite.min(), finite.max()))
    least = max(1.0 if high == low else LEAST, MIN_SPAN * max(abs(low), abs(high)))  # so that the axis has two ends
    return Scale(low, max(high, low + least), log)


def span_decades(low: float, high: float) -> float:
    """How many powers of ten lie between two losses above 0, which their quotient may be too large to tell."""
    return float(np.log10(high) - np.log10(low))


def check_positive(loss: float) -> None:
    """Refuse a logarithmic axis for a loss that has no logarithm.

    Raises:
        ValueError: the loss is zero or below.
    """
    if loss <= 0:
        raise ValueError(
            f"`log`=True needs losses above 0, the smallest is {loss:.4g}. Pass log=False for a linear axis."
        )
