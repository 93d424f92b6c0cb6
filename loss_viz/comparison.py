"""The same task from the same start, by several optimizers."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

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
        TypeError, ValueError: as `train` does; no optimizer.

    Example:
        >>> runs = compare("x^2", ["adam", "sgd"], steps=20, progress=False)
        >>> [run.name for run in runs], bool((runs[0].weights[0] == runs[1].weights[0]).all())
        (['Adam', 'SGD + momentum'], True)
    """
    named = optimizers if isinstance(optimizers, Mapping) else {_label(one): one for one in optimizers}
    if not named:
        raise ValueError("`optimizers` must hold at least one, it is empty. Leave it out for three of them.")
    return [replace(train(target, optimizer=one, **settings), name=name) for name, one in named.items()]


def _label(optimizer: str | OptimizerFactory) -> str:
    if isinstance(optimizer, str):
        return LABELS.get(optimizer, optimizer)
    return str(getattr(optimizer, "__name__", type(optimizer).__name__))
