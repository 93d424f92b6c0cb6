"""The flat weight vector of a model: which parameters and buffers it holds, in which order."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn


class TensorSpec(NamedTuple):
    """Names and shape of one tensor of a model; tied tensors have several names."""

    names: tuple[str, ...]
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """First name, the one in `model.named_parameters()`."""
        return self.names[0]


@dataclass(frozen=True)
class ParameterLayout:
    """Order and shapes of the tensors in a flat vector.

    Attributes:
        entries: tensors in the order of the vector.
        dtype: dtype of the vector, wide enough for all tensors and at least float32.

    Example:
        >>> layout = parameter_layout(nn.Linear(2, 3))
        >>> [entry.name for entry in layout.entries], layout.n
        (['weight', 'bias'], 9)
    """

    entries: tuple[TensorSpec, ...]
    dtype: torch.dtype

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of values in each tensor."""
        return tuple(torch.Size(entry.shape).numel() for entry in self.entries)

    @property
    def n(self) -> int:
        """Length of the vector."""
        return sum(self.sizes)

    def split(self, vector: Float[Tensor, " n"]) -> dict[str, Tensor]:
        """Return the tensors in a vector by their first name; views where the shapes allow it."""
        parts = vector.split(self.sizes) if self.entries else ()
        return {entry.name: part.reshape(entry.shape) for entry, part in zip(self.entries, parts, strict=True)}

    def join(self, tensors: Mapping[str, Tensor]) -> Float[Tensor, " n"]:
        """Concatenate tensors by name into a vector: a detached copy on the CPU."""
        parts = [tensors[entry.name].detach().reshape(-1).to("cpu", self.dtype) for entry in self.entries]
        return torch.cat(parts) if parts else torch.empty(0, dtype=self.dtype)


def parameter_layout(model: nn.Module) -> ParameterLayout:
    """Return the layout of the trainable parameters, in `model.parameters()` order; tied ones count once.

    Raises:
        ValueError: if there is no trainable parameter, or one of them is not real floating point.
    """
    named = names_by_id(model.named_parameters(remove_duplicate=False))
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise ValueError(
            "`model` must have at least one parameter with requires_grad=True, it has none. "
            "Unfreeze the parameters that were trained with parameter.requires_grad_(True)."
        )
    for name, p in trainable.items():
        if not p.is_floating_point():
            raise ValueError(
                f"Parameters must be real floating-point numbers, {name!r} is {p.dtype}. "
                "Store its real and imaginary parts as two parameters, or freeze it."
            )
    return _lay_out({named[id(p)]: p for p in trainable.values()})


def frozen_layouts(model: nn.Module) -> list[ParameterLayout]:
    """Return one layout for each frozen parameter: separate, because together they may be large."""
    named = names_by_id(model.named_parameters(remove_duplicate=False))
    frozen = [p for p in model.parameters() if not p.requires_grad and p.is_floating_point()]
    return [_lay_out({named[id(p)]: p}) for p in frozen]


def buffer_layout(model: nn.Module) -> ParameterLayout:
    """Return the layout of the floating-point buffers, such as the running statistics of batch normalization."""
    named = names_by_id(model.named_buffers(remove_duplicate=False))
    return _lay_out({named[id(b)]: b for b in model.buffers() if b.is_floating_point()})


def names_by_id(named: Iterable[tuple[str, Tensor]]) -> dict[int, tuple[str, ...]]:
    """Return all names of each tensor, by its `id`."""
    names: dict[int, tuple[str, ...]] = {}
    for name, tensor in named:
        names[id(tensor)] = (*names.get(id(tensor), ()), name)
    return names


def _lay_out(tensors: Mapping[tuple[str, ...], Tensor]) -> ParameterLayout:
    entries = tuple(TensorSpec(names, tuple(tensor.shape)) for names, tensor in tensors.items())
    return ParameterLayout(entries, reduce(torch.promote_types, (t.dtype for t in tensors.values()), torch.float32))
