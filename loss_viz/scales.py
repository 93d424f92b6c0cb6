"""The loss axis: its ends, its ticks, and where a loss stands on it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

# In shares of the axis: the line lies on the surface instead of half inside it, the ball rests on its point.
LINE_LIFT = 0.006
BALL_RADIUS = 0.03


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
        ValueError: `log=True` with a loss that is not positive.
    """
    every = np.concatenate([part.ravel() for part in losses])
    finite = every[np.isfinite(every)]
    if log:
        require_positive(finite.min())
    low, high = (float(np.log10(end) if log else end) for end in (finite.min(), finite.max()))
    return Scale(low, high if high > low else low + 1.0, log)


def require_positive(loss: float) -> None:
    """Refuse a logarithmic axis for a loss that has no logarithm.

    Raises:
        ValueError: the loss is zero or below.
    """
    if loss <= 0:
        raise ValueError(
            f"`log`=True needs losses above 0, the smallest is {loss:.4g}. Pass log=False for a linear axis."
        )
