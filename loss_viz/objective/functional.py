"""A loss as a pure function of the weights, evaluated on a private copy of the model."""

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

from loss_viz._validation import argument_error, check_type, first_line
from loss_viz.objective.layout import buffer_layout, names_by_id, parameter_layout


class ForwardProbe(TorchDispatchMode):
    """A context that observes a forward pass.

    Attributes:
        largest_bytes: bytes of the largest tensor that an operation returned.
        reads_parameters: whether an operation read a parameter.
        has_attention: whether an operation was an attention kernel.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        super().__init__()
        self.largest_bytes = 1
        self.reads_parameters = self.has_attention = False
        self._storages = {p.untyped_storage().data_ptr() for p in parameters}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.has_attention |= "attention" in str(func) or "transformer" in str(func)
        self.reads_parameters |= any(t.untyped_storage().data_ptr() in self._storages for t in _tensors(args))
        self.largest_bytes = max([self.largest_bytes, *(t.numel() * t.element_size() for t in _tensors(result))])
        return result


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def unwrap_model(model: nn.Module) -> nn.Module:
    """Return the module inside the wrappers of `torch.compile` and data parallelism.

    Raises:
        TypeError: if `model` is not a module.
    """
    check_type("model", model, nn.Module, "a torch.nn.Module", advice="Pass the network that was trained.")
    parallel = isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel)
    inner = getattr(model, "module" if parallel else "_orig_mod", None)
    return unwrap_model(inner) if isinstance(inner, nn.Module) else model


def copy_model(model: nn.Module) -> nn.Module:
    """Return a deep copy of a model.

    Raises:
        ValueError: if it cannot be copied.
    """
    try:
        return copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"`model` must be one that copy.deepcopy can copy, got the error: {first_line(error)}. Keep no results "
            "of a forward pass and no open files or locks on the model, and use torch.nn.utils.parametrizations "
            "for weight and spectral normalization."
        ) from error


def check_scalar(loss: Any) -> None:
    """Check that a loss is one real number in a tensor.

    Raises:
        TypeError: if it is not a tensor.
        ValueError: if it is not scalar, or complex.
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
            "Return its absolute value with .abs(), for example."
        )


# PyTorch's attention settings are global: the first thread changes them, the last one restores them.
_SETTINGS = ExitStack()
_LOCK = threading.Lock()
_users: set[object] = set()


@contextmanager
def unfused_attention() -> Iterator[None]:
    """Compute attention by matrix products, which vmap can batch and autograd can differentiate twice."""
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
                _SETTINGS.close()


def _turn_off_fused_attention() -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    mha = torch.backends.mha
    _SETTINGS.callback(mha.set_fastpath_enabled, mha.get_fastpath_enabled())
    mha.set_fastpath_enabled(False)
    _SETTINGS.enter_context(sdpa_kernel(SDPBackend.MATH))


LossFn = Callable[[nn.Module], Tensor]


class FunctionalLoss:
    """`loss_fn(model)` as a function of weights and buffers, evaluated on a copy of the model in evaluation mode.

    Not thread-safe, because a call replaces the weights of the copy: use one `clone` per thread.

    Args:
        model: network to copy.
        loss_fn: loss of a model.
        device: device of the copy; the model's by default.

    Attributes:
        layout: order and shapes of the parameters in the weight vector.
        buffer_layout: order and shapes of the floating-point buffers.
        parameters: parameters of the copy, by name.

    Example:
        >>> loss = FunctionalLoss(nn.Linear(2, 1, bias=False), lambda m: m(torch.tensor([1.0, 10.0])).sum())
        >>> loss.loss_at(torch.tensor([3.0, 4.0]), torch.empty(0)).item()
        43.0
    """

    def __init__(self, model: nn.Module, loss_fn: LossFn, device: str | torch.device | None = None) -> None:
        advice = "Write it as lambda m: criterion(m(x), y)."
        check_type("loss_fn", loss_fn, Callable, "a function of a model", advice=advice)
        self.layout = parameter_layout(model)
        self.buffer_layout = buffer_layout(model)
        self._module = _LossModule(_move(copy_model(model), device).eval(), loss_fn)
        self._prepare()

    def clone(self) -> "FunctionalLoss":
        """Return a loss on another copy of the model, with the same data."""
        other = copy.copy(self)
        other._module = _LossModule(copy.deepcopy(self._module.model), self._module.loss_fn)
        other._prepare()
        return other

    def _prepare(self) -> None:
        model = self._module.model
        named = dict(model.named_parameters())
        self.parameters = {entry.name: named[entry.name] for entry in self.layout.entries}
        names = names_by_id(model.named_buffers(remove_duplicate=False))
        self._buffers = [(names[id(b)], b) for b in model.buffers()]

    def loss_at(self, weights: Tensor, buffers: Tensor) -> Tensor:
        """Return the loss at one weight vector `(n_params,)` and its buffers `(n_buffers,)`."""
        # All names of tied tensors are given: tie_weights=True would take as long as a layer of a small network.
        return functional_call(self._module, self._tensors_by_name(weights, buffers, "model."), (), tie_weights=False)

    def losses_in_loop(self, weights: Tensor, buffers: Tensor) -> Tensor:
        """Return the losses `(n,)` at weight vectors `(n, n_params)`, one at a time; the copy keeps the last ones."""
        if self._buffers:
            return torch.stack([self.loss_at(*row) for row in zip(weights, buffers, strict=True)])
        own = [parameter.data for parameter in self.parameters.values()]
        shapes = [(len(weights), *entry.shape) for entry in self.layout.entries]
        parts = [part.reshape(to) for part, to in zip(weights.split(self.layout.sizes, dim=1), shapes, strict=True)]
        losses = []
        for row in zip(*parts, strict=True):  # copying weights into the module is faster than functional_call
            torch._foreach_copy_(own, list(row))
            losses.append(self._module())
        return torch.stack(losses)

    def gradients(self, weights: Tensor, buffers: Tensor) -> Tensor:
        """Return the gradients at weight vectors `(n, n_params)`, computed one at a time.

        Raises:
            ValueError: if the loss cannot be differentiated.
        """
        gradients = []
        with torch.enable_grad():
            for at, state in zip([one.clone().requires_grad_() for one in weights], buffers, strict=True):
                try:
                    gradients += torch.autograd.grad(self.loss_at(at, state), at)
                except RuntimeError as error:
                    raise ValueError(
                        "A gradient needs a loss that PyTorch can differentiate, this one is not "
                        f"({first_line(error)}). Compute it from the model's output with tensor operations only."
                    ) from error
        return torch.stack(gradients)

    def hessian_vector_product(self, weights: Tensor, buffers: Tensor, vector: Tensor) -> Tensor:
        """Return the product of the Hessian at one weight vector and another vector.

        Raises:
            ValueError: if the loss cannot be differentiated twice.
        """
        with torch.enable_grad():
            at = weights.requires_grad_()
            loss = self.loss_at(at, buffers)
            try:
                [gradient] = torch.autograd.grad(loss, at, create_graph=True)
                [product] = torch.autograd.grad(gradient, at, vector)
            except RuntimeError as error:
                raise argument_error(
                    "axes",
                    "The Hessian needs a loss that PyTorch can differentiate twice, this one is not "
                    f"({first_line(error)}). Use other `axes`.",
                ) from error
        return product

    def loss_of_copy(self) -> Any:
        """Return the loss at the weights of the copy, without changing its buffers."""
        return functional_call(self._module, self._buffers_by_name({}, "model."), (), tie_weights=False)

    def predict(self, weights: Tensor, buffers: Tensor, x: Tensor) -> Tensor:
        """Return the model's output at inputs `x`.

        Raises:
            TypeError: if `x` is not a tensor.
            ValueError: if the model does not accept it.
        """
        check_type("x", x, Tensor, "a tensor", advice="Pass the inputs of model(x).")
        try:
            return functional_call(self._module.model, self._tensors_by_name(weights, buffers), (x,), tie_weights=False)
        except RuntimeError as error:
            raise ValueError(
                f"`x` must be an input of the model, got shape {tuple(x.shape)}; PyTorch says: {first_line(error)}. "
                "Pass the inputs of model(x)."
            ) from error

    def _tensors_by_name(self, weights: Tensor, buffers: Tensor, prefix: str = "") -> dict[str, Tensor]:
        """Return all tensors of the model under all their names."""
        state = self._buffers_by_name(self.buffer_layout.split(buffers), prefix)
        for entry, part in zip(self.layout.entries, self.layout.split(weights).values(), strict=True):
            tensor = part.to(self.parameters[entry.name].dtype)
            state.update((prefix + name, tensor) for name in entry.names)
        return state

    def _buffers_by_name(self, given: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
        """Return copies of the given buffers, else of the model's: a forward pass may write to them."""
        state: dict[str, Tensor] = {}
        for names, own in self._buffers:
            tensor = given.get(names[0], own).to(own.dtype, copy=True)
            state.update((prefix + name, tensor) for name in names)
        return state


def _move(model: nn.Module, device: str | torch.device | None) -> nn.Module:
    if device is None:
        return model
    check_type("device", device, (str, torch.device), "a device", advice="Use 'cpu' or 'cuda:0', for example.")
    try:
        return model.to(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"`device` must be available to PyTorch, got {device!r}: {first_line(error)}. "
            "Use 'cpu', or leave it out to use the model's."
        ) from error


class _LossModule(nn.Module):
    """`loss_fn(model)` as a forward pass, so that `functional_call` reaches the parameters inside it."""

    def __init__(self, model: nn.Module, loss_fn: LossFn) -> None:
        super().__init__()
        self.model = model
        self.loss_fn = loss_fn

    def forward(self) -> Any:  # `loss_fn` may return anything: see `check_scalar`
        return self.loss_fn(self.model)
