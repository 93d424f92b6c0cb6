"""How far each kind of picture is from the run: `python -m benchmarks.fidelity` prints the README's table.

Every row holds the worst of five seeds: median, 90th percentile and start of the factor between the surface and the
true loss along the path. The same runs are drawn in each column. The last two columns are of `sigma="auto"`: the
median factor at the anchors with the planes near them left out, the worst of the seeds again, and in how many of the
runs all three figures stay within 1.02 / 1.25 / 1.10; a run that misses one must have its fold flagged.
"""

from itertools import product

from tqdm.auto import tqdm

import loss_viz as lv

TARGETS = ("x", "x^2", "x^3", "sin(3x)", "abs(x)", "sin(5x)", "x^4 - x^2", "exp(-4x^2)")
SEEDS = range(5)
LIMITS = {"median": 1.02, "p90": 1.25, "start": 1.10}
PICTURES = {
    "one PCA plane": {"plane": "global"},
    "post, σ = 0.06": {"sigma": 0.06},
    "loss_viz, σ = auto": {},
}


def measure() -> dict[tuple[str, str], list[lv.Landscape]]:
    """The landscapes of each target and picture, one for each seed."""
    table: dict[tuple[str, str], list[lv.Landscape]] = {key: [] for key in product(TARGETS, PICTURES)}
    for target, seed in tqdm(list(product(TARGETS, SEEDS))):
        run = lv.train(target, seed=seed, progress=False)
        for picture, settings in PICTURES.items():
            table[target, picture].append(lv.landscape(run, resolution=2, progress=False, **settings))
    return table


def worst(lands: list[lv.Landscape]) -> str:
    """The largest median, p90 and start of several runs."""
    fits = [lv.fidelity(land) for land in lands]
    return " / ".join(f"{max(getattr(fit, name) for fit in fits):.3g}" for name in LIMITS)


def held_out_heights(lands: list[lv.Landscape]) -> str:
    """The largest held-out median of several runs, without the anchor's own plane and without those near it."""
    own, block = (max(lv.fidelity(land, held_out=True, block_radius=radius).median for land in lands) for radius in (0.0, 0.03))
    return f"{own:.3g} / {block:.3g}"


def count(lands: list[lv.Landscape]) -> tuple[int, int]:
    """How many runs stay within all limits, and how many of the others have a fold that is flagged."""
    missed = [land for land in lands if any(getattr(lv.fidelity(land), name) > LIMITS[name] for name in LIMITS)]
    return len(lands) - len(missed), sum(bool(lv.find_folds(land)) for land in missed)


def main() -> None:
    """Print the table in Markdown, and what it comes to."""
    table = measure()
    ours = list(PICTURES)[-1]
    print(f"| target | {' | '.join(PICTURES)} | held out: own / near | within |")
    print(f"|---|{'---|' * (len(PICTURES) + 2)}")
    for target in TARGETS:
        figures = " | ".join(worst(table[target, picture]) for picture in PICTURES)
        lands = table[target, ours]
        print(f"| `{target}` | {figures} | {held_out_heights(lands)} | {count(lands)[0]} of {len(lands)} |")
    every = [land for target in TARGETS for land in table[target, ours]]
    within, flagged = count(every)
    print(f"\n{within} of {len(every)} runs within {LIMITS}; of the other {len(every) - within}, {flagged} have folds.")
    folds = [sum(bool(lv.find_folds(land)) for t in TARGETS for land in table[t, picture]) for picture in PICTURES]
    print(f"Runs with a fold, by picture: {dict(zip(PICTURES, folds, strict=True))}")


if __name__ == "__main__":
    main()
