"""How far each kind of picture is from the run: `python -m benchmarks.fidelity` prints the README's table.

Every row holds the worst of the seeds: median, 90th percentile and start of the factor between the surface and the
true loss along the path. The same runs are drawn in each column.
"""

from itertools import product

from tqdm.auto import tqdm

import loss_viz as lv

TARGETS = ("x", "x^2", "x^3", "sin(3x)")
SEEDS = range(5)
PICTURES = {
    "one PCA plane": {"plane": "global"},
    "post, σ = 0.06": {"sigma": 0.06},
    "loss_viz, σ = auto": {},
}


def measure() -> dict[tuple[str, str], list[lv.Fidelity]]:
    """The fidelity of each target and picture, one for each seed."""
    table: dict[tuple[str, str], list[lv.Fidelity]] = {key: [] for key in product(TARGETS, PICTURES)}
    for target, seed in tqdm(list(product(TARGETS, SEEDS))):
        run = lv.train(target, seed=seed, progress=False)
        for picture, settings in PICTURES.items():
            land = lv.landscape(run, resolution=2, progress=False, **settings)
            table[target, picture].append(lv.fidelity(land))
    return table


def worst(fits: list[lv.Fidelity]) -> str:
    """The largest median, p90 and start of several runs."""
    return " / ".join(f"{max(getattr(fit, name) for fit in fits):.3g}" for name in ("median", "p90", "start"))


def main() -> None:
    """Print the table in Markdown."""
    table = measure()
    print(f"| target | {' | '.join(PICTURES)} |")
    print(f"|---|{'---|' * len(PICTURES)}")
    for target in TARGETS:
        print(f"| `{target}` | {' | '.join(worst(table[target, picture]) for picture in PICTURES)} |")


if __name__ == "__main__":
    main()
