"""The loss at many weight vectors, batched."""

import copy
import threading
import uuid
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import grad, vmap

from loss_viz._validation import check_array, first_line
from loss_viz.objective.batching import (
    MAX_ATTENTION_CHUNK,
    NarrowLinearMode,
    ThreadTuner,
    choose_chunk_size,
    has_narrow_layers,
    reserve_heap,
)
from loss_viz.objective.functional import (
    ForwardProbe,
    FunctionalLoss,
    LossFn,
    check_scalar,
    copy_model,
    unfused_attention,
    unwrap_model,
)


class Objective:
    """The loss as a function of the flat weight vector, evaluated for many vectors in one pass.

    `loss_fn(model)` is any closure that returns a scalar tensor. It is called on a private copy of the model, in
    **evaluation mode** and without autocast, with each weight vector in place of the trainable parameters
    (`torch.func.functional_call`), batched by `torch.func.vmap` in chunks that fit in a core's cache. So dropout is off
    and batch normalization uses its running statistics, unless `loss_fn` itself calls `model.train()`. The original
    model is never changed: neither weights, mode and buffers nor PyTorch's random state.

    If `vmap` cannot batch the model (recurrent layers, control flow that depends on the data, ...) the vectors are
    evaluated one at a time, with a warning that gives the reason.

    Args:
        model: network; its trainable parameters, in `model.parameters()` order, make up the vector.
        loss_fn: loss of a model on fixed data; it must use the model that it receives.
        device: device of the evaluation, such as `"cuda"`; the model's by default. The data of `loss_fn` must be on it.

    Attributes:
        model: the model, without the wrapper of `torch.compile` or data parallelism.
        loss_fn: the loss of a model.
        layout: order and shapes of the parameters in the weight vector.
        buffer_layout: order and shapes of the floating-point buffers.
        n_params: length of a weight vector.
        initial_weights: `(n_params,)`, the weights of the model when the objective was made.
        initial_buffers: `(n_buffers,)`, its floating-point buffers at that time.
        chunk_size: number of vectors evaluated in one pass.
        device: device of the evaluation.

    Raises:
        TypeError: if `model` is not a module, `loss_fn` not a function, or `loss_fn(model)` not a tensor.
        ValueError: if the loss is not scalar or not reproducible, or the model has no trainable parameter.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> objective = Objective(model, lambda m: m(torch.tensor([1.0, 10.0])).sum())
        >>> objective(np.array([[1.0, 2.0], [3.0, 4.0], [0.5, 0.0]]))
        array([21. , 43. ,  0.5])
    """

    def __init__(self, model: nn.Module, loss_fn: LossFn, *, device: str | torch.device | None = None) -> None:
        reserve_heap()
        self.model = model = unwrap_model(model)
        self.loss_fn = loss_fn
        self._loss = FunctionalLoss(model, loss_fn, device)
        self._idle, self._returned = [self._loss], threading.Condition()
        self.layout, self.buffer_layout = self._loss.layout, self._loss.buffer_layout
        self.n_params = self.layout.n
        self.device = next(iter(self._loss.parameters.values())).device
        self.initial_weights = self.layout.join(dict(model.named_parameters())).numpy()
        self.initial_buffers = self.buffer_layout.join(dict(model.named_buffers())).numpy()
        self._lock, self._tuner, self._token = threading.Lock(), ThreadTuner(), uuid.uuid4().hex
        self._is_random, self._has_attention = True, False  # until `_probe` has found out
        with self._isolated():
            loss, largest = self._probe()
        with self._isolated():
            self._narrow = has_narrow_layers(model)
            self._evaluate = self._evaluate_batch
            fitting = choose_chunk_size(largest, self.initial_weights.nbytes, self.device, narrow=self._narrow)
            self.chunk_size = fitting if self._can_batch(loss) else 1
        # Fused attention, which cannot be batched, is faster than small batches without it.
        if self.chunk_size == 1 or (self._has_attention and self.chunk_size <= MAX_ATTENTION_CHUNK):
            self._evaluate = self._evaluate_singly

    def __call__(
        self, weights: Float[np.ndarray, "n n_params"], buffers: Float[np.ndarray, "n n_buffers"] | None = None
    ) -> Float[np.ndarray, " n"]:
        """Return the losses `(n,)` in float64 at weight vectors `(n, n_params)`, computed in the model's precision.

        Args:
            weights: weight vectors as rows.
            buffers: `(n, n_buffers)`, the buffers for each row; the model's by default.

        Raises:
            TypeError: if they are not arrays of real numbers.
            ValueError: if they have other shapes.
        """
        weights, buffers = self._read(weights, buffers)
        losses = np.empty(len(weights))
        with self._isolated(fused=True):
            for rows, chunk, state in self._chunks(weights, buffers):
                with self._tuner.limit(len(chunk) if len(chunk) == self.chunk_size else 0):
                    losses[rows] = self._evaluate(chunk, state).double().cpu().numpy()
        return losses

    def predict(
        self, weights: Float[np.ndarray, " n_params"], x: Tensor, buffers: Float[np.ndarray, " n_buffers"] | None = None
    ) -> Tensor:
        """Return the model's output at inputs `x` and weights `(n_params,)`.

        Raises:
            TypeError: if an argument has another type.
            ValueError: if an array has another shape, or the model does not accept `x`.
        """
        with self._isolated(), self._borrow() as loss:
            return loss.predict(*self._tensors(weights, buffers), x)

    def network(
        self, weights: Float[np.ndarray, " n_params"], buffers: Float[np.ndarray, " n_buffers"] | None = None
    ) -> nn.Module:
        """Return a copy of the model, in evaluation mode, with these weights `(n_params,)` and buffers.

        Raises:
            TypeError: if an argument is not an array of real numbers.
            ValueError: if it has another shape.
        """
        parameters, state = self._tensors(weights, buffers)
        model = copy_model(self.model).to(self.device).eval()
        tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        with torch.no_grad():
            for name, value in (self.layout.split(parameters) | self.buffer_layout.split(state)).items():
                tensors[name].copy_(value)
        return model

    def with_batch_statistics(self) -> "Objective | None":
        """Return the loss with batch normalization on the statistics of the data instead of the running ones.

        None if the model has no batch normalization with running statistics.
        """
        model = copy_model(self.model)
        layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase) and m.track_running_stats]
        for layer in layers:
            layer.track_running_stats = False
            layer.running_mean = layer.running_var = layer.num_batches_tracked = None
        if not layers:
            return None
        # Not a new objective: it would draw random numbers to probe the loss, in the panel beside the user's own code.
        other = copy.copy(self)
        other.model, other._loss = model, FunctionalLoss(model, self.loss_fn, self.device)
        other._idle, other._returned = [other._loss], threading.Condition()
        other.buffer_layout, other.initial_buffers = other._loss.buffer_layout, self.initial_buffers[:0]
        other.chunk_size, other._evaluate = 1, other._evaluate_singly
        return other

    def gradients(
        self, weights: Float[np.ndarray, "n n_params"], buffers: Float[np.ndarray, "n n_buffers"] | None = None
    ) -> Float[np.ndarray, "n n_params"]:
        """Return the gradients of the loss at weight vectors `(n, n_params)`, in float64; batched if possible.

        Raises:
            TypeError: if they are not arrays of real numbers.
            ValueError: if they have other shapes, or the loss cannot be differentiated.
        """
        weights, buffers = self._read(weights, buffers)
        gradients = np.empty(weights.shape)
        compute = vmap(grad(self._loss_at), randomness="same") if self.chunk_size > 1 else self._gradients_singly
        with self._isolated():
            for rows, chunk, state in self._chunks(weights, buffers):
                try:
                    part = compute(chunk, state)
                except RuntimeError:  # vmap can batch the loss, but not its derivative
                    compute = self._gradients_singly
                    part = compute(chunk, state)
                gradients[rows] = part.double().cpu().numpy()
        return gradients

    def hessian_vector_product(
        self,
        weights: Float[np.ndarray, " n_params"],
        vector: Float[np.ndarray, " n_params"],
        buffers: Float[np.ndarray, " n_buffers"] | None = None,
    ) -> Float[np.ndarray, " n_params"]:
        """Return the product of the Hessian at `weights` and a vector, by double backpropagation.

        Raises:
            TypeError: if they are not arrays of real numbers.
            ValueError: if they have other shapes, or the loss cannot be differentiated twice.
        """
        with self._isolated(), self._borrow() as loss:
            at, state = self._tensors(weights, buffers)
            product = loss.hessian_vector_product(at, state, self._tensors(vector)[0])
            return product.double().cpu().numpy()

    def _loss_at(self, weights: Tensor, buffers: Tensor) -> Tensor:
        with self._borrow() as loss:
            return loss.loss_at(weights, buffers)

    def _gradients_singly(self, weights: Tensor, buffers: Tensor) -> Tensor:
        with self._borrow() as loss:
            return loss.gradients(weights, buffers)

    def _evaluate_batch(self, weights: Tensor, buffers: Tensor) -> Tensor:
        with ExitStack() as stack:
            stack.enter_context(unfused_attention() if self._has_attention else nullcontext())
            stack.enter_context(NarrowLinearMode() if self._narrow else nullcontext())
            loss = stack.enter_context(self._borrow())
            return vmap(loss.loss_at, randomness="same")(weights, buffers)

    def _evaluate_singly(self, weights: Tensor, buffers: Tensor) -> Tensor:
        with self._borrow() as loss:
            return loss.losses_in_loop(weights, buffers)

    @contextmanager
    def _borrow(self) -> Iterator[FunctionalLoss]:
        """Yield a private copy that no other thread is using. A thread that had to wait for one adds a clone."""
        with self._returned:
            waited = not self._idle
            while not self._idle:
                self._returned.wait()
            loss = self._idle.pop()
            if waited:
                self._idle.append(loss.clone())
                self._returned.notify()
        try:
            yield loss
        finally:
            with self._returned:
                self._idle.append(loss)
                self._returned.notify()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as constructor arguments; a worker rebuilds the objective once and reuses it."""
        return _rebuild, (self._token, self.model, self.loss_fn, self.device, self.chunk_size)

    @contextmanager
    def _isolated(self, fused: bool = False) -> Iterator[None]:
        """Disable gradients and autocast and restore PyTorch's random state, for one thread at a time if it is used.

        Args:
            fused: allow fused attention.
        """
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            if self.device.type in ("cpu", "cuda"):
                stack.enter_context(torch.autocast(self.device.type, enabled=False))
            if self._has_attention and not fused:
                stack.enter_context(unfused_attention())
            if self._is_random:
                stack.enter_context(self._lock)
                stack.enter_context(torch.random.fork_rng([self.device] if self.device.type == "cuda" else []))
            yield

    def _chunks(
        self, weights: Float[np.ndarray, "n n_params"], buffers: Float[np.ndarray, "n n_buffers"] | None
    ) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield the rows of each pass, their weights and their buffers."""
        for start in range(0, len(weights), self.chunk_size):
            rows = slice(start, start + self.chunk_size)
            chunk = self._tensor(weights[rows])
            own = np.broadcast_to(self.initial_buffers, (len(chunk), len(self.initial_buffers)))
            yield rows, chunk, self._tensor(own if buffers is None else buffers[rows])

    def _tensors(self, weights: Any, buffers: Any = None) -> tuple[Tensor, Tensor]:
        """Check one weight vector and its buffers, and move them to the device."""
        weights, buffers = self._read(weights, buffers, single=True)
        return self._tensor(weights), self._tensor(self.initial_buffers if buffers is None else buffers)

    def _read(self, weights: Any, buffers: Any, *, single: bool = False) -> tuple[np.ndarray, np.ndarray | None]:
        """Convert weight vectors as rows, or a single one, and their buffers if given to arrays."""
        advice = "Pass one vector, as in run.weights[-1]." if single else "For a single vector pass weights[None]."
        weights = check_array("weights", weights, (self.n_params,) if single else ("n", self.n_params), advice=advice)
        if buffers is None:
            return weights, None
        advice = "Pass one row of buffers for each weight vector, or none to use the model's."
        return weights, check_array("buffers", buffers, (*weights.shape[:-1], self.buffer_layout.n), advice=advice)

    def _tensor(self, array: Float[np.ndarray, "*shape"]) -> Tensor:
        array = np.ascontiguousarray(array)  # PyTorch does not support negative strides
        return torch.tensor(array, dtype=self.layout.dtype, device=self.device)

    def _probe(self) -> tuple[Tensor, int]:
        """Return the loss of the model and the bytes of the largest tensor in its evaluation."""
        random = torch.get_rng_state()
        with ForwardProbe(self._loss.parameters.values()) as probe:
            loss = self._evaluate_copy()
        check_scalar(loss)
        if not probe.reads_parameters:
            raise ValueError(
                "`loss_fn(model)` must use the model that it receives, it read none of its parameters. "
                "Write it as lambda m: criterion(m(x), y), using m instead of the model's own name."
            )
        self._is_random = self.device.type == "cuda" or not torch.equal(random, torch.get_rng_state())
        self._has_attention = probe.has_attention
        again = self._evaluate_copy()
        if not torch.equal(loss, again) and not (loss.isnan() and again.isnan()):
            raise ValueError(
                f"`loss_fn(model)` must give the same loss twice, got {float(loss):.6g} and {float(again):.6g}. "
                "Use a fixed set of data, and torch.manual_seed(0) inside it if it draws random numbers."
            )
        return loss, probe.largest_bytes

    def _evaluate_copy(self) -> Any:
        try:
            return self._loss.loss_of_copy()
        except RuntimeError as error:
            if "device" not in str(error):
                raise
            raise ValueError(
                f"The data of `loss_fn` must be on the device of the evaluation, {self.device}; PyTorch says: "
                f"{first_line(error)}. Move it with x.to({str(self.device)!r})."
            ) from error

    def _can_batch(self, loss: Tensor) -> bool:
        """Return whether `vmap` gives the same loss; warn if not."""
        weights, buffers = self._tensor(self.initial_weights), self._tensor(self.initial_buffers)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                pair = self._evaluate(torch.stack([weights, weights]), torch.stack([buffers, buffers]))
                rtol = max(1e-3, *(4 * torch.finfo(p.dtype).eps for p in self._loss.parameters.values()))
                reason = "" if torch.allclose(pair, loss, rtol=rtol, equal_nan=True) else "it gave another loss"
            except Exception as error:  # a user's code may fail in any way on batched tensors
                reason = str(error).strip().split("\n")[0] or type(error).__name__
        reason = reason or next((str(w.message) for w in caught if "batching rule" in str(w.message)), "")
        if reason:
            warnings.warn(
                f"torch.func.vmap cannot batch this model ({reason.split('. ')[0]}); weight vectors are evaluated one "
                "at a time, which is slower but gives the same losses.",
                RuntimeWarning,
                stacklevel=3,
            )
        return not reason


_REBUILT: dict[str, Objective] = {}  # the last objective received from another process


def _rebuild(token: str, model: nn.Module, loss_fn: LossFn, device: torch.device, chunk_size: int) -> Objective:
    if token not in _REBUILT:
        _REBUILT.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # the original has warned already
            _REBUILT[token] = Objective(model, loss_fn, device=device)
        _REBUILT[token].chunk_size = chunk_size
    return _REBUILT[token]
