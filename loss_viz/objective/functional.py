"""A loss as a pure function of the weights, evaluated on a private copy of the model."""

import copy
import threading
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves

from loss_viz._validation import argument_error, check_type, first_line
from loss_viz.objective.frozen import (
    ForbidWrites,
    SharedParameters,
    SharedWriteError,
    UncompiledMode,
    choose_shared,
    find_storage,
)
from loss_viz.objective.layout import ParameterLayout, lay_out, names_by_id, parameter_layout
from loss_viz.objective.private_copy import (
    ChooseShared,
    LossFn,
    PrivateCopy,
    changed_attributes,
    copy_program,
    plain_attributes,
)

MAX_DIFFERENCE = 0.05  # of a Hessian-vector product from a difference of gradients, which in float32 is within 0.01


class ForwardProbe(UncompiledMode):
    """A context that observes a forward pass of a private copy.

    Args:
        own: tensors of the copy, by name.
        trained: names of the trained parameters among them.
        originals: tensors of the user's model, by name.

    Attributes:
        largest_bytes: bytes of the largest tensor that an operation returned.
        reads_parameters: whether an operation read a trained parameter.
        has_attention: whether an operation was an attention kernel.
        foreign: descriptions of trainable parameters, and of tensors of the user's model, that an operation read.
    """

    def __init__(self, own: Mapping[str, Tensor], trained: Iterable[str], originals: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.largest_bytes = 1
        self.reads_parameters = self.has_attention = False
        self.foreign: dict[str, None] = {}
        self._own = {find_storage(tensor) for tensor in own.values()}
        self._trained = {find_storage(own[name]) for name in trained}
        self._originals = {find_storage(tensor): name for name, tensor in originals.items() if tensor.numel()}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.has_attention |= "attention" in str(func) or "transformer" in str(func)
        for tensor in _tensors(args):
            place = find_storage(tensor)
            self.reads_parameters |= place in self._trained
            if place in self._originals:
                self.foreign[f"{self._originals[place]!r} of your own model"] = None
            elif isinstance(tensor, nn.Parameter) and tensor.requires_grad and place not in self._own:
                self.foreign[f"a trainable parameter of shape {tuple(tensor.shape)}, which is no part of it"] = None
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


class FunctionalLoss:
    """`loss_fn(model)` as a function of weights and other state, evaluated on a private copy in evaluation mode.

    Not thread-safe, because a call replaces the weights of the copy: use one `clone` per thread.

    Args:
        model: network to copy.
        loss_fn: loss of a model.
        device: device of the copy; the model's by default.

    Attributes:
        originals: the user's model, and what its loss names.
        layout: order and shapes of the trainable parameters, the weight vector.
        parameters: parameters of the copy, by name.
        initial_state: all other tensors by name, as they were when the copy was made: buffers, frozen parameters, and
            the tensors of modules that the loss names.
        loose: names of trainable tensors that the loss names and no module holds.
        switched: whether evaluation mode changes weights or attributes, as where a low-rank update is merged.
        shared: the large frozen parameters, which are not copied.

    Example:
        >>> loss = FunctionalLoss(nn.Linear(2, 1, bias=False), lambda m: m(torch.tensor([1.0, 10.0])).sum())
        >>> loss.loss_at(torch.tensor([3.0, 4.0]), {}).item()
        43.0
    """

    def __init__(self, model: nn.Module, loss_fn: LossFn, device: str | torch.device | None = None) -> None:
        advice = "Write it as lambda m: criterion(m(x), y)."
        check_type("loss_fn", loss_fn, Callable, "a function of a model", advice=advice)
        self.layout, self._device = parameter_layout(model), device
        self._choose_shared: ChooseShared = partial(
            choose_shared, trained={torch.Size(entry.shape) for entry in self.layout.entries}
        )
        try:
            self._copy(model, loss_fn)
        except SharedWriteError:  # evaluation mode merges something into the frozen parameters
            self._choose_shared = _share_nothing
            self._copy(model, loss_fn)

    def _copy(self, model: nn.Module, loss_fn: LossFn) -> None:
        self.originals, self._own = _copy_to(model, loss_fn, self._device, self._choose_shared)
        tensors = self._own.tensors()
        self.shared = SharedParameters(self.originals.tensors(), tensors)
        self._training = {name: module.training for name, module in self._own.model.named_modules()}
        before = [tensor._version for tensor in tensors.values()]
        self._attributes = plain_attributes(self._own.model)
        with ForbidWrites(self.shared.tensors):
            self._own.model.eval()
        changed = changed_attributes(self._attributes, plain_attributes(self._own.model))
        self.switched = bool(changed) or before != [tensor._version for tensor in tensors.values()]
        if self.switched:
            self._own = _copy_to(model, loss_fn, self._device, self._choose_shared)[1]
        trained = {entry.name for entry in self.layout.entries}
        self.initial_state = {
            # Frozen parameters may be large. They need no copy of their own, because nothing writes to them.
            name: tensor.detach() if isinstance(tensor, nn.Parameter) and not self.switched else tensor.detach().clone()
            for name, tensor in self._own.tensors().items()
            if name not in trained
        }
        self._own.model.eval()
        self._prepare()

    def clone(self, *, share: bool = True) -> "FunctionalLoss":
        """Return a loss on another copy of the model, with the same data.

        Args:
            share: use the memory of the large frozen parameters, too.
        """
        other = copy.copy(self)
        if not share:
            other.shared = SharedParameters({}, {})
        other._own = copy_program(self._own.model, self._own.loss_fn, other._select_shared(self._own))[1]
        other._prepare()
        return other

    def _select_shared(self, source: PrivateCopy) -> ChooseShared:
        """Return the choice of those parameters in `source` that have the memory of the shared ones."""
        places = {name: tensor.data_ptr() for name, tensor in self.shared.tensors.items()}
        chosen = {id(tensor) for name, tensor in source.tensors().items() if places.get(name) == tensor.data_ptr()}
        return lambda module: [parameter for parameter in module.parameters() if id(parameter) in chosen]

    def _prepare(self) -> None:
        self._module = _LossModule(self._own)
        tensors = self._own.tensors()
        keys = names_by_id(_all_names(self._module))
        self._keys = {name: keys.get(id(tensor), ()) for name, tensor in tensors.items()}
        self.loose = {name for name, found in self._keys.items() if not found}
        self.parameters = {entry.name: tensors[entry.name] for entry in self.layout.entries}
        self._buffers = [
            name for name, tensor in tensors.items() if not isinstance(tensor, nn.Parameter) and name not in self.loose
        ]

    @property
    def model(self) -> nn.Module:
        """The private copy of the model."""
        return self._own.model

    @property
    def loss_fn(self) -> LossFn:
        """The loss function, which names the private copies."""
        return self._own.loss_fn

    def state_layout(self, names: Iterable[str]) -> ParameterLayout:
        """Return the layout of some tensors that are not trained, under all their names in the model."""
        chosen = set(names)
        state = self.initial_state.items()
        return lay_out({self._model_names(name): tensor for name, tensor in state if name in chosen})

    def _model_names(self, name: str) -> tuple[str, ...]:
        in_model = tuple(key.removeprefix("model.") for key in self._keys[name] if key.startswith("model."))
        return in_model or (name,)

    def loss_at(self, weights: Tensor, state: Mapping[str, Tensor]) -> Tensor:
        """Return the loss at one weight vector `(n_params,)`, with some of the other tensors by name."""
        # All names of tied tensors are given: tie_weights=True would take as long as a layer of a small network.
        return functional_call(self._module, self._tensors_by_name(weights, state), (), tie_weights=False)

    def losses_in_loop(self, weights: Tensor, states: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """Return the losses `(n,)` at weight vectors `(n, n_params)`, one at a time; the copy keeps the last weights.

        The weights are copied into the parameters, which is faster than replacing them, and leaves them what a loss may
        ask for: parameters that require a gradient.
        """
        own = [parameter.data for parameter in self.parameters.values()]
        columns = zip(weights.split(self.layout.sizes, dim=1), self.layout.entries, strict=True)
        parts = [entry.unflatten(part) for part, entry in columns]
        losses = []
        for row, state in zip(zip(*parts, strict=True), states, strict=True):
            torch._foreach_copy_(own, list(row))
            self._set_loose(state)
            tensors = self._state_by_name(state)
            loss = functional_call(self._module, tensors, (), tie_weights=False) if tensors else self._module()
            losses.append(loss.detach().clone())  # it may be a view of a weight, which the next row replaces
        return torch.stack(losses)

    def losses_by_loading(self, weights: Tensor, states: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """Return the same losses, loading each state as a whole before the model is put into evaluation mode.

        The slow way, for models whose evaluation mode changes weights.
        """
        losses = []
        for row, state in zip(weights, states, strict=True):
            self.load(row, state)
            losses.append(self._module().detach().clone())
        return torch.stack(losses)

    def load(self, weights: Tensor, state: Mapping[str, Tensor]) -> None:
        """Load one whole state into the copy as it would be in training, and put it into evaluation mode."""
        self.reset(weights, state)
        self.model.eval()

    def reset(self, weights: Tensor, state: Mapping[str, Tensor]) -> None:
        """Load one whole state into the copy, in the mode in which the model was copied."""
        self._load_into(self._own, weights, state)

    def loss_of_fresh_copy(self, weights: Tensor, state: Mapping[str, Tensor]) -> tuple[float, list[str]]:
        """Return the loss of another copy of the user's model, and the plain attributes that have changed there.

        Nothing of the usual evaluation is used: the model is copied as it is now, the whole state is loaded in place,
        and the copy is put into evaluation mode. If the model has other tensors by now, the private copy is copied.
        """
        known, now = self._own.tensors(), self.originals.tensors()
        same = {name: tensor.shape for name, tensor in known.items()} == {name: t.shape for name, t in now.items()}
        source = self.originals if same else self._own
        _, fresh = _copy_to(source.model, source.loss_fn, self._device, self._select_shared(source))
        self._load_into(fresh, weights, state)
        fresh.model.eval()
        return float(fresh.loss_fn(fresh.model)), changed_attributes(self._attributes, plain_attributes(fresh.model))

    def _load_into(self, own: PrivateCopy, weights: Tensor, state: Mapping[str, Tensor]) -> None:
        for name, module in own.model.named_modules():
            if module.training != self._training.get(name, module.training):
                module.train(self._training[name])
        tensors = own.tensors()
        with torch.no_grad():
            for name, value in (self.initial_state | dict(state) | self.layout.split(weights)).items():
                if name in tensors and name in self.shared.tensors:
                    tensors[name].data = value  # without a write to the memory of the user's model
                elif name in tensors:
                    tensors[name].data.copy_(value)

    def gradients(self, weights: Tensor, states: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """Return the gradients at weight vectors `(n, n_params)`, computed one at a time.

        Raises:
            ValueError: if the loss cannot be differentiated.
        """
        gradients = []
        with torch.enable_grad():
            for at, state in zip([one.clone().requires_grad_() for one in weights], states, strict=True):
                self._set_loose(state)
                try:
                    gradients += torch.autograd.grad(self.loss_at(at, state), at)
                except RuntimeError as error:
                    raise ValueError(
                        "A gradient needs a loss that PyTorch can differentiate, this one is not "
                        f"({first_line(error)}). Compute it from the model's output with tensor operations only."
                    ) from error
        return torch.stack(gradients)

    def hessian_vector_product(self, weights: Tensor, state: Mapping[str, Tensor], vector: Tensor) -> Tensor:
        """Return the product of the Hessian at one weight vector and another vector.

        By double backpropagation; where that cannot be had (compiled layers, fused kernels), by a central difference of
        gradients, Hv ≈ (g(w + hv) - g(w - hv)) / 2h, with a warning. Functions with a backward pass of their own are
        checked against that difference, because PyTorch silently leaves them out if it cannot differentiate them again.

        Raises:
            ValueError: if the loss cannot be differentiated.
        """
        self._set_loose(state)
        with torch.enable_grad():
            at = weights.requires_grad_()
            loss = self.loss_at(at, state)
            try:
                [gradient] = torch.autograd.grad(loss, at, create_graph=True)
            except RuntimeError as error:
                raise argument_error(
                    "axes",
                    "The Hessian needs a loss that PyTorch can differentiate twice, this one is not "
                    f"({first_line(error)}). Use other `axes`.",
                ) from error
            product, cause = None, "it leaves out a function with a backward pass of its own"
            try:
                [product] = torch.autograd.grad(gradient, at, vector)
            except RuntimeError as error:
                cause = first_line(error)
        if product is not None and not _has_own_backward(loss):
            return product
        difference = self._difference_gradients(at.detach(), state, vector)
        if product is None and not difference.any():  # the gradient is constant
            return difference
        if product is not None and (product - difference).norm() <= MAX_DIFFERENCE * difference.norm():
            return product
        warnings.warn(
            f"PyTorch cannot differentiate this loss twice ({cause}). Products with its Hessian are differences of two "
            "gradients, which is less accurate.",
            RuntimeWarning,
            stacklevel=4,
        )
        return difference

    def _difference_gradients(self, weights: Tensor, state: Mapping[str, Tensor], vector: Tensor) -> Tensor:
        size = vector.double().norm()
        if size == 0:
            return torch.zeros_like(weights)
        # The cube root balances rounding, eps / h, and the next term of the series, h².
        eps = max(torch.finfo(p.dtype).eps for p in self.parameters.values())
        step = float(eps ** (1 / 3) * (1 + weights.double().norm()) / size)
        ahead, behind = self.gradients(torch.stack([weights + step * vector, weights - step * vector]), [state, state])
        return (ahead - behind) / (2 * step)

    def probe(self, weights: Tensor) -> tuple[Any, ForwardProbe]:
        """Return the loss at weights and the initial state, and what was observed during the forward pass."""
        if self.switched:  # merging, which happens on the way to evaluation mode, reads weights, too
            self.reset(weights, {})
        shared = self.shared.tensors
        probe = ForwardProbe(self._own.tensors(), self.parameters, _without(self.originals.tensors(), shared))
        try:
            with ForbidWrites(shared), probe:
                self.model.eval()
                return self.loss_of_copy(), probe
        except SharedWriteError as error:
            raise argument_error(
                "model",
                f"`model` must not write to its frozen parameters in evaluation mode, it writes to {str(error)!r}. "
                "Register a tensor that changes as a buffer.",
            ) from error

    def loss_of_copy(self) -> Any:
        """Return the loss at the weights of the copy, without changing its buffers."""
        return functional_call(self._module, self._state_by_name({}), (), tie_weights=False)

    def predict(self, weights: Tensor, state: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Return the model's output at inputs `x`.

        Raises:
            TypeError: if `x` is not a tensor.
            ValueError: if the model does not accept it.
        """
        check_type("x", x, Tensor, "a tensor", advice="Pass the inputs of model(x).")
        tensors = self._tensors_by_name(weights, state)
        inside = {key.removeprefix("model."): value for key, value in tensors.items() if key.startswith("model.")}
        try:
            return functional_call(self.model, inside, (x,), tie_weights=False)
        except RuntimeError as error:
            raise ValueError(
                f"`x` must be an input of the model, got shape {tuple(x.shape)}; PyTorch says: {first_line(error)}. "
                "Pass the inputs of model(x)."
            ) from error

    def _tensors_by_name(self, weights: Tensor, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return weights and state under all their names in `_LossModule`."""
        tensors = self._state_by_name(state)
        for name, part in self.layout.split(weights).items():
            tensor = part.to(self.parameters[name].dtype)
            tensors.update((key, tensor) for key in self._keys[name])
        return tensors

    def _state_by_name(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return copies of the given tensors, and of all buffers: a forward pass may write to them."""
        tensors: dict[str, Tensor] = {}
        for name in {**dict.fromkeys(self._buffers), **given}:
            own = self.initial_state.get(name)
            if own is not None:
                tensor = given.get(name, own).to(own.dtype, copy=True)
                tensors.update((key, tensor) for key in self._keys[name])
        return tensors

    def _set_loose(self, state: Mapping[str, Tensor]) -> None:
        if self.loose:
            tensors = self._own.tensors()
            for name in self.loose:
                tensors[name].data.copy_(state.get(name, self.initial_state[name]))


def _has_own_backward(loss: Tensor) -> bool:
    """Return whether the graph of a loss contains a `torch.autograd.Function` written in Python."""
    nodes, seen = [loss.grad_fn], set[Any]()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            return True
        seen.add(node)
        nodes += [before for before, _ in node.next_functions]
    return False


def _all_names(module: nn.Module) -> list[tuple[str, Tensor]]:
    parameters, buffers = module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False)
    return [*parameters, *buffers]


def _without(tensors: Mapping[str, Tensor], names: Collection[str]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name not in names}


def _share_nothing(module: nn.Module) -> list[nn.Parameter]:
    return []


def _copy_to(
    model: nn.Module, loss_fn: LossFn, device: str | torch.device | None, choose: ChooseShared
) -> tuple[PrivateCopy, PrivateCopy]:
    """Return a model and its loss, and a private copy of both on a device."""
    originals, own = copy_program(model, loss_fn, choose)
    for layer in own.model.modules():
        if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
            layer.sparse = False  # the loss is the same, and it can be differentiated twice
    if device is None:
        return originals, own
    check_type("device", device, (str, torch.device), "a device", advice="Use 'cpu' or 'cuda:0', for example.")
    try:
        for part in (own.model, *own.companions.values()):
            if isinstance(part, nn.Module):
                part.to(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"`device` must be available to PyTorch, got {device!r}: {first_line(error)}. "
            "Use 'cpu', or leave it out to use the model's."
        ) from error
    return originals, own


class _LossModule(nn.Module):
    """`loss_fn(model)` as a forward pass, so that `functional_call` reaches the parameters inside it."""

    def __init__(self, own: PrivateCopy) -> None:
        super().__init__()
        self.model = own.model
        for i, part in enumerate(own.companions.values()):
            if isinstance(part, nn.Module):
                self.add_module(f"companion_{i}", part)
        self._loss_fn = (own.loss_fn,)  # a module here would be registered

    def forward(self) -> Any:  # `loss_fn` may return anything: see `check_scalar`
        return self._loss_fn[0](self.model)
