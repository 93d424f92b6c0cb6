"""Results as Markdown tables and as JSON, and the summary in the documentation."""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch

from .cost import IMPORTS, CostCurve
from .other_tools import ADAPTERS, name_version
from .speed import NAIVE, Result
from .targets import Target, find_fastest
from .timing import Comparison, Spread, format_number

PAGE = Path(".docs/speed.md")
FIGURE = Path(".github/images/speed.png")
WHOLE = """## Whole pictures

A landscape of 50 × 50 points, with PCA, choice of planes and the heights under every recorded step, beside one plane of
2,500 losses of the fastest other tool. Memory is the peak beyond what the process had before. Where loss_viz takes
longer, it is because of what such a plane lacks: losses under the run and for the choice of planes, and averages of
planes, which take a third of the time on 1-64-64-1 and a quarter on the transformer."""
# Parts of the page, by section of the benchmark.
MARKS = {
    section: (f"<!-- {section}: written by python -m benchmarks --docs -->\n", f"<!-- end of {section} -->\n")
    for section in ("objective", "landscape")
}


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Describe the machine and list the versions."""
    machine = {
        "cpu": read_cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": version("numpy"),
        "loss_viz": version("loss_viz"),
        "date": datetime.now(timezone.utc).date().isoformat(),
    }
    return machine | {"packages": [name_version(name) for name in ADAPTERS]}


def read_cpu_name() -> str:
    """Return the name of the processor, if the system reports it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def write_objective(results: Sequence[Result]) -> str:
    """Return evaluations per second, and the speedup over each baseline."""
    rows = []
    for result in results:
        for one in result.comparisons:
            rates = [format_number(1 / median(taken)) if taken else "–" for taken in (one.ours, one.theirs)]
            speedup = one.speedup if one.theirs else "–"
            difference = "–" if one.difference is None else f"{one.difference:.1e}"
            rows.append([result.network, one.baseline, *rates, speedup, difference, one.note])
    head = ["network", "baseline", "loss_viz, 1/s", "baseline, 1/s", "speedup [min, max]", "losses differ by", "note"]
    return table(head, rows)


def write_landscape(results: Sequence[Result]) -> str:
    """Return seconds and evaluations of whole landscapes, compared with each baseline."""
    rows = []
    for result in results:
        for one in result.comparisons:
            seconds = [format_number(median(taken)) if taken else "–" for taken in (one.ours, one.theirs)]
            ratio = one.time_ratio if one.theirs else "–"
            known = [result.network, result.workload, f"{result.n_evaluations:,}"]
            memory = [format_number(peak) for peak in one.memory] if one.memory else ["–", "–"]
            rows.append([*known, one.baseline, *seconds, ratio, *memory, one.note])
    head = ["network", "landscape", "evaluations", "baseline", "loss_viz, s", "baseline, s"]
    head += ["time relative to baseline [min, max]", "loss_viz, MB", "baseline, MB", "note"]
    return table(head, rows)


def write_growth(curves: Sequence[CostCurve]) -> str:
    """Return the exponents, with the points to which they were fitted."""
    rows = []
    for curve in curves:
        for name, costs in (("evaluations", curve.evaluations), ("seconds", curve.seconds)):
            pairs = zip(curve.values, costs, strict=True)
            points = ", ".join(f"{value:g}: {format_number(cost)}" for value, cost in pairs)
            rows.append([name, curve.quantity, f"{curve.exponent(costs):.3f}", points])
    return table(["cost", "against", "exponent", "points"], rows)


def write_comparison(comparison: Comparison) -> str:
    """Return the time of one piece of work, compared with a baseline."""
    head = ["loss_viz, s", "baseline", "baseline, s", "time relative to baseline [min, max]", "note"]
    ours, theirs = (format_number(median(taken)) for taken in (comparison.ours, comparison.theirs))
    return table(head, [[ours, comparison.baseline, theirs, comparison.time_ratio, comparison.note]])


def write_imports(found: dict[str, list[float]]) -> str:
    """Return the seconds of each import beyond its baseline."""
    rows = [[f"`{code}`", f"`{IMPORTS[code]}`", Spread.of(seconds)] for code, seconds in found.items()]
    return table(["process", "baseline", "seconds beyond the baseline [min, max]"], rows)


def write_targets(targets: Sequence[Target]) -> str:
    """Return the limits and the measured values."""
    head = ["target", "limit", "measured: median [min, max]", ""]
    rows = [[one.name, one.limit, one.measured, "met" if one.met else "**missed**"] for one in targets]
    return table(head, rows)


def write_machine(machine: dict[str, Any]) -> str:
    """Return machine and versions in one line."""
    versions = ", ".join(f"{name} {machine[name]}" for name in ("python", "torch", "numpy", "loss_viz"))
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['threads']} thread(s), on {machine['device']}, "
        f"{machine['system']}; {versions}; {', '.join(machine['packages'])}; {machine['date']}."
    )


def save(folder: Path, name: str, machine: dict[str, Any], results: dict[str, Any], tables: str) -> list[Path]:
    """Write JSON with the times of all repeats, and Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = {"machine": machine} | {section: _to_plain(found) for section, found in results.items()}
    paths = [folder / f"{name}.json", folder / f"{name}.md"]
    paths[0].write_text(json.dumps(plain, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    paths[1].write_text(tables + "\n", encoding="utf-8")
    return paths


def _to_plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_to_plain(one) for one in value]
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def write_summary(section: str, results: Sequence[Result], machine: str) -> str:
    """Return what the page says: speedups of `run.objective` on each network, or the cost of each landscape."""
    if section == "objective":
        names = list(dict.fromkeys(one.baseline for result in results for one in result.comparisons))
        rows = [[name, *(_write_speedup(result, name) for result in results)] for name in names]
        text = table(["speedup over", *(result.network for result in results)], rows)
    else:
        head = ["network", "losses", "seconds", "fastest other tool", "time relative to it", "MB", "its MB"]
        drawn = [result for result in results if result.other_tools]
        text = f"{WHOLE}\n\n{table(head, [_summarize(result) for result in drawn])}"
        text += "".join(f"\n\n{_describe(result)}" for result in results if result not in drawn)
    return f"{text}\n\n{machine}\n"


def insert(text: str, page: Path, marks: tuple[str, str]) -> None:
    """Replace the text between the marks of a page.

    Raises:
        ValueError: if the page does not contain the marks.
    """
    before, start, rest = page.read_text(encoding="utf-8").partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not start or not end:
        raise ValueError(f"{page} must contain the lines {' and '.join(map(repr, marks))}, but does not. Add them.")
    page.write_text(before + start + text + end + after, encoding="utf-8")


def _write_speedup(result: Result, baseline: str) -> str:
    found = result.find(baseline)
    return _write_spread(found.speedup) if found else "–"


def _write_spread(spread: Spread) -> str:
    return f"{spread.median:.2g} [{spread.min:.2g}, {spread.max:.2g}]"


def _summarize(result: Result) -> list[str]:
    """Return the cost of a landscape beside one plane of the fastest other tool."""
    fastest = find_fastest(result.other_tools)
    memory = [format_number(peak) for peak in fastest.memory or ()]
    seconds = f"{median(fastest.ours):.2g}"
    known = [result.network, f"{result.n_evaluations:,}", seconds, fastest.baseline]
    return [*known, _write_spread(fastest.time_ratio), *memory]


def _describe(result: Result) -> str:
    """Return how a landscape compares with a loss for each cell and step."""
    naive = result.find(NAIVE)
    assert naive is not None
    spread = naive.speedup
    return (
        f"A landscape of {result.network} ({result.workload}) takes {result.n_evaluations:,} losses and "
        f"{median(naive.ours):.2g} s: {spread.median:,.0f} [{spread.min:,.0f}, {spread.max:,.0f}] times as fast as one "
        "loss for each cell and step."
    )
