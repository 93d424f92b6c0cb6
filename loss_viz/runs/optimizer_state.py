"""Norms of the tensors that optimizers keep, such as the moments of Adam."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from loss_viz._validation import argument_error, argument_type_error

Norms = Mapping[str, float]  # by the name of the tensor in the optimizer's state


def check_track(track: Any) -> tuple[str, ...]:
    """Return names of optimizer tensors as a tuple.

    Raises:
        TypeError: if `track` is not a list of strings.
        ValueError: if a name is empty or occurs twice.

    Example:
        >>> check_track(["exp_avg", "exp_avg_sq"])
        ('exp_avg', 'exp_avg_sq')
    """
    what = '`track` must be a list of names of optimizer tensors, such as ["exp_avg_sq"]'
    if not isinstance(track, list | tuple) or not all(isinstance(name, str) for name in track):
        raise argument_type_error("track", f"{what}, got {track!r:.80}. Leave it out to track none.")
    if "" in track or len(set(track)) < len(track):
        raise argument_error("track", f"{what}, each of them once; got {track!r:.80}. Leave it out to track none.")
    return tuple(track)


def measure_norms(optimizers: Iterable[Any], parameters: Collection[int], names: Sequence[str]) -> dict[str, float]:
    """Return the Euclidean norm over all parameters of each named tensor in `optimizer.state`, as far as it is there.

    Args:
        optimizers: of several that hold a tensor for the same parameter, the last counts.
        parameters: those of the model, by `id`.
        names: names of floating-point or complex tensors.
    """
    found: dict[str, dict[int, Tensor]] = {}
    for parameter, values in _read_state(optimizers, parameters):
        for name in names:
            if _is_array(values.get(name)):
                found.setdefault(name, {})[parameter] = values[name].detach()
    norms = {name: [_measure_norm(tensor) for tensor in tensors.values()] for name, tensors in found.items()}
    return {name: torch.stack(parts).norm().item() for name, parts in norms.items()}


def _measure_norm(tensor: Tensor) -> Tensor:
    # In double precision, because squares of second moments are below the least number in single precision.
    values = tensor if tensor.device.type != "mps" else tensor.cpu()
    return torch.linalg.vector_norm(values.to(torch.promote_types(values.dtype, torch.float64))).cpu()


def list_state_names(optimizers: Iterable[Any], parameters: Collection[int]) -> list[str]:
    """Return the names of the tensors that optimizers hold for the parameters of a model."""
    states = (values for _, values in _read_state(optimizers, parameters))
    return sorted({name for values in states for name, value in values.items() if _is_array(value)})


def explain_missing(missing: Sequence[str], present: Sequence[str]) -> str:
    """Say that tracked tensors are not in the state of the optimizers, and which are."""
    choice = f"Track {', '.join(map(repr, present))}" if present else "This one keeps none: leave `track` out"
    return (
        f"`track` must name tensors in the state of the optimizer, {', '.join(map(repr, missing))} "
        f"{'is' if len(missing) == 1 else 'are'} not there. {choice}, or use another optimizer."
    )


def stack_norms(rows: Sequence[Norms], names: Iterable[str]) -> dict[str, Float[np.ndarray, " n"]]:
    """Return the norms of all rows by name; nan where there are none.

    Example:
        >>> stack_norms([{}, {"exp_avg": 0.5}], ["exp_avg"])
        {'exp_avg': array([nan, 0.5])}
    """
    return {name: np.array([row.get(name, np.nan) for row in rows], dtype=np.float64) for name in names}


def _read_state(optimizers: Iterable[Any], parameters: Collection[int]) -> Iterable[tuple[int, Mapping[str, Any]]]:
    for optimizer in optimizers:
        state = getattr(optimizer, "state", None)  # a wrapper may have none
        for parameter, values in list(state.items()) if isinstance(state, Mapping) else ():
            if id(parameter) in parameters and isinstance(values, Mapping):
                yield id(parameter), values


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())
