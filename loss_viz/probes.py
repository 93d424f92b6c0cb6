"""How a model of somebody else's is looked at: copied, watched once, and kept from kernels that cannot be batched."""

import copy
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .arguments import quote, require_kind


class Meter(TorchDispatchMode):
    """Notes the bytes of the largest tensor that any operation returns, and if one reads a parameter, or attends."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        super().__init__()
        self.n_bytes = 1
        self.touched = self.attends = False
        self._storages = {p.untyped_storage().data_ptr() for p in parameters}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.attends |= "attention" in str(func) or "transformer" in str(func)
        self.touched |= any(t.untyped_storage().data_ptr() in self._storages for t in _tensors(args))
        self.n_bytes = max([self.n_bytes, *(t.numel() * t.element_size() for t in _tensors(result))])
        return result


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def unwrap_model(model: nn.Module) -> nn.Module:
    """The module itself, without what `torch.compile` or data parallelism has put around it.

    Raises:
        TypeError: it is none.
    """
    require_kind("model", model, nn.Module, "a torch.nn.Module", advice="Pass the network that was trained.")
    parallel = isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel)
    inner = getattr(model, "module" if parallel else "_orig_mod", None)
    return unwrap_model(inner) if isinstance(inner, nn.Module) else model


def copy_model(model: nn.Module) -> nn.Module:
    """A copy that shares nothing with a user's model.

    Raises:
        ValueError: it cannot be copied.
    """
    try:
        return copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"`model` must be one that copy.deepcopy can copy; it said: {quote(error)}. Hold no results "
            "of a forward pass and no open files or locks on the model, and use torch.nn.utils.parametrizations "
            "for weight and spectral normalization."
        ) from error


def require_scalar(loss: Any) -> None:
    """Refuse what is no loss.

    Raises:
        TypeError: it is not a tensor.
        ValueError: it is not one real number.
    """
    if not isinstance(loss, Tensor):
        raise TypeError(
            f"`loss_fn(model)` must return a scalar tensor, got {type(loss).__name__}. "
            "Return the loss itself, without .item() or .detach().numpy()."
        )
    if loss.ndim:
        raise ValueError(
            f"`loss_fn(model)` must return one number, got a tensor of shape {tuple(loss.shape)}. "
            "Reduce it over the data, for example with .mean()."
        )
    if loss.is_complex():
        raise ValueError(
            f"`loss_fn(model)` must return a real number, got one of {loss.dtype}. "
            "Return its size, for example with .abs()."
        )


_SWITCHED = ExitStack()  # the switches of attention are global: the first thread turns them, the last one back
_LOCK = threading.Lock()
_users: set[object] = set()


@contextmanager
def plain_attention() -> Iterator[None]:
    """Attention as plain matrix products, which vmap can batch and autograd differentiate twice.

    Fused kernels have neither. PyTorch 2.3 cannot batch plain attention either: the model is evaluated one at a time.
    """
    user = object()
    with _LOCK:
        if not _users:
            _turn_off_fused_attention()
        _users.add(user)
    try:
        yield
    finally:
        with _LOCK:
            _users.remove(user)
            if not _users:
                _SWITCHED.close()


def _turn_off_fused_attention() -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    mha = torch.backends.mha
    _SWITCHED.callback(mha.set_fastpath_enabled, mha.get_fastpath_enabled())
    mha.set_fastpath_enabled(False)
    _SWITCHED.enter_context(sdpa_kernel(SDPBackend.MATH))
