"""A user's loss as a pure function of the weights, on a private copy of the model."""

import copy
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from loss_viz._validation import check_type, first_line
from loss_viz.objective.layout import buffer_layout, names_by_id, parameter_layout


class ForwardProbe(TorchDispatchMode):
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
    check_type("model", model, nn.Module, "a torch.nn.Module", advice="Pass the network that was trained.")
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
            f"`model` must be one that copy.deepcopy can copy; it said: {first_line(error)}. Hold no results "
            "of a forward pass and no open files or locks on the model, and use torch.nn.utils.parametrizations "
            "for weight and spectral normalization."
        ) from error


def check_scalar(loss: Any) -> None:
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
def unfused_attention() -> Iterator[None]:
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


LossFn = Callable[[nn.Module], Tensor]


class FunctionalLoss:
    """`loss_fn(model)` at any weights and buffers; the model given stays as it is.

    One copy serves one thread at a time, for a call puts the weights in the place of its own: `clone` makes another.

    Args:
        model: copied, in evaluation mode.
        loss_fn: the loss of a model.
        device: of the copy; that of the model by default.

    Attributes:
        layout: names and shapes of the parameters within the vector.
        buffer_layout: likewise for the floating-point buffers.
        parameters: the copy's own, by name.

    Example:
        >>> pure = FunctionalLoss(nn.Linear(2, 1, bias=False), lambda m: m(torch.tensor([1.0, 10.0])).sum())
        >>> pure.at(torch.tensor([3.0, 4.0]), torch.empty(0)).item()
        43.0
    """

    def __init__(self, model: nn.Module, loss_fn: LossFn, device: str | torch.device | None = None) -> None:
        advice = "Write it as lambda m: criterion(m(x), y), with data of its own."
        check_type("loss_fn", loss_fn, Callable, "a function of a model", advice=advice)
        self.layout = parameter_layout(model)
        self.buffer_layout = buffer_layout(model)
        self._module = _LossModule(_move(copy_model(model), device).eval(), loss_fn)
        self._prepare()

    def clone(self) -> "FunctionalLoss":
        """Another copy of the model, with the same data."""
        other = copy.copy(self)
        other._module = _LossModule(copy.deepcopy(self._module.model), self._module.loss_fn)
        other._prepare()
        return other

    def _prepare(self) -> None:
        inner = self._module.model
        own = dict(inner.named_parameters())
        self.parameters = {entry.name: own[entry.name] for entry in self.layout.entries}
        buffers = names_by_id(inner.named_buffers(remove_duplicate=False))
        self._buffers = [(buffers[id(b)], b) for b in inner.buffers()]

    def at(self, weights: Tensor, buffers: Tensor) -> Tensor:
        """The loss at one weight vector `(n_params,)` and the buffers `(n_buffers,)` that go with it."""
        # All names of tied tensors are there: to look for them at every call takes as long as a small net's layer.
        return functional_call(self._module, self._name(weights, buffers, "model."), (), tie_weights=False)

    def losses_in_loop(self, weights: Tensor, buffers: Tensor) -> Tensor:
        """Losses at weight vectors `(n, n_params)` that are not evaluated together; the copy is left at the last."""
        if self._buffers:
            return torch.stack([self.at(*row) for row in zip(weights, buffers, strict=True)])
        own = [parameter.data for parameter in self.parameters.values()]
        shapes = [(len(weights), *entry.shape) for entry in self.layout.entries]
        parts = [part.reshape(to) for part, to in zip(weights.split(self.layout.sizes, dim=1), shapes, strict=True)]
        losses = []
        for row in zip(*parts, strict=True):  # to write them into the copy is quicker than to call it with others
            torch._foreach_copy_(own, list(row))
            losses.append(self._module())
        return torch.stack(losses)

    def differentiate(self, weights: Tensor, buffers: Tensor) -> Tensor:
        """Gradients at weight vectors `(n, n_params)`, one at a time.

        Raises:
            ValueError: the loss cannot be differentiated.
        """
        slopes = []
        with torch.enable_grad():
            for at, state in zip([one.clone().requires_grad_() for one in weights], buffers, strict=True):
                try:
                    slopes += torch.autograd.grad(self.at(at, state), at)
                except RuntimeError as error:
                    raise ValueError(
                        "A gradient needs a loss that PyTorch can differentiate; this one it cannot "
                        f"({first_line(error)}). Compute it from the model with tensors alone."
                    ) from error
        return torch.stack(slopes)

    def hessian_vector_product(self, weights: Tensor, buffers: Tensor, vector: Tensor) -> Tensor:
        """The Hessian at one weight vector times another vector.

        Raises:
            ValueError: the loss cannot be differentiated twice.
        """
        with torch.enable_grad():
            at = weights.requires_grad_()
            loss = self.at(at, buffers)
            try:
                [slope] = torch.autograd.grad(loss, at, create_graph=True)
                [product] = torch.autograd.grad(slope, at, vector)
            except RuntimeError as error:
                raise ValueError(
                    "The Hessian needs a loss that PyTorch can differentiate twice; this one it cannot "
                    f"({first_line(error)}). Use another `plane`."
                ) from error
        return product

    def loss_of_copy(self) -> Any:
        """The loss of the copy as it stands; its buffers are lent, for a forward pass may write to them."""
        own = {names[0]: b for names, b in self._buffers}
        return functional_call(self._module, self._lend(own, "model."), (), tie_weights=False)

    def predict(self, weights: Tensor, buffers: Tensor, x: Tensor) -> Tensor:
        """What the model answers at inputs `x`.

        Raises:
            TypeError, ValueError: the model does not take them.
        """
        check_type("x", x, Tensor, "a tensor", advice="Pass inputs as in model(x).")
        try:
            return functional_call(self._module.model, self._name(weights, buffers), (x,), tie_weights=False)
        except RuntimeError as error:
            raise ValueError(
                f"`x` must be inputs that the model takes; with those of shape {tuple(x.shape)} PyTorch says: "
                f"{first_line(error)}. Pass them as in model(x)."
            ) from error

    def _name(self, weights: Tensor, buffers: Tensor, prefix: str = "") -> dict[str, Tensor]:
        """All tensors of the model, by all names."""
        state = self._lend(self.buffer_layout.split(buffers), prefix)
        for entry, part in zip(self.layout.entries, self.layout.split(weights).values(), strict=True):
            tensor = part.to(self.parameters[entry.name].dtype)
            state.update((prefix + name, tensor) for name in entry.names)
        return state

    def _lend(self, given: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
        """The buffers given, or the copy's own, under all their names; copies, for a forward pass may write to them."""
        state: dict[str, Tensor] = {}
        for names, own in self._buffers:
            tensor = given.get(names[0], own).to(own.dtype, copy=True)
            state.update((prefix + name, tensor) for name in names)
        return state


def _move(model: nn.Module, device: str | torch.device | None) -> nn.Module:
    if device is None:
        return model
    check_type("device", device, (str, torch.device), "a device", advice="Name it, as in 'cpu' or 'cuda:0'.")
    try:
        return model.to(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"`device` must be one that PyTorch has here, got {device!r}: {first_line(error)}. "
            "Use 'cpu', or leave it out for that of the model."
        ) from error


class _LossModule(nn.Module):
    """`loss_fn(model)` as a forward pass, so that `functional_call` reaches the parameters inside it."""

    def __init__(self, model: nn.Module, loss_fn: LossFn) -> None:
        super().__init__()
        self.model = model
        self.loss_fn = loss_fn

    def forward(self) -> Any:  # a user's function may return anything: `Objective` looks
        return self.loss_fn(self.model)
