"""The same task from the same start, by several optimizers."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from .arguments import require_kind
from .bundle import number_names
from .optimizers import OptimizerFactory
from .tasks import Target
from .training import train
from .trajectory import Run

LABELS = {"adam": "Adam", "adamw": "AdamW", "sgd": "SGD + momentum", "rmsprop": "RMSprop"}

Optimizers = Sequence[str | OptimizerFactory] | Mapping[str, str | OptimizerFactory]


def compare(target: Target, optimizers: Optimizers = ("adam", "sgd", "rmsprop"), **settings: Any) -> list[Run]:
    """Train one network on one task with several optimizers, each from the same first weights.

    The runs go together wherever one goes: `landscape(runs)` draws them on one plane, `Explorer(runs)` lets them race.

    Args:
        target: as for `train`.
        optimizers: names, classes of `torch.optim` or functions of the parameters, as for `train`; in a dict by the
            names that the legend shall show.
        settings: anything else that `train` takes; the same for all.

    Returns:
        One run for each, in that order.

    Raises:
        TypeError, ValueError: as `train` does; no optimizer, or no list of them.

    Example:
        >>> runs = compare("x^2", ["adam", "sgd"], steps=20, progress=False)
        >>> [run.name for run in runs], bool((runs[0].weights[0] == runs[1].weights[0]).all())
        (['Adam', 'SGD + momentum'], True)
    """
    advice = 'Pass a list such as ["adam", "sgd"], or leave it out for three of them.'
    require_kind("optimizers", optimizers, (Sequence, Mapping), "a list or a dict", advice=advice)
    if isinstance(optimizers, str) or not optimizers:
        raise ValueError(f"`optimizers` must hold at least one, got {optimizers!r}. {advice}")
    chosen = list(optimizers.values() if isinstance(optimizers, Mapping) else optimizers)
    names = list(map(str, optimizers)) if isinstance(optimizers, Mapping) else number_names(map(_label, chosen))
    runs = [train(target, optimizer=one, **settings) for one in chosen]
    return [replace(run, name=name) for run, name in zip(runs, names, strict=True)]


def _label(optimizer: str | OptimizerFactory) -> str:
    if isinstance(optimizer, str):
        return LABELS.get(optimizer, optimizer)
    return str(getattr(optimizer, "__name__", type(optimizer).__name__))
