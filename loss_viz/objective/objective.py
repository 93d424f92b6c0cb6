"""The loss at many weight vectors, batched."""

import copy
import threading
import uuid
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import grad, vmap

from loss_viz._validation import check_array, first_line
from loss_viz.objective.batching import (
    MAX_ATTENTION_CHUNK,
    LinearMode,
    ThreadTuner,
    choose_chunk_size,
    reserve_heap,
)
from loss_viz.objective.functional import FunctionalLoss, check_scalar, unfused_attention, unwrap_model
from loss_viz.objective.layout import ParameterLayout, float_buffers
from loss_viz.objective.private_copy import LossFn

NOTE = (
    "loss_viz calls `loss_fn` on a copy of the model in evaluation mode. If the loss needs training mode, call "
    "m.train() in it: lambda m: loss(m.train())."
)
# Relative difference of two losses that rounding can explain, in float32 and in float64. In batches sums are taken in
# another order: 1e-6 for a small network in float32, 1e-5 for a transformer.
RTOL_SINGLE, RTOL_DOUBLE = 2e-4, 1e-9
PERTURBATION = 0.1  # of the size of each weight: far enough for a merged update to show, near enough to be finite


@dataclass(frozen=True)
class LossCheck:
    """How far the losses of an objective are from those of the model itself, loaded afresh, in evaluation mode.

    Attributes:
        n: number of weight vectors that were compared.
        factor: largest factor between the two losses; 1 where they differ by rounding.
        cause: what differs, if it was found; else empty.
    """

    n: int
    factor: float
    cause: str = ""

    @property
    def passed(self) -> bool:
        """Whether the losses agree."""
        return self.factor == 1


class Objective:
    """The loss as a function of the flat weight vector, evaluated for many vectors in one pass.

    `loss_fn(model)` is any closure that returns a scalar tensor. It is called on a private copy of the model, in
    **evaluation mode** and without autocast, with each weight vector in place of the trainable parameters
    (`torch.func.functional_call`), batched by `torch.func.vmap` in chunks that fit in a core's cache. So dropout is off
    and batch normalization uses its running statistics, unless `loss_fn` itself calls `model.train()`. The original
    model is never changed: neither weights, mode and buffers nor PyTorch's random state. Functions that name the model,
    such as hooks and penalties, are copied with it (see `loss_viz.objective.private_copy`).

    If `vmap` cannot batch the model (recurrent layers, control flow that depends on the data, ...) the vectors are
    evaluated one at a time, with a warning that gives the reason. `check_losses` compares the losses with those of the
    model itself.

    Args:
        model: network; its trainable parameters, in `model.parameters()` order, make up the vector.
        loss_fn: loss of a model on fixed data; it must use the model that it receives.
        device: device of the evaluation, such as `"cuda"`; the model's by default. The data of `loss_fn` must be on it.

    Attributes:
        model: the model, without the wrapper of `torch.compile` or data parallelism.
        loss_fn: the loss of a model.
        layout: order and shapes of the parameters in the weight vector.
        buffer_layout: order and shapes of the other tensors that may differ between weight vectors: the floating-point
            buffers, or in the objective of a run those that change in it, whatever they are.
        n_params: length of a weight vector.
        initial_weights: `(n_params,)`, the weights of the model when the objective was made.
        initial_buffers: `(n_buffers,)`, the tensors of `buffer_layout` at that time.
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
        self.layout, self.n_params = self._loss.layout, self._loss.layout.n
        self.buffer_layout = float_buffers(model)
        self.device = next(iter(self._loss.parameters.values())).device
        self.initial_weights = self.layout.join(self._loss.originals.tensors()).numpy()
        self._lock, self._tuner, self._token = threading.Lock(), ThreadTuner(), uuid.uuid4().hex
        self._is_random, self._has_attention, self._needs_grad = True, False, False  # until `_probe` has found out
        self._draws = True
        self._own_linear = True
        self.chunk_size, self._way = 1, "singly"
        with self._isolated():
            largest = self._probe()
        with self._isolated():
            if self._loss.switched and not self._agrees_with_loading():
                self._way = "loading"
                return
            fitting = choose_chunk_size(largest, self.initial_weights.nbytes, self.device)
            self.chunk_size = fitting if not self._needs_grad and self._can_batch() else 1
        # Fused attention, which cannot be batched, is faster than small batches without it.
        if self.chunk_size > 1 and not (self._has_attention and self.chunk_size <= MAX_ATTENTION_CHUNK):
            self._way = "batch"

    @property
    def initial_buffers(self) -> Float[np.ndarray, " n_buffers"]:
        """`(n_buffers,)`, the state that `buffer_layout` describes, as it was when the objective was made."""
        absent = {entry.name: torch.zeros(entry.size, device="cpu") for entry in self.buffer_layout.entries}
        return self.buffer_layout.join(absent | dict(self._loss.initial_state)).numpy()

    @property
    def initial_state(self) -> Mapping[str, Tensor]:
        """All tensors that are not trained, by name, as they were when the objective was made."""
        return self._loss.initial_state

    def tensors(self) -> dict[str, Tensor]:
        """Return all parameters and buffers of the user's model and of the modules that the loss names, as they are."""
        return self._loss.originals.tensors()

    def check_frozen(self) -> None:
        """Check that the large frozen parameters, which are not copied, still have their values.

        Raises:
            ValueError: if one has changed.
        """
        self._loss.shared.check()

    @property
    def uncopied(self) -> Collection[str]:
        """Names of the large frozen parameters, which are shared with the user's model."""
        return self._loss.shared.tensors.keys()

    def following(self, names: Iterable[str]) -> "Objective":
        """Return the same objective with other state beside the weights: the tensors that change during a run.

        Args:
            names: names in `initial_state`.
        """
        return self.with_layout(self._loss.state_layout(names))

    def with_layout(self, layout: ParameterLayout) -> "Objective":
        """Return the same objective with another `buffer_layout`, of which it ignores what the model does not have."""
        other = copy.copy(self)
        other.buffer_layout = layout
        if self._loss.loose.intersection(entry.name for entry in layout.entries):  # cannot be replaced in a batch
            other.chunk_size, other._way = 1, "singly"
        return other

    def beside_training(self) -> "Objective | None":
        """Return the same losses for use while a training goes on in another thread of this process.

        They are evaluated without a change of anything that PyTorch keeps for the whole process. None if that cannot
        be, because the loss draws random numbers: restoring the random state would set the training's back.
        """
        if self._draws:
            return None
        other = copy.copy(self)
        other._is_random = other._has_attention = False
        if self._has_attention and self._way == "batch":  # which needs a setting of the whole process
            other.chunk_size, other._way = 1, "singly"
        return other

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
        with self._isolated(), self._borrow() as loss:
            other = loss.clone(share=False)
            other.load(parameters, state)
        return other.model

    def with_batch_statistics(self) -> "Objective | None":
        """Return the loss with batch normalization on the statistics of the data instead of the running ones.

        None if the model has no batch normalization with running statistics.
        """
        with self._borrow() as loss:
            other_loss = loss.clone()
        layers = [m for m in other_loss.model.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
        layers = [layer for layer in layers if layer.track_running_stats]
        for layer in layers:
            layer.track_running_stats = False
            layer.running_mean = layer.running_var = layer.num_batches_tracked = None
        if not layers:
            return None
        # Not a new objective: it would draw random numbers to probe the loss, in the panel beside the user's own code.
        other = copy.copy(self)
        other._loss = FunctionalLoss(other_loss.model, other_loss.loss_fn, self.device)
        other._idle, other._returned = [other._loss], threading.Condition()
        other.model = other._loss.originals.model
        other.chunk_size, other._way = 1, "singly"
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
        self._check_differentiable()
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
        """Return the product of the Hessian at `weights` and a vector.

        By double backpropagation, or, with a warning, by differences of gradients where PyTorch cannot do it.

        Raises:
            TypeError: if they are not arrays of real numbers.
            ValueError: if they have other shapes, or the loss cannot be differentiated.
        """
        self._check_differentiable()
        with self._isolated(), self._borrow() as loss:
            at, state = self._tensors(weights, buffers)
            product = loss.hessian_vector_product(at, state, self._tensors(vector)[0])
            return product.double().cpu().numpy()

    def _check_differentiable(self) -> None:
        if self._way == "loading":
            raise ValueError(
                "A gradient needs a loss that PyTorch can differentiate; in evaluation mode this model merges weights, "
                "without a gradient. Use other `axes`, or a model that does not merge."
            )

    def _loss_at(self, weights: Tensor, buffers: Tensor) -> Tensor:
        with self._borrow() as loss:
            return loss.loss_at(weights, self.buffer_layout.split(buffers))

    def _gradients_singly(self, weights: Tensor, buffers: Tensor) -> Tensor:
        with self._borrow() as loss:
            return loss.gradients(weights, self._states(buffers))

    def _evaluate(self, weights: Tensor, buffers: Tensor) -> Tensor:
        """Return the losses of one chunk."""
        if self._way == "batch":
            return self._evaluate_batch(weights, buffers)
        with self._borrow() as loss:
            evaluate = loss.losses_in_loop if self._way == "singly" else loss.losses_by_loading
            return evaluate(weights, self._states(buffers))

    def _evaluate_batch(self, weights: Tensor, buffers: Tensor) -> Tensor:
        with ExitStack() as stack:
            stack.enter_context(unfused_attention() if self._has_attention else nullcontext())
            stack.enter_context(LinearMode() if self._own_linear else nullcontext())
            loss = stack.enter_context(self._borrow())
            return vmap(lambda w, b: loss.loss_at(w, self.buffer_layout.split(b)), randomness="same")(weights, buffers)

    def _states(self, buffers: Tensor) -> list[dict[str, Tensor]]:
        return [self.buffer_layout.split(row) for row in buffers]

    @contextmanager
    def _borrow(self) -> Iterator[FunctionalLoss]:
        """Yield a private copy that no other thread is using. A thread that had to wait for one adds a clone."""
        with self._returned:
            waited = not self._idle
            while not self._idle:
                self._returned.wait()
            loss = self._idle.pop()
        try:
            if waited:
                other = loss.clone()
                with self._returned:
                    self._idle.append(other)
                    self._returned.notify()
            yield loss
        finally:
            with self._returned:
                self._idle.append(loss)
                self._returned.notify()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as constructor arguments; a worker rebuilds the objective once and reuses it."""
        with self._borrow() as loss:
            other = loss.clone()
        other.reset(self._tensor(self.initial_weights), {})
        given = other.model, other.loss_fn, self.device, self.buffer_layout, self.chunk_size, self._way
        return _rebuild, (self._token, *given)

    def __copy__(self) -> "Objective":
        other = object.__new__(type(self))
        vars(other).update(vars(self))
        return other

    @contextmanager
    def _isolated(self, fused: bool = False) -> Iterator[None]:
        """Disable gradients and autocast and restore PyTorch's random state, for one thread at a time if it is used.

        Args:
            fused: allow fused attention.

        Raises:
            ValueError: if a large frozen parameter has changed.
        """
        self.check_frozen()
        with ExitStack() as stack:
            stack.enter_context(torch.set_grad_enabled(self._needs_grad))
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
        size = min(len(weights), self.chunk_size)
        own = np.broadcast_to(self.initial_buffers, (size, self.buffer_layout.n))
        # One array for all passes: the pages of a new one take longer than its numbers.
        memory = np.empty((size, self.n_params), weights.dtype)
        for start in range(0, len(weights), self.chunk_size):
            rows = slice(start, start + self.chunk_size)
            chunk = memory[: len(weights[rows])]
            np.copyto(chunk, weights[rows])
            state = own[: len(chunk)] if buffers is None else buffers[rows]
            moved = torch.from_numpy(chunk).to(self.device, self.layout.dtype)
            yield rows, moved, self._tensor(state, self.buffer_layout)

    def _tensors(self, weights: Any, buffers: Any = None) -> tuple[Tensor, dict[str, Tensor]]:
        """Check one weight vector and its buffers, and return it and them by name on the device."""
        weights, buffers = self._read(weights, buffers, single=True)
        state = self._tensor(self.initial_buffers if buffers is None else buffers, self.buffer_layout)
        return self._tensor(weights), self.buffer_layout.split(state)

    def _read(self, weights: Any, buffers: Any, *, single: bool = False) -> tuple[np.ndarray, np.ndarray | None]:
        """Convert weight vectors as rows, or a single one, and their buffers if given to arrays."""
        advice = "Pass one vector, as in run.weights[-1]." if single else "For a single vector pass weights[None]."
        weights = check_array("weights", weights, (self.n_params,) if single else ("n", self.n_params), advice=advice)
        if buffers is None:
            return weights, None
        advice = "Pass one row of buffers for each weight vector, or none to use the model's."
        return weights, check_array("buffers", buffers, (*weights.shape[:-1], self.buffer_layout.n), advice=advice)

    def _tensor(self, array: Float[np.ndarray, "*shape"], layout: ParameterLayout | None = None) -> Tensor:
        array = np.ascontiguousarray(array)  # PyTorch does not support negative strides
        return torch.tensor(array, dtype=(layout or self.layout).dtype, device=self.device)

    def _probe(self) -> int:
        """Check the loss of the model, and return the bytes of the largest tensor in its evaluation."""
        random = self._random_states()
        try:
            loss, probe = self._loss.probe(self._tensor(self.initial_weights))
        except Exception as error:
            if self._needs_grad or "does not require grad" not in str(error):
                raise self._explain(error) from error
            self._needs_grad = True  # a loss that contains a derivative, such as the residual of an equation
            with torch.enable_grad():
                return self._probe()
        check_scalar(loss)
        loss = loss.detach()
        if not probe.reads_parameters:
            raise ValueError(
                "`loss_fn(model)` must use the model that it receives, it read none of its parameters. "
                "Write it as lambda m: criterion(m(x), y), using m instead of the model's own name."
            )
        if probe.foreign:
            raise ValueError(
                "`loss_fn(model)` must use only the model that it receives and what it names itself; it also read "
                f"{', '.join(list(probe.foreign)[:3])}, through an object that a copy cannot follow. Make it part of "
                "the model, pass it to the loss by name, or freeze it with requires_grad_(False) if it is not trained."
            )
        self._draws = not all(map(torch.equal, random, self._random_states()))
        self._is_random = self._draws or self.device.type == "cuda"
        self._has_attention = probe.has_attention
        again = self._loss.loss_of_copy()
        if not isinstance(again, Tensor) or again.shape or not (loss == again or (loss.isnan() and again.isnan())):
            raise ValueError(
                f"`loss_fn(model)` must give the same loss twice, got {float(loss):.6g} and {float(again):.6g}. Use a "
                "fixed set of data that is not used up, and torch.manual_seed(0) inside it if it draws random numbers."
            )
        return probe.largest_bytes

    def _random_states(self) -> list[Tensor]:
        on_device = [torch.cuda.get_rng_state(self.device)] if self.device.type == "cuda" else []
        return [torch.get_rng_state(), *on_device]

    def _explain(self, error: Exception) -> Exception:
        """Return an error of `loss_fn` with what its author needs to know."""
        if isinstance(error, RuntimeError) and "device" in str(error):
            return ValueError(
                f"The data of `loss_fn` must be on the device of the evaluation, {self.device}; PyTorch says: "
                f"{first_line(error)}. Move it with x.to({str(self.device)!r})."
            )
        # As error.add_note, which Python 3.10 does not have.
        vars(error)["__notes__"] = [*getattr(error, "__notes__", []), NOTE]
        return error

    def _agrees_with_loading(self) -> bool:
        """Return whether a model whose evaluation mode changes something may be evaluated without loading it again."""
        pair = self._two_weights()
        fast, slow = self._loss.losses_in_loop(pair, [{}, {}]), self._loss.losses_by_loading(pair, [{}, {}])
        return bool(_close(fast.double().cpu().numpy(), slow.double().cpu().numpy(), self._rtol).all())

    def _two_weights(self) -> Tensor:
        """Return the initial weights and others near them, at which a difference shows that the start hides."""
        weights = self._tensor(self.initial_weights)
        pattern = torch.cos(torch.arange(len(weights), device=self.device, dtype=weights.dtype))
        return torch.stack([weights, weights + PERTURBATION * weights.abs().mean() * pattern])

    @property
    def _rtol(self) -> float:
        """Relative difference of two losses that rounding can explain."""
        numbers = (t for t in self.tensors().values() if t.is_floating_point() or t.is_complex())
        eps = max(torch.finfo(t.dtype).eps for t in numbers)
        return 4 * eps if eps > RTOL_SINGLE else RTOL_SINGLE if eps > 1e-10 else RTOL_DOUBLE

    def check_losses(
        self,
        weights: Float[np.ndarray, "n n_params"],
        buffers: Float[np.ndarray, "n n_buffers"] | None = None,
        losses: Float[np.ndarray, " n"] | None = None,
    ) -> LossCheck:
        """Compare the losses at weight vectors with those of the model itself, copied and loaded afresh for each.

        The user's model is copied as it is now, the whole state is loaded into the copy in place, and the copy is put
        into evaluation mode. If the losses differ by more than rounding, slower ways of evaluation are tried; the first
        that agrees is used from then on, with a warning.

        Args:
            weights: weight vectors as rows.
            buffers: as for a call.
            losses: losses that are known from elsewhere, to be compared as well.
        """
        weights, buffers = self._read(weights, buffers)
        expected, changed = np.empty(len(weights)), dict[str, None]()
        with self._isolated():
            for i, row in enumerate(weights):
                vector, state = self._tensors(row, None if buffers is None else buffers[i])
                expected[i], different = self._loss.loss_of_fresh_copy(vector, state)
                changed |= dict.fromkeys(different)
        first = self._way, self.chunk_size
        factor = np.inf
        for way in dict.fromkeys((self._way, "singly", "loading")):
            if way != first[0]:
                self._way, self.chunk_size = way, 1
            found = self(weights, buffers)
            if _close(found, expected, self._rtol).all():
                if way != first[0]:
                    warnings.warn(
                        f"The usual evaluation gives other losses than the model itself, by up to a factor of "
                        f"{factor:.3g}. Weight vectors are evaluated one at a time, which is slower and was checked.",
                        RuntimeWarning,
                        stacklevel=4,
                    )
                break
            factor = min(factor, _largest_factor(found, expected))
        else:
            self._way, self.chunk_size = first
            return LossCheck(len(weights), factor, ", ".join(list(changed)[:5]))
        # Those may come from another machine, and from batches that were summed in another order.
        if losses is not None and not _close(losses, expected, max(1e-3, self._rtol)).all():
            return LossCheck(len(weights), _largest_factor(losses, expected))
        return LossCheck(len(weights), 1.0)

    def _can_batch(self) -> bool:
        """Return whether `vmap` gives the same losses; warn if not."""
        weights, buffers = self._two_weights(), self._tensor(self.initial_buffers, self.buffer_layout)
        expected = self._loss.losses_in_loop(weights, [{}, {}])
        if reason := self._find_obstacle(weights, buffers, expected):
            self._own_linear = False  # it cannot add different biases to one frozen product
            reason = self._find_obstacle(weights, buffers, expected)
        if reason:
            warnings.warn(
                f"torch.func.vmap cannot batch this model ({reason.split('. ')[0]}); weight vectors are evaluated one "
                "at a time, which is slower but gives the same losses.",
                RuntimeWarning,
                stacklevel=3,
            )
        return not reason

    def _find_obstacle(self, weights: Tensor, buffers: Tensor, expected: Tensor) -> str:
        """Return why a batch does not give the expected losses, or "" if it does."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                pair = self._evaluate_batch(weights, torch.stack([buffers, buffers]))
                same = torch.allclose(pair, expected, rtol=self._rtol, equal_nan=True)
                reason = "" if same else "it gave another loss"
            except Exception as error:  # a user's code may fail in any way on batched tensors
                reason = str(error).strip().split("\n")[0] or type(error).__name__
        return reason or next((str(w.message) for w in caught if "batching rule" in str(w.message)), "")


_REBUILT: dict[str, Objective] = {}  # the last objective received from another process


def _rebuild(
    token: str,
    model: nn.Module,
    loss_fn: LossFn,
    device: torch.device,
    layout: ParameterLayout,
    chunk_size: int,
    way: str,
) -> Objective:
    if token not in _REBUILT:
        _REBUILT.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # the original has warned already
            _REBUILT[token] = Objective(model, loss_fn, device=device)
    objective = _REBUILT[token].with_layout(layout)
    objective.chunk_size, objective._way = chunk_size, way
    return objective


def _close(found: np.ndarray, expected: np.ndarray, rtol: float) -> np.ndarray:
    """Return which losses agree up to rounding, the largest of which rounding makes a part of every sum."""
    finite = np.abs(expected[np.isfinite(expected)])
    return np.isclose(found, expected, rtol=rtol, atol=rtol * 1e-3 * finite.max(initial=0), equal_nan=True)


def _largest_factor(found: np.ndarray, expected: np.ndarray) -> float:
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = found / expected
        factors = np.where(ratio > 0, np.maximum(ratio, 1 / ratio), np.inf)
    return float(factors.max())
