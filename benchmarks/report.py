"""Tables in Markdown, the same numbers in JSON, and one picture."""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch

from .growth import Growth
from .pairs import Pair, Spread, normalize_formula
from .peers import PEERS, name_version
from .speed import Beside
from .targets import Target


def describe_machine(device: torch.device) -> dict[str, Any]:
    """What the numbers were measured on, and with which versions."""
    facts = {
        "cpu": name_cpu(),
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
    return facts | {"peers": [name_version(name) for name in PEERS]}


def name_cpu() -> str:
    """The processor, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def write_objective(rows: Sequence[Beside]) -> str:
    """Evaluations per second, and how many times as fast as each rival."""
    cells = []
    for row in rows:
        for pair in row.pairs:
            rates = (
                [f"{normalize_formula(1 / median(taken))}" for taken in (pair.ours, pair.theirs)]
                if pair.theirs
                else ["–"] * 2
            )
            speedup = pair.speedup if pair.theirs else "–"
            difference = "–" if pair.difference is None else f"{pair.difference:.1e}"
            cells.append([row.net, pair.rival, *rates, speedup, difference, pair.note])
    head = ["net", "rival", "loss_viz, 1/s", "rival, 1/s", "times as fast [least, most]", "losses differ by", "note"]
    return table(head, cells)


def write_landscape(rows: Sequence[Beside]) -> str:
    """Seconds and evaluations of whole landscapes, beside what else could be drawn."""
    cells = []
    for row in rows:
        for pair in row.pairs:
            seconds = (
                [normalize_formula(median(taken)) for taken in (pair.ours, pair.theirs)] if pair.theirs else ["–"] * 2
            )
            share = pair.share if pair.theirs else "–"
            cells.append([row.net, row.what, f"{row.evaluations:,}", pair.rival, *seconds, share, pair.note])
    head = ["net", "loss_viz draws", "evaluations", "rival", "loss_viz, s", "rival, s"]
    return table([*head, "time over the rival's [least, most]", "note"], cells)


def write_growth(rows: Sequence[Growth]) -> str:
    """Exponents, with the points that they were fitted to."""
    cells = []
    for row in rows:
        for name, costs in (("evaluations", row.evaluations), ("seconds", row.seconds)):
            points = ", ".join(
                f"{value:g}: {normalize_formula(cost)}" for value, cost in zip(row.values, costs, strict=True)
            )
            cells.append([name, row.axis, f"{row.exponent(costs):.3f}", points])
    return table(["cost", "against", "exponent", "points"], cells)


def write_projection(pair: Pair) -> str:
    """The PCA beside one product."""
    head = ["loss_viz, s", "rival", "rival, s", "time over the rival's [least, most]", "note"]
    seconds = [normalize_formula(median(taken)) for taken in (pair.ours, pair.theirs)]
    return table(head, [[seconds[0], pair.rival, seconds[1], pair.share, pair.note]])


def write_imports(found: dict[str, list[float]]) -> str:
    """Seconds beyond `import torch`."""
    rows = [[f"`{name}`" if name.startswith("import") else name, Spread.of(taken)] for name, taken in found.items()]
    return table(["process", "seconds beyond `import torch` [least, most]"], rows)


def write_targets(rows: Sequence[Target]) -> str:
    """Limits, and what came."""
    head = ["target", "limit", "came: median [least, most]", ""]
    return table(head, [[row.name, row.limit, row.came, "met" if row.met else "**missed**"] for row in rows])


def write_machine(facts: dict[str, Any]) -> str:
    """One line under the tables."""
    versions = ", ".join(f"{name} {facts[name]}" for name in ("python", "torch", "numpy", "loss_viz"))
    return (
        f"{facts['cpu']}, {facts['cores']} cores, {facts['threads']} thread(s), on {facts['device']}, "
        f"{facts['system']}; {versions}; {', '.join(facts['peers'])}; {facts['date']}."
    )


def to_plain(value: Any) -> Any:
    """Records as dicts, for JSON."""
    if isinstance(value, list):
        return [to_plain(one) for one in value]
    return asdict(value) if isinstance(value, Pair | Beside | Growth | Target) else value


def save(folder: Path, name: str, facts: dict[str, Any], results: dict[str, Any], tables: str) -> list[Path]:
    """Write JSON and Markdown; every time is in it, repeat by repeat."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = {"machine": facts} | {section: to_plain(found) for section, found in results.items()}
    paths = [folder / f"{name}.json", folder / f"{name}.md"]
    paths[0].write_text(json.dumps(plain, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    paths[1].write_text(tables + "\n", encoding="utf-8")
    return paths
