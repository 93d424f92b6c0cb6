"""Large frozen parameters, such as the base under an adapter: shared with the user's model instead of copied."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from loss_viz._compiler import without_compiler

LARGE_BYTES = 2**26


def choose_shared(module: nn.Module, trained: Collection[torch.Size]) -> list[nn.Parameter]:
    """Return the frozen parameters of a module that are too large to be copied; none if they take less than 64 MiB.

    Args:
        module: the module.
        trained: shapes of the trained parameters. A frozen one of the same shape may be a moving average, which needs a
            copy to be recorded.

    Example:
        >>> base = nn.Linear(5000, 5000).requires_grad_(False)
        >>> [tuple(parameter.shape) for parameter in choose_shared(base, [torch.Size([5000])])]
        [(5000, 5000)]
        >>> choose_shared(nn.Linear(500, 500).requires_grad_(False), [])
        []
    """
    frozen = [p for p in module.parameters() if not p.requires_grad and p.shape not in trained and _is_summable(p)]
    return frozen if sum(p.nbytes for p in frozen) > LARGE_BYTES else []


def _is_summable(p: nn.Parameter) -> bool:
    whole = type(p) is nn.Parameter and p.layout == torch.strided and p.is_contiguous() and not p.is_meta
    return whole and p.nbytes % 8 == 0 and int(p.storage_offset()) * p.itemsize % 8 == 0


def sum_bytes(tensor: Tensor) -> int:
    """Return the sum of the bytes of a tensor, taken as 64-bit integers that wrap around: exact in any order."""
    return int(tensor.detach().reshape(-1).view(torch.int64).sum())


class SharedParameters:
    """Parameters that a private copy shares with the user's model, and a checksum of each.

    Attributes:
        tensors: the parameters of the copy, by name.
    """

    def __init__(self, originals: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
        self.tensors = {
            name: tensor
            for name, tensor in own.items()
            if tensor.numel() and name in originals and tensor.data_ptr() == originals[name].data_ptr()
        }
        self._sums = {name: sum_bytes(tensor) for name, tensor in self.tensors.items()}

    def check(self) -> None:
        """Check that no parameter has changed since.

        Raises:
            ValueError: if one has.
        """
        for name, tensor in self.tensors.items():
            if sum_bytes(tensor) != self._sums[name]:
                raise ValueError(
                    f"Frozen parameters of more than {LARGE_BYTES >> 20} MiB are not copied, and must keep their "
                    f"values; {name!r} has changed. If an adapter was merged into it, unmerge it before losses are "
                    "evaluated. Register a tensor that changes during training as a buffer, which is recorded."
                )


def find_storage(tensor: Tensor) -> int:
    """Return the address of a tensor's memory; 0 if it has none, as the zeros in a forward-mode derivative."""
    try:
        return tensor.untyped_storage().data_ptr()
    except RuntimeError:
        return 0


class SharedWriteError(RuntimeError):
    """A private copy of a model tried to write to a parameter that it shares with the user's model."""


class UncompiledMode(TorchDispatchMode):
    """A context that sees each operation, without importing the compiler at the first one."""

    def __enter__(self) -> Any:
        self._without = without_compiler(type(self).__torch_dispatch__)
        self._without.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._without.__exit__(None, None, None)


class ForbidWrites(UncompiledMode):
    """A context in which an operation that writes to one of some tensors raises `SharedWriteError` instead."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._places = {find_storage(tensor): name for name, tensor in tensors.items()}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        schema = getattr(func, "_schema", None)  # which operators of higher order do not have
        arguments = schema.arguments if schema and self._places else ()
        given = dict(zip((argument.name for argument in arguments), args, strict=False)) | kwargs
        for argument in arguments:
            if argument.alias_info is not None and argument.alias_info.is_write:
                for tensor in tree_leaves(given.get(argument.name)):
                    if isinstance(tensor, Tensor) and find_storage(tensor) in self._places:
                        raise SharedWriteError(self._places[find_storage(tensor)])
        return func(*args, **kwargs)
