"""Errors of three kinds of picture under the run: `python -m benchmarks.fidelity` prints the table of .docs/truth.md.

Each entry is the worst of five seeds: median, 90th percentile and start of the factor between the surface and the true
loss along the path. All columns use the same runs. The last two are about `sigma="auto"`: the median held-out factor
at the anchors, again the worst of the seeds, and the number of runs in which all three factors stay within
1.02 / 1.25 / 1.10. A run that exceeds one of them must have a fold that is marked.
"""

from itertools import product

from tqdm.auto import tqdm

import loss_viz as lv

TARGETS = ("x", "x^2", "x^3", "sin(3x)", "abs(x)", "sin(5x)", "x^4 - x^2", "exp(-4x^2)")
SEEDS = range(5)
LIMITS = {"median": 1.02, "p90": 1.25, "start": 1.10}
PICTURES = {
    "one PCA plane": {"plane": "flat", "center": "mean"},
    "post, σ = 0.06": {"sigma": 0.06},
    "loss_viz, σ = auto": {},
}


def measure() -> dict[tuple[str, str], list[lv.Landscape]]:
    """Return the landscapes of each target and picture, one for each seed."""
    lands: dict[tuple[str, str], list[lv.Landscape]] = {key: [] for key in product(TARGETS, PICTURES)}
    for target, seed in tqdm(list(product(TARGETS, SEEDS))):
        run = lv.train(target, seed=seed, progress=False)
        for picture, settings in PICTURES.items():
            lands[target, picture].append(lv.landscape(run, resolution=2, progress=False, **settings))
    return lands


def write_worst(lands: list[lv.Landscape]) -> str:
    """Return the largest median, 90th percentile and start of several runs."""
    found = [lv.fidelity(land) for land in lands]
    return " / ".join(f"{max(getattr(one, name) for one in found):.3g}" for name in LIMITS)


def write_held_out(lands: list[lv.Landscape]) -> str:
    """Return the largest held-out median of several runs, without the anchor's own plane / without those near it."""
    return " / ".join(
        f"{max(lv.fidelity(land, held_out=True, block_radius=radius).median for land in lands):.3g}"
        for radius in (0.0, 0.03)
    )


def count_within(lands: list[lv.Landscape]) -> tuple[int, int]:
    """Count the runs that stay within all limits, and those among the others that have a fold."""
    missed = [land for land in lands if any(getattr(lv.fidelity(land), name) > LIMITS[name] for name in LIMITS)]
    return len(lands) - len(missed), sum(bool(lv.find_folds(land)) for land in missed)


def main() -> None:
    """Print the table in Markdown, and totals."""
    table = measure()
    ours = list(PICTURES)[-1]
    print(f"| target | {' | '.join(PICTURES)} | held out: own / near | within |")
    print(f"|---|{'---|' * (len(PICTURES) + 2)}")
    for target in TARGETS:
        factors = " | ".join(write_worst(table[target, picture]) for picture in PICTURES)
        lands = table[target, ours]
        print(f"| `{target}` | {factors} | {write_held_out(lands)} | {count_within(lands)[0]} of {len(lands)} |")
    every = [land for target in TARGETS for land in table[target, ours]]
    within, with_folds = count_within(every)
    print(f"\n{within} of {len(every)} runs within {LIMITS}; of the others, {with_folds} have folds.")
    folds = [sum(bool(lv.find_folds(land)) for t in TARGETS for land in table[t, picture]) for picture in PICTURES]
    print(f"Runs with a fold, by picture: {dict(zip(PICTURES, folds, strict=True))}")


if __name__ == "__main__":
    main()
