"""The flat vectors of a model: which tensors they hold, in which order."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


class TensorSpec(NamedTuple):
    """Names and shape of one tensor of a model; tied tensors have several names.

    Attributes:
        names: all names, the one in `model.named_parameters()` first.
        shape: shape in the model.
        kind: `"real"`, `"complex"` (two values for each number), or `"nominal"`: whole numbers and flags, of which an
            average would mean nothing.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    kind: str = "real"

    @property
    def name(self) -> str:
        """First name, the one in `model.named_parameters()`."""
        return self.names[0]

    @property
    def size(self) -> int:
        """Number of values in the vector."""
        return torch.Size(self.shape).numel() * (2 if self.kind == "complex" else 1)

    def unflatten(self, values: Tensor) -> Tensor:
        """Return the tensors in the last dimension of `values`, which has `size` values; a view where possible."""
        if self.kind == "complex":
            return torch.view_as_complex(values.reshape((*values.shape[:-1], *self.shape, 2)))
        return values.reshape((*values.shape[:-1], *self.shape))


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
        """Number of values of each tensor."""
        return tuple(entry.size for entry in self.entries)

    @property
    def n(self) -> int:
        """Length of the vector."""
        return sum(self.sizes)

    @cached_property
    def nominal(self) -> Bool[np.ndarray, " n"]:
        """Which values belong to whole numbers and flags, which cannot be averaged."""
        return np.repeat([entry.kind == "nominal" for entry in self.entries], self.sizes).astype(bool)

    def split(self, vector: Float[Tensor, " n"]) -> dict[str, Tensor]:
        """Return the tensors in a vector by their first name; views where the shapes allow it."""
        parts = vector.split(self.sizes) if self.entries else ()
        return {entry.name: entry.unflatten(part) for entry, part in zip(self.entries, parts, strict=True)}

    def join(self, tensors: Mapping[str, Tensor], out: Float[Tensor, " n"] | None = None) -> Float[Tensor, " n"]:
        """Concatenate tensors by name into a vector: a detached copy on the CPU, in `out` if given."""
        parts = [_flatten(tensors[entry.name].detach()).to("cpu", self.dtype) for entry in self.entries]
        return torch.cat(parts, out=out) if parts else torch.empty(0, dtype=self.dtype, device="cpu")


def _flatten(tensor: Tensor) -> Tensor:
    return (torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor).reshape(-1)


def parameter_layout(model: nn.Module) -> ParameterLayout:
    """Return the layout of the trainable parameters, in `model.parameters()` order; tied ones count once.

    Raises:
        ValueError: if there is no trainable parameter, or one of them is not a plain tensor with values.
    """
    named = names_by_id(model.named_parameters(remove_duplicate=False))
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise ValueError(
            "`model` must have at least one parameter with requires_grad=True, it has none. "
            "Unfreeze the parameters that were trained with parameter.requires_grad_(True)."
        )
    for name, p in model.named_parameters():
        check_plain(name, p)
    return lay_out({named[id(p)]: p for p in trainable.values()})


def check_plain(name: str, tensor: Tensor) -> None:
    """Check that a tensor of a model is an ordinary one, with values in this process.

    Raises:
        ValueError: if it is not.
    """
    kind = type(tensor) if is_lazy(tensor) else type(tensor.data)
    if is_lazy(tensor):
        what, repair = "without a shape yet", "Pass one batch through the model first."
    elif hasattr(tensor, "full_tensor"):
        what = f"a {kind.__name__}, spread over processes"
        repair = "Record an unsharded copy, or save full checkpoints and use Run.from_checkpoints."
    elif tensor.is_meta:
        what, repair = "on the device 'meta', without values", "Load the weights first."
    elif kind is not Tensor or tensor.layout != torch.strided or tensor.is_quantized:
        what = f"a {kind.__name__} of layout {tensor.layout}"
        repair = "Convert it to an ordinary dense tensor first."
    else:
        return
    raise ValueError(f"`model` must hold ordinary tensors, {name!r} is {what}. {repair}")


def float_buffers(model: nn.Module) -> ParameterLayout:
    """Return the layout of the floating-point buffers, such as the running statistics of batch normalization."""
    named = names_by_id(model.named_buffers(remove_duplicate=False))
    return lay_out({named[id(b)]: b for b in model.buffers() if b.is_floating_point()})


def names_by_id(named: Iterable[tuple[str, Tensor]]) -> dict[int, tuple[str, ...]]:
    """Return all names of each tensor, by its `id`."""
    names: dict[int, tuple[str, ...]] = {}
    for name, tensor in named:
        names[id(tensor)] = (*names.get(id(tensor), ()), name)
    return names


def lay_out(tensors: Mapping[tuple[str, ...], Tensor]) -> ParameterLayout:
    """Return the layout of tensors by all their names, in this order."""
    entries = tuple(TensorSpec(names, tuple(t.shape), _find_kind(t)) for names, t in tensors.items())
    return ParameterLayout(entries, reduce(torch.promote_types, map(_real_dtype, tensors.values()), torch.float32))


def _find_kind(tensor: Tensor) -> str:
    return "complex" if tensor.is_complex() else "real" if tensor.is_floating_point() else "nominal"


def _real_dtype(tensor: Tensor) -> torch.dtype:
    if tensor.is_floating_point() or tensor.is_complex():
        return tensor.dtype.to_real()
    return torch.float32 if tensor.dtype.itemsize <= 2 else torch.float64
