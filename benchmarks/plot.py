"""The figure of a benchmark: speedups above, growth of the cost below."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from .cost import CostCurve
from .speed import Result
from .timing import format_number

COLORS = ("#4269d0", "#efb118", "#ff725c", "#9c6b4e", "#6cc5b0", "#3ca951", "#a463f2", "#97bbf5", "#ff8ab7")


def plot(path: Path, results: dict[str, Any], caption: str) -> Path | None:
    """Draw the results, or return None if matplotlib is missing or there is nothing to draw."""
    try:
        Figure = import_module("matplotlib.figure").Figure
    except ImportError:
        return None
    sections = [section for section in ("objective", "landscape") if section in results]
    growth: list[CostCurve] = results.get("growth", [])
    if not sections and not growth:
        return None
    n_lines = max((count_lines(results[section]) for section in sections), default=0)
    heights = [n_lines * 0.22 + 1.2] if sections else []
    heights += [3.0] if growth else []
    figure = Figure(figsize=(16, sum(heights) + 0.3), layout="constrained")
    parts = np.atleast_1d(figure.subfigures(len(heights), 1, height_ratios=heights))
    names = dict.fromkeys(one.baseline for section in sections for result in results[section] for one in result.timed)
    colors = dict(zip(names, COLORS, strict=False))  # the same in both panels
    if sections:
        for axes, section in zip(np.atleast_1d(parts[0].subplots(1, len(sections))), sections, strict=True):
            draw_speedups(axes, results[section], section, colors)
            axes.set_ylim(n_lines - 0.5, -0.7)  # from the top, with the same line spacing in both panels
    if growth:
        for axes, curve in zip(np.atleast_1d(parts[-1].subplots(1, len(growth), sharey=True)), growth, strict=True):
            draw_growth(axes, curve, first=curve is growth[0])
    figure.supxlabel(caption, fontsize=8, color="#666666")
    figure.savefig(path, dpi=110)
    return path


def count_lines(results: Sequence[Result]) -> int:
    """Count the lines of a panel: one for each baseline, and one for each network's name."""
    return sum(len(result.timed) + 1 for result in results)


def draw_speedups(axes: Any, results: Sequence[Result], section: str, colors: Mapping[str, str]) -> None:
    """Draw the speedup over each baseline, median and range, one line for each."""
    titles, labels, y = set(), [], 0
    for result in results:
        title = result.network if section == "objective" else f"{result.network}: {result.workload}"
        labels.append((y, title))
        titles.add(title)
        for one in result.timed:
            y += 1
            spread, color = one.speedup, colors.get(one.baseline, "#555555")
            axes.plot([spread.min, spread.max], [y, y], color=color, linewidth=5, alpha=0.4, solid_capstyle="round")
            axes.plot(spread.median, y, "o", color=color)
            style = {"textcoords": "offset points", "va": "center", "fontsize": 8}
            axes.annotate(format_number(spread.median), (spread.max, y), (8, 0), **style)
            labels.append((y, one.baseline))
        y += 1
    axes.axvline(1, color="#999999", linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.margins(x=0.15)
    axes.set_yticks([y for y, _ in labels], [label for _, label in labels], fontsize=8)
    for tick in axes.get_yticklabels():
        tick.set_fontweight("bold" if tick.get_text() in titles else "normal")
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#eeeeee")
    axes.set_axisbelow(True)
    axes.set_xlabel("speedup of loss_viz over each baseline, median and range")
    axes.set_title(section, fontweight="bold")
    axes.spines[["top", "right", "left"]].set_visible(False)


def draw_growth(axes: Any, curve: CostCurve, *, first: bool) -> None:
    """Draw evaluations and seconds relative to the first point."""
    for name, costs, marker in (("evaluations", curve.evaluations, "o-"), ("seconds", curve.seconds, "s--")):
        label = f"{name}, exponent {curve.exponent(costs):.2f}"
        axes.loglog(curve.values, np.array(costs) / costs[0], marker, label=label, color=COLORS[name == "seconds"])
    axes.set_xlabel(curve.quantity)
    axes.set_xticks(curve.values, [f"{value:g}" for value in curve.values], fontsize=8)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.minorticks_off()
    axes.grid(color="#eeeeee")
    axes.legend(fontsize=8, loc="upper left", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    if first:
        axes.set_ylabel("cost relative to the first point")
