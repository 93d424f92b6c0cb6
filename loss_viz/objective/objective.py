"""From weight vectors to losses: many at once, and never through the user's own model."""

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

from loss_viz._validation import first_line
from loss_viz.objective.batching import (
    MAX_ATTENDING,
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
    unfused_attention,
    unwrap_model,
)
from loss_viz.objective.layout import read_row, read_rows


class Objective:
    """The loss as a function of the flat weight vector, evaluated for many vectors in one pass.

    `loss_fn(model)` is any closure that returns a scalar tensor. It is called on a private copy of the model, in
    **evaluation mode** and without autocast, whose parameters are replaced by each weight vector in turn
    (`torch.func.functional_call`), batched by `torch.func.vmap` in chunks that fit a core's cache. So dropout is off
    and batch normalization uses its running statistics, unless `loss_fn` itself calls `model.train()`. The model
    given stays as it is: weights, mode, buffers, and PyTorch's random state too.

    Where `vmap` cannot batch the model (recurrent layers, control flow that depends on the data, ...) the vectors are
    evaluated one at a time, with a warning that says why.

    Args:
        model: the network; its trainable parameters, in `model.parameters()` order, make up the vector.
        loss_fn: the loss of a model, on data of its own; it must use the model that it is handed.
        device: where to evaluate, such as `"cuda"`; that of the model by default. The data of `loss_fn` must be there.

    Attributes:
        model: the model that was given, without the wrapper of `torch.compile` or data parallelism.
        loss_fn: the loss that was given.
        layout: names and shapes of the parameters within the vector.
        buffer_layout: likewise for the floating-point buffers.
        n_params: length of a weight vector.
        initial_weights: `(n_params,)`, the weights of the model when it was given.
        initial_buffers: `(n_buffers,)`, its floating-point buffers then.
        chunk_size: vectors that are evaluated in one pass.

    Raises:
        TypeError: `model` is no module, `loss_fn` no function, or `loss_fn(model)` not a tensor.
        ValueError: it is not scalar, or not the same twice, or there is no trainable parameter.

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
        self._pure = FunctionalLoss(model, loss_fn, device)
        self._idle, self._returned = [self._pure], threading.Condition()
        self.layout, self.buffer_layout = self._pure.layout, self._pure.buffer_layout
        self.n_params = self.layout.n
        self._device = next(iter(self._pure.parameters.values())).device
        self.initial_weights = self.layout.join(dict(model.named_parameters())).numpy()
        self.initial_buffers = self.buffer_layout.join(dict(model.named_buffers())).numpy()
        self._lock, self._pace, self._token = threading.Lock(), ThreadTuner(), uuid.uuid4().hex
        self._draws, self._attends = True, False  # random numbers, attention: `_probe` looks
        with self._guard():
            loss, largest = self._probe()
        with self._guard():
            self._narrow = has_narrow_layers(model)
            self._evaluate = self._evaluate_batch
            fitting = choose_chunk_size(largest, self.initial_weights.nbytes, self._device, narrow=self._narrow)
            self.chunk_size = fitting if self._can_batch(loss) else 1
        # Fused attention, which cannot be batched, is quicker than small batches without it.
        if self.chunk_size == 1 or (self._attends and self.chunk_size <= MAX_ATTENDING):
            self._evaluate = self._evaluate_singly

    def __call__(
        self, weights: Float[np.ndarray, "n n_params"], buffers: Float[np.ndarray, "n n_buffers"] | None = None
    ) -> Float[np.ndarray, " n"]:
        """Losses `(n,)` in float64 at weight vectors `(n, n_params)`; computed in the model's precision.

        Args:
            weights: one row a weight vector.
            buffers: `(n, n_buffers)`, the buffers that go with each row; those of the model by default.

        Raises:
            TypeError, ValueError: no arrays of real numbers, or of another shape.
        """
        weights, buffers = read_rows(self.layout, self.buffer_layout, weights, buffers)
        losses = np.empty(len(weights))
        with self._guard(plain=False):
            for rows, chunk, state in self._chunks(weights, buffers):
                with self._pace.keep(len(chunk) if len(chunk) == self.chunk_size else 0):
                    losses[rows] = self._evaluate(chunk, state).double().cpu().numpy()
        return losses

    def predict(
        self,
        weights: Float[np.ndarray, " n_params"],
        x: Tensor,
        buffers: Float[np.ndarray, " n_buffers"] | None = None,
    ) -> Tensor:
        """What the model answers at inputs `x` with the weights `(n_params,)` in place of its own.

        Raises:
            TypeError, ValueError: no arrays of real numbers, or of another shape; inputs that the model does not take.
        """
        weights, buffers = read_row(self.layout, self.buffer_layout, weights, buffers)
        with self._guard(), self._borrow() as pure:
            state = self._tensor(self.initial_buffers if buffers is None else buffers)
            return pure.predict(self._tensor(weights), state, x)

    def gradients(
        self, weights: Float[np.ndarray, "n n_params"], buffers: Float[np.ndarray, "n n_buffers"] | None = None
    ) -> Float[np.ndarray, "n n_params"]:
        """Gradients of the loss at weight vectors `(n, n_params)`, in float64; batched where `torch.func` can.

        Raises:
            TypeError, ValueError: no arrays of real numbers, or of another shape; the loss cannot be differentiated.
        """
        weights, buffers = read_rows(self.layout, self.buffer_layout, weights, buffers)
        slopes = np.empty(weights.shape)
        batched = vmap(grad(self._loss_at), randomness="same") if self.chunk_size > 1 else None
        with self._guard():
            for rows, at, state in self._chunks(weights, buffers):
                try:
                    part = self._differentiate(at, state) if batched is None else batched(at, state)
                except RuntimeError:  # the loss can be batched, its derivative cannot
                    batched, part = None, self._differentiate(at, state)
                slopes[rows] = part.double().cpu().numpy()
        return slopes

    def _differentiate(self, weights: Tensor, buffers: Tensor) -> Tensor:
        with self._borrow() as pure:
            return pure.differentiate(weights, buffers)

    def hessian_vector_product(
        self,
        weights: Float[np.ndarray, " n_params"],
        vector: Float[np.ndarray, " n_params"],
        buffers: Float[np.ndarray, " n_buffers"] | None = None,
    ) -> Float[np.ndarray, " n_params"]:
        """The Hessian of the loss at `weights` times a vector, by differentiating twice; never the matrix.

        Raises:
            TypeError, ValueError: no arrays of real numbers, or of another shape; a loss that does not depend on the
                weights smoothly enough to be differentiated twice.
        """
        weights, buffers = read_row(self.layout, self.buffer_layout, weights, buffers)
        vector, _ = read_row(self.layout, self.buffer_layout, vector, None)
        with self._guard(), self._borrow() as pure:
            state = self._tensor(self.initial_buffers if buffers is None else buffers)
            return (
                pure.hessian_vector_product(self._tensor(weights), state, self._tensor(vector)).double().cpu().numpy()
            )

    def _loss_at(self, weights: Tensor, buffers: Tensor) -> Tensor:
        with self._borrow() as pure:
            return pure.at(weights, buffers)

    def _evaluate_batch(self, weights: Tensor, buffers: Tensor) -> Tensor:
        with ExitStack() as stack:
            stack.enter_context(unfused_attention() if self._attends else nullcontext())
            stack.enter_context(NarrowLinearMode() if self._narrow else nullcontext())
            pure = stack.enter_context(self._borrow())
            return vmap(pure.at, randomness="same")(weights, buffers)

    def _evaluate_singly(self, weights: Tensor, buffers: Tensor) -> Tensor:
        with self._borrow() as pure:
            return pure.losses_in_loop(weights, buffers)

    @contextmanager
    def _borrow(self) -> Iterator[FunctionalLoss]:
        """A private copy that no other thread is using; a thread that has to wait for one leaves another behind."""
        with self._returned:
            waited = not self._idle
            while not self._idle:
                self._returned.wait()
            pure = self._idle.pop()
            if waited:
                self._idle.append(pure.clone())
                self._returned.notify()
        try:
            yield pure
        finally:
            with self._returned:
                self._idle.append(pure)
                self._returned.notify()

    def __reduce__(self) -> tuple[Any, ...]:
        """What another process needs to make it again; it does so once, and not for every task."""
        return _rebuild, (self._token, self.model, self.loss_fn, self._device, self.chunk_size)

    @contextmanager
    def _guard(self, plain: bool = True) -> Iterator[None]:
        """Without gradients, and with the random state of PyTorch as it was: one thread at a time where it is used."""
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            if self._device.type in ("cpu", "cuda"):
                stack.enter_context(torch.autocast(self._device.type, enabled=False))
            if self._attends and plain:
                stack.enter_context(unfused_attention())
            if self._draws:
                stack.enter_context(self._lock)
                stack.enter_context(torch.random.fork_rng([self._device] if self._device.type == "cuda" else []))
            yield

    def _chunks(
        self, weights: Float[np.ndarray, "n n_params"], buffers: Float[np.ndarray, "n n_buffers"] | None
    ) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Rows that are evaluated in one pass, their weights, and the buffers that go with them."""
        for start in range(0, len(weights), self.chunk_size):
            rows = slice(start, start + self.chunk_size)
            chunk = self._tensor(weights[rows])
            own = np.broadcast_to(self.initial_buffers, (len(chunk), len(self.initial_buffers)))
            yield rows, chunk, self._tensor(own if buffers is None else buffers[rows])

    def _tensor(self, array: Float[np.ndarray, "*shape"]) -> Tensor:
        forwards = np.ascontiguousarray(array)  # PyTorch takes no array that is read backwards
        return torch.tensor(forwards, dtype=self.layout.dtype, device=self._device)

    def _probe(self) -> tuple[Tensor, int]:
        """The loss of the model as it stands, and the bytes of the largest tensor on the way to it."""
        random = torch.get_rng_state()
        with ForwardProbe(self._pure.parameters.values()) as probe:
            loss = self._evaluate_own()
        check_scalar(loss)
        if not probe.touched:
            raise ValueError(
                "`loss_fn(model)` must use the model that it is handed, it read none of its parameters. "
                "Write it as lambda m: criterion(m(x), y), with m in it and not the model's own name."
            )
        self._draws = self._device.type == "cuda" or not torch.equal(random, torch.get_rng_state())
        self._attends = probe.attends
        again = self._evaluate_own()
        if not torch.equal(loss, again) and not (loss.isnan() and again.isnan()):
            raise ValueError(
                f"`loss_fn(model)` must give the same loss twice, got {float(loss):.6g} and {float(again):.6g}. "
                "Use a fixed set of data, and torch.manual_seed(0) inside it where it draws random numbers."
            )
        return loss, probe.n_bytes

    def _evaluate_own(self) -> Any:
        try:
            return self._pure.loss_of_copy()
        except RuntimeError as error:
            if "device" not in str(error):
                raise
            raise ValueError(
                f"The data of `loss_fn` must be where the model is evaluated, on {self._device}; PyTorch says: "
                f"{first_line(error)}. Move it there, as in x.to({str(self._device)!r})."
            ) from error

    def _can_batch(self, loss: Tensor) -> bool:
        """Whether `vmap` gives the same loss; if not, a warning says why."""
        weights, buffers = self._tensor(self.initial_weights), self._tensor(self.initial_buffers)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                pair = self._evaluate(torch.stack([weights, weights]), torch.stack([buffers, buffers]))
                rtol = max(1e-3, *(4 * torch.finfo(p.dtype).eps for p in self._pure.parameters.values()))
                reason = "" if torch.allclose(pair, loss, rtol=rtol, equal_nan=True) else "it gave another loss"
            except Exception as error:  # a user's code may fail in any way on tensors that stand for many
                reason = str(error).strip().split("\n")[0] or type(error).__name__
        reason = reason or next((str(w.message) for w in said if "batching rule" in str(w.message)), "")
        if reason:
            warnings.warn(
                f"torch.func.vmap cannot batch this model ({reason.split('. ')[0]}); weight vectors are evaluated one "
                "at a time, which is slower and just as right.",
                RuntimeWarning,
                stacklevel=3,
            )
        return not reason


_REBUILT: dict[str, Objective] = {}  # the latest one that another process has sent


def _rebuild(token: str, model: nn.Module, loss_fn: LossFn, device: torch.device, chunk_size: int) -> Objective:
    if token not in _REBUILT:
        _REBUILT.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # said already, where it was made
            _REBUILT[token] = Objective(model, loss_fn, device=device)
        _REBUILT[token].chunk_size = chunk_size
    return _REBUILT[token]
