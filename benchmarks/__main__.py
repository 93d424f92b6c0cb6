"""How fast loss_viz is, beside what else could be used, and how its cost grows: `python -m benchmarks`.

Every rival is timed right before or right after loss_viz, and their ratio is what counts: its median over the repeats
and its range. Prints Markdown, and writes it with the numbers in JSON and a picture to a folder.
"""

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from . import growth, nets, plot, readme, report, speed, targets
from .pairs import Clock

SECTIONS = ("objective", "landscape", "growth", "projection", "imports")


def measure(sections: tuple[str, ...], clock: Clock, say: Callable[[str], None]) -> dict[str, Any]:
    """All numbers of the sections, each table printed as soon as it is there, and the targets that they bear on."""
    results: dict[str, Any] = {}
    judged: list[targets.Target] = []
    mlps = nets.build_mlps(clock.device) if {"objective", "landscape"} & set(sections) else []
    if "objective" in sections:
        results["objective"] = [
            speed.measure_objective(net, clock) for net in [*mlps, *nets.build_digits(clock.device)]
        ]
        say("## Objective: losses of many weight vectors\n\n" + report.write_objective(results["objective"]))
        judged += targets.judge_objective(results["objective"])
    if "landscape" in sections:
        small, _, deep = mlps
        results["landscape"] = [
            speed.measure_landscape(small, clock),
            speed.measure_landscape(deep, clock),
            speed.measure_naive(small, clock),
        ]
        say("## Landscape: one from local planes, beside one plane\n\n" + report.write_landscape(results["landscape"]))
        judged += targets.judge_landscape(results["landscape"])
    if "growth" in sections:
        results["growth"] = growth.measure_growth(clock)
        say("## Growth of a landscape's cost\n\n" + report.write_growth(results["growth"]))
        judged += targets.judge_growth(results["growth"])
    if "projection" in sections:
        results["projection"] = growth.measure_projection(clock)
        say("## Projection: the PCA of a run\n\n" + report.write_projection(results["projection"]))
        judged += targets.judge_projection(results["projection"])
    if "imports" in sections:
        results["imports"] = growth.measure_imports()
        say("## Imports\n\n" + report.write_imports(results["imports"]))
        judged += targets.judge_imports(results["imports"])
    results["targets"] = judged
    say("## Targets\n\n" + report.write_targets(judged))
    return results


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch and of numpy")
    parser.add_argument("--quick", action="store_true", help="three repeats in place of seven")
    parser.add_argument("--only", choices=SECTIONS, help="one section alone")
    parser.add_argument("--readme", action="store_true", help="put table and picture into the README")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), metavar="FOLDER")
    chosen = parser.parse_args()
    if chosen.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a GPU that PyTorch can use, and there is none.")
    if chosen.readme and chosen.only:
        parser.error("--readme needs all sections; leave out --only.")
    tables: list[str] = []

    def say(text: str) -> None:
        tables.append(text)
        print(f"{text}\n", flush=True)

    torch.set_num_threads(chosen.threads)
    device = torch.device(chosen.device)
    facts = report.describe_machine(device)
    with threadpool_limits(chosen.threads):
        results = measure((chosen.only,) if chosen.only else SECTIONS, Clock(device, 3 if chosen.quick else 7), say)
    say(report.write_machine(facts) + (" Three repeats." if chosen.quick else " Seven repeats."))
    name = f"{chosen.only or 'all'}-{chosen.device}"
    paths = report.save(chosen.out, name, facts, results, "\n\n".join(tables))
    picture = plot.plot(chosen.out / f"{name}.png", results, report.write_machine(facts))
    if chosen.readme:
        readme.insert(readme.write_summary(results, report.write_machine(facts)))
        if picture:
            shutil.copyfile(picture, readme.PICTURE)
    print("Written:", ", ".join(path.name for path in [*paths, picture] if path))


if __name__ == "__main__":
    main()
