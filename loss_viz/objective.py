"""From weight vectors to losses: many at once, and never through the user's own model."""

import copy
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

LossFn = Callable[[nn.Module], Tensor]

# One chunk's largest tensor then stays in a core's cache. Measured on 1-8-1, 1-64-1 and 1-64-64-1 nets: within 20
# to 40 % of the best chunk on each; a single vector, or many times as much, is several times slower.
CHUNK_BYTES = 2**21
MAX_CHUNK = 4096


def flatten_parameters(model: nn.Module) -> Float[Tensor, " n_params"]:
    """One vector of the trainable parameters, in `model.parameters()` order; a copy, detached."""
    trainable = [p.detach().reshape(-1) for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise ValueError(
            "`model` must have at least one parameter with requires_grad=True, it has none. "
            "Unfreeze what was trained with parameter.requires_grad_(True)."
        )
    return torch.cat(trainable)


class Objective:
    """The loss as a function of the flat weight vector, evaluated for many vectors in one pass.

    `loss_fn(model)` is any closure that returns a scalar tensor. It is called on a private copy of the model
    whose parameters are replaced by each weight vector in turn (`torch.func.functional_call`), batched by
    `torch.func.vmap` in chunks that fit a core's cache. The model given stays as it is: weights, mode, buffers.
    Where `vmap` cannot batch the model, the vectors are evaluated one at a time, with a warning that says why.

    Args:
        model: the network; its trainable parameters, in `model.parameters()` order, make up the vector.
        loss_fn: the loss of a model, on data of its own; it must use the model that it is handed.

    Raises:
        TypeError: `loss_fn(model)` is not a tensor.
        ValueError: it is not scalar, or not the same twice, or there is no trainable parameter.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> objective = Objective(model, lambda m: m(torch.tensor([1.0, 10.0])).sum())
        >>> objective(np.array([[1.0, 2.0], [3.0, 4.0], [0.5, 0.0]]))
        array([21. , 43. ,  0.5])
    """

    def __init__(self, model: nn.Module, loss_fn: LossFn) -> None:
        self.model = model
        self.loss_fn = loss_fn
        weights = flatten_parameters(model)
        self.n_params = weights.numel()
        self._module = _LossModule(copy.deepcopy(model), loss_fn)
        self._parameters = [(name, p) for name, p in self._module.model.named_parameters() if p.requires_grad]
        self._sizes = [p.numel() for _, p in self._parameters]
        self._lock = threading.Lock()  # functional_call swaps parameters inside the one private copy
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            loss, largest = self._probe()
            self.chunk_size = max(1, min(MAX_CHUNK, CHUNK_BYTES // largest))
            self._evaluate = self._choose_evaluation(weights, loss)

    def __call__(self, weights: Float[np.ndarray, "n n_params"]) -> Float[np.ndarray, " n"]:
        """Losses `(n,)` in float64 at weight vectors `(n, n_params)`; computed in the model's precision."""
        if weights.ndim != 2 or weights.shape[1] != self.n_params:
            raise ValueError(
                f"`weights` must have shape (n, {self.n_params}), one row a weight vector; got {weights.shape}. "
                "For a single vector pass weights[None]."
            )
        first = self._parameters[0][1]
        losses = np.empty(len(weights))
        with self._lock, torch.no_grad():
            for start in range(0, len(weights), self.chunk_size):
                rows = slice(start, start + self.chunk_size)
                chunk = torch.tensor(weights[rows], dtype=first.dtype, device=first.device)
                losses[rows] = self._evaluate(chunk).double().cpu().numpy()
        return losses

    def predict(self, weights: Float[np.ndarray, " n_params"], x: Tensor) -> Tensor:
        """What the model answers at inputs `x` with the weights `(n_params,)` in place of its own."""
        first = self._parameters[0][1]
        with self._lock, torch.no_grad():
            state = self._split(torch.tensor(weights, dtype=first.dtype, device=first.device))
            return functional_call(self._module.model, state, (x,))

    def _probe(self) -> tuple[Tensor, int]:
        """The loss of the model as it stands, and the bytes of the largest tensor on the way to it."""
        meter = _LargestTensor()
        with meter:
            loss = self._module()
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
        again = self._module()
        if not torch.equal(loss, again) and not (loss.isnan() and again.isnan()):
            raise ValueError(
                f"`loss_fn(model)` must give the same loss twice, got {float(loss):.6g} and {float(again):.6g}. "
                "Use a fixed set of data, and model.eval() where there is dropout or batch normalization."
            )
        return loss, meter.n_bytes

    def _choose_evaluation(self, weights: Tensor, loss: Tensor) -> Callable[[Tensor], Tensor]:
        batched = vmap(self._loss_at)
        try:
            pair = batched(torch.stack([weights, weights]))
            reason = "" if torch.allclose(pair, loss, rtol=1e-3, equal_nan=True) else "it gave another loss"
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
        if not reason:
            return batched
        warnings.warn(
            f"torch.func.vmap cannot batch this model ({reason}); weight vectors are evaluated one at a time, "
            "which is slower and just as right.",
            RuntimeWarning,
            stacklevel=3,
        )
        self.chunk_size = 1
        return lambda chunk: self._loss_at(chunk[0])[None]

    def _loss_at(self, weights: Tensor) -> Tensor:
        state = {f"model.{name}": part for name, part in self._split(weights).items()}
        return functional_call(self._module, state, ())

    def _split(self, weights: Tensor) -> dict[str, Tensor]:
        """The parameters of the model, by name, that a weight vector stands for."""
        parts = weights.split(self._sizes)
        return {
            name: part.reshape(p.shape).to(p.dtype) for (name, p), part in zip(self._parameters, parts, strict=True)
        }


class _LossModule(nn.Module):
    """`loss_fn(model)` as a forward pass, so that `functional_call` reaches the parameters inside it."""

    def __init__(self, model: nn.Module, loss_fn: LossFn) -> None:
        super().__init__()
        self.model = model
        self.loss_fn = loss_fn

    def forward(self) -> Any:  # a user's function may return anything: `_probe` looks
        return self.loss_fn(self.model)


class _LargestTensor(TorchDispatchMode):
    """Notes the size in bytes of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.n_bytes = 1

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [t.numel() * t.element_size() for t in tree_leaves(result) if isinstance(t, Tensor)]
        self.n_bytes = max([self.n_bytes, *sizes])
        return result
