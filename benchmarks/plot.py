"""The picture of a benchmark: speed beside the rivals above, growth below."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from .growth import Growth
from .pairs import Pair, normalize_formula
from .speed import Beside

COLOURS = ("#4269d0", "#efb118", "#ff725c", "#9c6b4e", "#6cc5b0", "#3ca951", "#a463f2", "#97bbf5", "#ff8ab7")


def plot(path: Path, results: dict[str, Any], caption: str) -> Path | None:
    """Draw what was measured; nothing where matplotlib is missing or nothing can be drawn."""
    try:
        Figure = import_module("matplotlib.figure").Figure
    except ImportError:
        return None
    beside = [section for section in ("objective", "landscape") if section in results]
    growth: list[Growth] = results.get("growth", [])
    if not beside and not growth:
        return None
    n_lines = max((count_rivals(results[section]) for section in beside), default=0)
    heights = [n_lines * 0.22 + 1.2] if beside else []
    heights += [3.0] if growth else []
    figure = Figure(figsize=(16, sum(heights) + 0.3), layout="constrained")
    parts = np.atleast_1d(figure.subfigures(len(heights), 1, height_ratios=heights))
    rivals = dict.fromkeys(pair.rival for section in beside for row in results[section] for pair in timed(row))
    colours = dict(zip(rivals, COLOURS, strict=False))  # a rival has the same one in both panels
    if beside:
        for axes, section in zip(np.atleast_1d(parts[0].subplots(1, len(beside))), beside, strict=True):
            draw_beside(axes, results[section], section, colours)
            axes.set_ylim(n_lines - 0.5, -0.7)  # the same distance between lines in both panels, from above
    if growth:
        for axes, row in zip(np.atleast_1d(parts[-1].subplots(1, len(growth), sharey=True)), growth, strict=True):
            draw_growth(axes, row, first=row is growth[0])
    figure.supxlabel(caption, fontsize=8, color="#666666")
    figure.savefig(path, dpi=110)
    return path


def count_rivals(rows: Sequence[Beside]) -> int:
    """Lines that a panel needs, one between two nets included."""
    return sum(len(timed(row)) + 1 for row in rows)


def timed(row: Beside) -> list[Pair]:
    """The rivals that have times."""
    return [pair for pair in row.pairs if pair.theirs]


def draw_beside(axes: Any, rows: Sequence[Beside], section: str, colours: Mapping[str, str]) -> None:
    """How many times as fast as each rival, median and range, one line a rival."""
    titles, labels, at = set(), [], 0
    for row in rows:
        title = row.net if section == "objective" else f"{row.net}: {row.what}"
        labels.append((at, title))
        titles.add(title)
        for pair in timed(row):
            at += 1
            spread, colour = pair.speedup, colours.get(pair.rival, "#555555")
            axes.plot(
                [spread.least, spread.most], [at, at], color=colour, linewidth=5, alpha=0.4, solid_capstyle="round"
            )
            axes.plot(spread.median, at, "o", color=colour)
            axes.annotate(
                normalize_formula(spread.median),
                (spread.most, at),
                (8, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
            labels.append((at, pair.rival))
        at += 1
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
    axes.set_xlabel("how many times as fast as the rival loss_viz is, median and range")
    axes.set_title(section, fontweight="bold")
    axes.spines[["top", "right", "left"]].set_visible(False)


def draw_growth(axes: Any, row: Growth, *, first: bool) -> None:
    """Evaluations and seconds over those of the first point."""
    for name, costs, marker in (("evaluations", row.evaluations, "o-"), ("seconds", row.seconds, "s--")):
        label = f"{name}, exponent {row.exponent(costs):.2f}"
        axes.loglog(row.values, np.array(costs) / costs[0], marker, label=label, color=COLOURS[name == "seconds"])
    axes.set_xlabel(row.axis)
    axes.set_xticks(row.values, [f"{value:g}" for value in row.values], fontsize=8)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.minorticks_off()
    axes.grid(color="#eeeeee")
    axes.legend(fontsize=8, loc="upper left", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    if first:
        axes.set_ylabel("cost over that of the first point")
