"""Errors of three kinds of picture under the run: `python -m benchmarks.fidelity` prints the table of .docs/truth.md.

Each entry is the worst of five seeds: median, 90th percentile and start of the factor between the surface and the true
loss along the path. All columns use the same runs. The last two are about `sigma="auto"`: the median held-out factor
at the anchors, again the worst of the seeds, and the number of runs in which all three factors stay within
1.02 / 1.25 / 1.10. A run that exceeds one of them must have a fold that is marked. Below the table follow the numbers
that the page states in its text: beside the path, and for mini-batches.
"""

from collections.abc import Sequence
from functools import partial
from itertools import product

import numpy as np
from tqdm.auto import tqdm

import loss_viz as lv
from loss_viz.landscapes.held_out import BLOCK_RADIUS

from .trainings import build_mlp, load_images, train

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


def describe_beside(lands: Sequence[lv.Landscape]) -> str:
    """Return which planes were taken, and how the held-out error of `sigma="auto"` compares with fixed widths."""
    curves = [lv.sigma_curve(land, progress=False) for land in lands]
    ratios = [curve.auto / curve.error.min() for curve in curves]
    n_local = sum(land.plane == "local" for land in lands)
    return (
        f"{n_local} of {len(lands)} runs on local planes. Held-out error of auto beside the best of "
        f"{len(curves[0].error)} fixed widths: no larger in {sum(r <= 1 for r in ratios)}, at worst ×{max(ratios):.2f}."
    )


def describe_more_seeds(target: str, seeds: Sequence[int] = range(5, 24)) -> str:
    """Return how many runs of other seeds stay within the limits, and the largest factors of the others."""
    runs = (lv.train(target, seed=seed, progress=False) for seed in seeds)
    lands = [lv.landscape(run, resolution=2, progress=False) for run in runs]
    within, with_folds = count_within(lands)
    missed = len(lands) - within
    worst = write_worst(lands)
    return f"{target}: {within} of {len(lands)} within; {with_folds} of the other {missed} have folds; worst {worst}"


def describe_mini_batches(optimizer: str, **settings: float) -> str:
    """Return the errors of a classifier of digits, trained on batches of 32, as a range over three seeds."""
    build = partial(train, build_mlp, load_images, optimizer, steps=400, batch=32, **settings)
    columns: dict[str, list[float]] = {}
    for seed in range(3):
        land = lv.landscape(build(seed=seed), resolution=2, progress=False)
        between = np.setdiff1d(np.arange(len(land.path_loss)), land.anchors)
        found = {
            "height / loss between anchors": float(np.median(land.path_height[between] / land.path_loss[between])),
            "held-out median factor": lv.fidelity(land, held_out=True).median,
            **{f"decades, {name}": error for name, error in land.choice.errors.items()},
            "decades, recorded losses alone": average_recorded_losses(land),
        }
        for name, value in found.items():
            columns.setdefault(name, []).append(value)
    return "; ".join(f"{name} {min(values):.3g} to {max(values):.3g}" for name, values in columns.items())


def average_recorded_losses(land: lv.Landscape) -> float:
    """Return the held-out error of the recorded losses themselves, averaged with the kernels and without planes.

    As in the choice of planes, anchors within 3 % of the diagonal along the path are left out.
    """
    plane, points = land.projection, land.path[land.anchors]
    arc = land.sampling.arc[land.anchors]
    near = np.abs(arc[:, None] - arc) <= BLOCK_RADIUS * plane.diagonal
    held = ~near.all(axis=1)
    weights = land.blend.kernel.weights(points[held], near[held])
    loss = land.path_loss[land.anchors]
    return float(np.abs(np.log10(weights @ loss / loss[held])).mean())


def main() -> None:
    """Print the table in Markdown, totals, and the numbers of the text."""
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
    for target in TARGETS:
        tail = max(lv.fidelity(land, held_out=True).p90 for land in table[target, ours])
        print(f"Held out, 90th percentile on {target}: {tail:.3g}")
    print(describe_beside(every))
    for target in TARGETS[:4]:
        print("More seeds,", describe_more_seeds(target))
    print("Mini-batches, SGD with momentum:", describe_mini_batches("SGD", lr=0.1, momentum=0.9))
    print("Mini-batches, Adam:", describe_mini_batches("Adam", lr=1e-3))


if __name__ == "__main__":
    main()
