"""Speed of loss_viz compared with other tools, and the growth of its cost: `python -m benchmarks`.

Every baseline is timed right before or right after loss_viz, and the results are ratios: their median over the repeats
and their range. Prints Markdown, and writes it with the numbers as JSON and a figure to a folder.
"""

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from . import cost, large, networks, plot, report, speed, targets
from .timing import Timer

SECTIONS = ("objective", "landscape", "growth", "projection", "recording", "imports")
LARGE = "large"  # what a GPU is for: measured with --device cuda, or --only large


def measure(sections: tuple[str, ...], timer: Timer, show: Callable[[str], None], size: large.Size) -> dict[str, Any]:
    """Measure the sections, show each table as soon as it is complete, and check the targets."""
    results: dict[str, Any] = {}
    checked: list[targets.Target] = []
    needed = {"objective", "landscape"} & set(sections)
    mlps, digits = (build(timer.device) if needed else [] for build in (networks.build_mlps, networks.build_digits))
    if "objective" in sections:
        results["objective"] = [speed.measure_objective(net, timer) for net in (*mlps, *digits)]
        show("## Objective: losses of many weight vectors\n\n" + report.write_objective(results["objective"]))
        checked += targets.check_objective(results["objective"])
    if "landscape" in sections:
        small, _, deep = mlps
        slow = Timer(timer.device, min(3, timer.repeats))  # a call takes many seconds
        results["landscape"] = [
            *(speed.measure_landscape(net, timer) for net in (small, deep, digits[0])),
            *(speed.measure_landscape(net, slow) for net in networks.build_wide(timer.device)),
            speed.measure_naive(small, timer),
        ]
        show("## Landscape: compared with one plane\n\n" + report.write_landscape(results["landscape"]))
        checked += targets.check_landscape(results["landscape"])
    if "growth" in sections:
        results["growth"] = cost.measure_growth(timer)
        show("## Growth of a landscape's cost\n\n" + report.write_growth(results["growth"]))
        checked += targets.check_growth(results["growth"])
    if "projection" in sections:
        results["projection"] = cost.measure_projection(timer)
        show("## Projection: the PCA of a run\n\n" + report.write_comparison(results["projection"]))
        checked += targets.check_projection(results["projection"])
    if "recording" in sections:
        results["recording"] = cost.measure_recording(timer)
        show("## Recording: a training with the recorder\n\n" + report.write_comparison(results["recording"]))
        checked += targets.check_recording(results["recording"])
        results["million"], peaks = cost.measure_million(timer), cost.measure_snapshots()
        show("## Recording a million weights\n\n" + report.write_comparison(results["million"]))
        checked += targets.check_million(results["million"], peaks)
    if "imports" in sections:
        results["imports"] = cost.measure_imports()
        show("## Imports\n\n" + report.write_imports(results["imports"]))
        checked += targets.check_imports(results["imports"])
    if LARGE in sections:
        results[LARGE] = large.measure_large(timer.device.type, size)
        show("## Large models\n\n" + report.table(large.HEAD, large.write_large(results[LARGE])))
        checked += targets.check_large(results[LARGE])
    results["targets"] = checked
    show("## Targets\n\n" + report.write_targets(checked))
    return results


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="number of threads of PyTorch and NumPy")
    parser.add_argument("--quick", action="store_true", help="three repeats instead of seven")
    parser.add_argument("--tiny", action="store_true", help="tiny models in the section of large ones, for tests")
    parser.add_argument("--only", choices=[*SECTIONS, LARGE], help="measure one section only; with cuda it is 'large'")
    parser.add_argument("--docs", action="store_true", help="update tables and figure of .docs/speed.md")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), metavar="FOLDER")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a GPU that PyTorch can use, but there is none.")
    if options.device == "cuda":
        options.only = options.only or LARGE
    tables: list[str] = []

    def show(text: str) -> None:
        tables.append(text)
        print(f"{text}\n", flush=True)

    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    if device.type == "cuda":
        torch.set_num_threads(2)  # of the CPU, with which the GPU is compared
    facts = report.describe_machine(device)
    machine = report.write_machine(facts)
    with threadpool_limits(options.threads):
        timer, size = Timer(device, 3 if options.quick else 7), large.TINY if options.tiny else large.Size()
        results = measure((options.only,) if options.only else SECTIONS, timer, show, size)
    show(machine + (" Three repeats." if options.quick else " Seven repeats."))
    name = f"{options.only or 'all'}-{options.device}"
    paths = report.save(options.out, name, facts, results, "\n\n".join(tables))
    figure = plot.plot(options.out / f"{name}.png", results, machine)
    if options.docs:
        for section in report.MARKS.keys() & results.keys():
            report.insert(report.write_summary(section, results[section], machine), report.PAGE, report.MARKS[section])
        if figure and "objective" in results:
            shutil.copyfile(figure, report.FIGURE)
    print("Written:", ", ".join(path.name for path in [*paths, figure] if path))


if __name__ == "__main__":
    main()
