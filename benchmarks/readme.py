"""The README's table of speed, put in its place by `python -m benchmarks --readme`."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from .pairs import Pair
from .report import table
from .speed import NAIVE, Beside
from .targets import find_fastest

README = Path("README.md")
PICTURE = Path(".github/images/speed.png")
START, END = "<!-- speed: written by python -m benchmarks --readme -->\n", "<!-- end of speed -->\n"


def write_summary(results: dict[str, Any], machine: str) -> str:
    """How many times as fast `run.objective` is as each rival, net by net; then the landscapes, in words."""
    rows: list[Beside] = results["objective"]
    rivals = list(dict.fromkeys(pair.rival for row in rows for pair in row.pairs))
    cells = [[rival, *(_spell(row, rival) for row in rows)] for rival in rivals]
    words = [f"- {_describe(row)}" for row in results["landscape"]]
    return "\n".join([table(["times as fast as", *(row.net for row in rows)], cells), "", *words, "", machine, ""])


def insert(text: str, page: Path = README, marks: tuple[str, str] = (START, END)) -> None:
    """Put the text between the marks.

    Raises:
        ValueError: the page has no such marks.
    """
    before, start, rest = page.read_text(encoding="utf-8").partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not start or not end:
        raise ValueError(f"{page} must hold the lines {' and '.join(map(repr, marks))}, it does not. Add them.")
    page.write_text(before + start + text + end + after, encoding="utf-8")


def _spell(row: Beside, rival: str) -> str:
    for pair in row.pairs:
        if pair.rival == rival and pair.theirs:
            return _range(pair.speedup.median, pair.speedup.least, pair.speedup.most)
    return "–"


def _range(middle: float, least: float, most: float) -> str:
    return f"{middle:.2g} [{least:.2g}, {most:.2g}]"


def _describe(row: Beside) -> str:
    naive = [pair for pair in row.pairs if pair.rival == NAIVE]
    if naive:
        spread = naive[0].speedup
        return (
            f"{row.what}, net {row.net}: {row.evaluations:,} losses, {_seconds(naive)}; "
            f"{spread.median:,.0f} times [{spread.least:,.0f}, {spread.most:,.0f}] as fast as one loss for each cell "
            "and step."
        )
    fastest = find_fastest(row.peers)
    share = fastest.share
    return (
        f"{row.what}, net {row.net}, from local planes: {row.evaluations:,} losses, {_seconds([fastest])}; "
        f"{_range(share.median, share.least, share.most)} of the time in which {fastest.rival}, the fastest of the "
        "others, draws one plane."
    )


def _seconds(pairs: Sequence[Pair]) -> str:
    return f"{median(pairs[0].ours):.2g} s"
