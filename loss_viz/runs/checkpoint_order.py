"""The order of checkpoints: the steps stored in them, or the numbers in their names."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from loss_viz.runs.checkpoint_file import AVERAGE, WEIGHTS, read_counters
from loss_viz.runs.tensor_names import join_some

ADVICE = 'Pass a list of paths with steps=[0, 100, ...], or in their order with order="given"'

# Names of second copies, and of the weights before the training.
COPY = re.compile(r"(?<![a-z])(best|last|latest|newest|final)(?![a-z])", re.IGNORECASE)
START = re.compile(r"(?<![a-z])init(ial|ialization)?(?![a-z])", re.IGNORECASE)

# Numbers in names: of steps, of epochs, any others, and those that do not count a training.
NAMED = {
    "step": re.compile(r"(?<![a-z])(?:steps?|iter|iters|iteration|it)[-_= ]*(\d+)(?!\.?\d)", re.IGNORECASE),
    "epoch": re.compile(r"(?<![a-z])(?:epochs?|ep|checkpoint|ckpt)[-_= ]*(\d+)(?!\.?\d)", re.IGNORECASE),
}
NUMBER = re.compile(r"(\d+\.\d+|\d+)")
OTHER_NUMBER = re.compile(r"(?<![a-z])(seed|fold|rank|run|trial|part|shard|lr|gpu|worker|v)[-_= ]*$", re.IGNORECASE)


def order_naturally(path: Path) -> list[str | int]:
    """Return a sort key: the name, with its numbers by size."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", str(path)))]


def leave_out_copies(paths: list[Path], notes: list[str]) -> list[Path]:
    """Return checkpoints without copies such as `best.pt` and averages, if the others have numbers; note which."""
    saves = [path for path in paths if path.is_dir() and re.match(r"checkpoint-\d", path.name)]
    named = zip(paths, _names(paths), strict=True)
    own = [path for path, name in named if not COPY.search(name) and not AVERAGE.search(name)]
    kept = saves or [path for path in own if path.name not in WEIGHTS]
    others = [path for path in paths if path not in kept]
    if not others or not find_steps([path for path in kept if not START.search(path.name)], []):
        return paths
    notes.append(f"Not taken, because it seems to be a copy or an average: {_list(others)}. {ADVICE}, to take it too.")
    return kept


def sort_by_step(paths: list[Path], given: bool, notes: list[str]) -> tuple[list[Path], list[int]]:
    """Return checkpoints in the order of the training, and their steps: 0, 1, 2, ... where none are known.

    Args:
        paths: checkpoints.
        given: whether the user listed them, in an order that is kept where no steps are known.
        notes: what the user should know is added here.
    """
    steps = find_steps(paths, notes)
    starts = [path for path, name in zip(paths, _names(paths), strict=True) if START.search(name)]
    if not steps and len(starts) == 1:
        others = [path for path in paths if path not in starts]
        later = find_steps(others, notes) or [0]
        if min(later) > 0:
            paths, steps = starts + others, [0, *later]
        elif max(later) > 0 and not given:
            notes.append(f"Not taken, because another one is of step 0: {_list(starts)}. {ADVICE}, to take it too.")
            paths, steps = others, later
    if steps:
        pairs = sorted(zip(steps, paths, strict=True))
        return [path for _, path in pairs], [step for step, _ in pairs]
    if starts and not given:
        paths = starts + [path for path in paths if path not in starts]
    if len(paths) > 1 + len(starts) and not (given and not any(NUMBER.search(path.stem) for path in paths)):
        kind = "as in the list" if given else "by name"
        notes.append(
            f"The order of these checkpoints is uncertain, because not all of them have a step of their own, stored "
            f"in the file or in its name: {_list(paths)}. They are taken {kind}. {ADVICE}."
        )
    return paths, list(range(len(paths)))


def find_steps(paths: Sequence[Path], notes: list[str]) -> list[int]:
    """Return the step of each checkpoint, or nothing where some are not known; note other numbers that disagree."""
    known = [
        [number for number in numbers if number is not None]
        for numbers in _read_numbers(paths)
        if not any(number is None or number < 0 for number in numbers) and len(set(numbers)) == len(numbers) > 0
    ]
    orders = [sorted(range(len(paths)), key=numbers.__getitem__) for numbers in known]
    if any(order != orders[0] for order in orders):
        notes.append(
            f"The numbers stored in these checkpoints and in their names tell different orders: "
            f"{_list(paths)}. Their steps are {join_some([*map(str, known[0])])}. {ADVICE}."
        )
    return known[0] if known else []


def _read_numbers(paths: Sequence[Path]) -> Iterator[list[int | None]]:
    """Yield what may be the step of each checkpoint, the most certain first."""
    stored = [read_counters(path) for path in paths]
    # The names of the folders above count too; for a single checkpoint only if it has no number itself.
    n_levels = 3 if len(paths) > 1 else 1 if any(NUMBER.search(path.name) for path in paths) else 2
    for kind, pattern in NAMED.items():
        yield [counters.get(kind) for counters in stored]
        for level in range(n_levels):
            found = [pattern.search(Path(*path.absolute().parts[: -level or None]).name) for path in paths]
            yield [int(match[1]) if match else None for match in found]
    yield _read_varying(_names(paths))


def _read_varying(names: Sequence[str]) -> list[int | None]:
    """Return the only whole number that varies in names that are otherwise the same."""
    parts = [NUMBER.split(name) for name in names]
    if len({tuple(one[::2]) for one in parts}) == 1:
        columns = {i: [one[i] for one in parts] for i in range(1, len(parts[0]), 2)}
        whole = {i: column for i, column in columns.items() if not any("." in number for number in column)}
        varying = [i for i, column in whole.items() if len(set(column)) > 1 or len(names) == 1]
        if (len(varying) == 1 or len(names) == 1) and varying and not OTHER_NUMBER.search(parts[0][varying[-1] - 1]):
            return [int(number) for number in whole[varying[-1]]]
    return [None] * len(names)


def _names(paths: Sequence[Path]) -> list[str]:
    """Return the names of checkpoints without their endings, with the folders above them that are not common to all."""
    whole = [path.absolute() for path in paths]
    depth = sum(len(set(part)) == 1 for part in zip(*(path.parts[:-1] for path in whole), strict=False))
    names = ["/".join(path.parts[depth:]) for path in whole]
    return [name if path.is_dir() else name.removesuffix(path.suffix) for name, path in zip(names, paths, strict=True)]


def _list(paths: Sequence[Path]) -> str:
    return join_some([path.name for path in paths])
