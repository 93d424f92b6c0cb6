"""The loss axis: its range, its ticks, and the position of a loss on it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from loss_viz._validation import argument_error

# As shares of the axis: lines lie above the surface instead of half inside it, and the ball rests on its point.
LINE_LIFT = 0.006
SHADOW_LIFT = LINE_LIFT / 4
CASING_LIFT = 0.75 * LINE_LIFT  # between the line and the band of a plateau
BALL_RADIUS = 0.03
MAX_LEVELS, MIN_DECADES = 4, 1.5  # lines on a surface; span of a logarithmic axis from which on they are decades
MIN_ROOM = 0.01  # of the axis, from a line to its ends, where it would be a dot
MIN_SPAN = 1e-9  # of an axis, relative to the losses on it: less is rounding
LEAST_SPAN = 1e-300  # of an axis: shares of a shorter one underflow

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

# All properties that `log_axis` sets, because Plotly keeps those that an update leaves out: an axis that was
# logarithmic would keep its tick distance of one, which is one power of ten there, and any number of ticks here.
LINEAR_AXIS = {
    "type": "linear",
    "exponentformat": "power",
    "tickmode": "auto",
    "tick0": None,
    "dtick": None,
    "tickvals": None,
}


@dataclass(frozen=True)
class Scale:
    """The loss axis: its ends in drawn units, which are log10 of the loss on a logarithmic axis."""

    low: float
    high: float
    log: bool
    name: str = "loss"

    def draw(self, loss: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """Return losses in drawn units."""
        return np.log10(loss) if self.log else loss

    def lift(
        self, loss: Float[np.ndarray, "*shape"], share: float | Float[np.ndarray, "*shape"]
    ) -> Float[np.ndarray, "*shape"]:
        """Return the losses that stand a share of the axis higher."""
        drawn = self.draw(loss) + share * (self.high - self.low)
        return 10**drawn if self.log else drawn

    def fraction(self, loss: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """Return positions on the axis from 0 to 1, for colors and camera; infinite losses lie at its ends."""
        return np.nan_to_num((self.draw(loss) - self.low) / (self.high - self.low)).clip(0, 1)

    def axis(self) -> dict[str, Any]:
        """Return Plotly's properties of the axis, with space for the ball."""
        margin = BALL_RADIUS * (self.high - self.low)
        axis = {"title": {"text": self.name}, **(log_axis(self.low, self.high) if self.log else LINEAR_AXIS)}
        # Last: Plotly converts the range when the type changes, and chooses one of its own.
        return axis | {"autorange": False, "range": [self.low - margin, self.high + 2 * margin]}

    def levels(self) -> Float[np.ndarray, " n"]:
        """Return at most four round losses inside the axis.

        They are powers of ten, or 1, 2 and 5 times those over less than one and a half decades; on a linear axis they
        are evenly spaced.
        """
        if self.log and self.high - self.low >= MIN_DECADES:
            powers = range(int(np.ceil(self.low)), int(np.floor(self.high)) + 1)
            every = -(-len(powers) // MAX_LEVELS)
            losses = [float(f"1e{power}") for power in powers if power % every == 0]
        elif self.log:
            losses = _place_ticks(self.low, self.high)
        else:
            losses = _round_steps(self.low, self.high, (self.high - self.low) / 3)
        drawn, margin = self.draw(np.array(losses)), MIN_ROOM * (self.high - self.low)
        inside = np.array(losses)[(self.low + margin < drawn) & (drawn < self.high - margin)]
        return inside[:: max(1, -(-len(inside) // MAX_LEVELS))]

    def colorbar(self) -> dict[str, Any]:
        """Return Plotly's properties of the color bar, with ticks in losses."""
        bar = {"title": {"text": self.name}, "thickness": 12, "len": 0.7, "outlinewidth": 0}
        if not self.log:
            return bar
        every = log_axis(self.low, self.high)["dtick"] or 1
        ticks = np.arange(np.ceil(self.low), np.floor(self.high) + 1, every).tolist()
        if len(ticks) > 1:
            return bar | {"tickvals": ticks, "ticktext": [f"10<sup>{tick:.0f}</sup>" for tick in ticks]}
        ticks = np.linspace(self.low, self.high, 5).tolist()
        return bar | {"tickvals": ticks, "ticktext": [f"{10**tick:.2g}" for tick in ticks]}


def log_axis(low: float, high: float, n_most: int = 8) -> dict[str, Any]:
    """Return Plotly's properties of a logarithmic axis with two to about `n_most` ticks.

    They are powers of ten, or over less than two decades 1, 2 and 5 times powers of ten, or else evenly spaced.

    Args:
        low: log10 of the least loss.
        high: log10 of the greatest.
        n_most: for how many ticks there is room.

    Example:
        >>> log_axis(-3.0, 1.0)["dtick"], log_axis(-1.2, -0.2)["tickvals"]
        (1, [0.1, 0.2, 0.5])
    """
    axis: dict[str, Any] = {"type": "log", "exponentformat": "power"}
    if high - low < MIN_SPAN:  # a constant loss
        low, high = low - 0.5, high + 0.5
    if high - low >= 2:
        return axis | {"tickmode": "linear", "tick0": 0, "dtick": int(np.ceil((high - low) / n_most)), "tickvals": None}
    ticks = _place_ticks(low, high)
    ticks = ticks[:: max(1, -(-len(ticks) // n_most))]
    return axis | {"tickmode": "array", "tick0": None, "dtick": None, "tickvals": ticks}


def _place_ticks(low: float, high: float) -> list[float]:
    powers = range(int(np.floor(low)), int(np.ceil(high)) + 1)
    ticks = [float(f"{digit}e{power}") for power in powers for digit in (1, 2, 5)]
    ticks = [tick for tick in ticks if tick and low <= np.log10(tick) <= high]
    if len(ticks) > 1:
        return ticks
    start, stop = float(10**low), float(10**high)
    if high - low < 1e-6:  # multiples of a step could be smaller than the least number
        return [start, stop]
    return _round_steps(start, stop, (stop - start) / 2)  # at least two ticks


def _round_steps(low: float, high: float, most: float) -> list[float]:
    """Return the multiples of a step between two numbers: 1, 2 or 5 times a power of ten, and at most `most`."""
    power = np.floor(np.log10(most))
    step = next(step for digit in (5, 2, 1) if (step := digit * 10**power) <= most)
    return [float(f"{count * step:.12g}") for count in range(int(np.ceil(low / step)), int(np.floor(high / step)) + 1)]


def write_loss(loss: float) -> str:
    """Return a round loss as it stands on a line of a surface.

    Example:
        >>> write_loss(0.001), write_loss(2e-7), write_loss(1e12)
        ('0.001', '2·10⁻⁷', '10¹²')
    """
    mantissa, power = f"{loss:.3e}".split("e")
    if -4 <= int(power) < 5:
        return f"{loss:.4g}"
    digits = "" if float(mantissa) == 1 else f"{float(mantissa):g}·"
    return f"{digits}10{str(int(power)).translate(SUPERSCRIPTS)}"


def fit_scale(losses: Sequence[np.ndarray], *, log: bool | None, name: str = "loss") -> Scale:
    """Return the axis that holds all finite losses of some arrays of any shape.

    With `log=None` it is logarithmic where all of them are above 0.

    Raises:
        ValueError: if no loss is finite, or with `log=True` if a finite loss is not positive.
    """
    every = np.concatenate([part.ravel() for part in losses])
    finite = every[np.isfinite(every)]
    if not len(finite):
        raise ValueError("A loss axis needs a finite loss, got none. Check what `loss_fn` returns for these weights.")
    if log is None:
        log = bool(finite.min() > 0)
    if log:
        check_positive(finite.min())
    low, high = (float(np.log10(end) if log else end) for end in (finite.min(), finite.max()))
    least = max(1.0 if high == low else LEAST_SPAN, MIN_SPAN * max(abs(low), abs(high)))  # so that the ends differ
    return Scale(low, max(high, low + least), log, name)


def check_positive(loss: float) -> None:
    """Raise `ValueError` if the smallest loss of a logarithmic axis is not positive."""
    if loss <= 0:
        raise argument_error(
            "log", f"`log`=True needs losses above 0, the smallest is {loss:.4g}. Pass log=False for a linear axis."
        )
