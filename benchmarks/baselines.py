"""Baselines that take a few lines of code: a plain loop over weight vectors, and an MLP batched by hand."""

from collections.abc import Callable
from itertools import pairwise, product

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import vector_to_parameters
from tqdm.auto import tqdm

from .networks import Network
from .timing import Timer, Workload

LOOP = "plain loop"
BATCHED, TUNED = "hand-batched", "hand-batched, first layer an outer product"
CHUNKS = tuple(2**i for i in range(4, 13))

Losses = Callable[[], np.ndarray]


def build_loop(net: Network, weights: np.ndarray) -> Losses:
    """Return the plain PyTorch loop, which loads one weight vector after another into a model."""
    model = net.with_weights(weights[0])
    rows = torch.tensor(weights, device=net.x.device)

    def call() -> np.ndarray:
        losses = []
        with torch.no_grad():
            for row in rows:
                vector_to_parameters(row, model.parameters())
                losses.append(net.loss(model).item())
        return np.array(losses)

    return call


def find_sizes(model: nn.Module) -> list[int]:
    """Return the layer sizes of an MLP of linear layers and SiLU, or an empty list for any other model."""
    if not isinstance(model, nn.Sequential) or not all(isinstance(layer, nn.Linear | nn.SiLU) for layer in model):
        return []
    layers = [layer for layer in model if isinstance(layer, nn.Linear)]
    return [layers[0].in_features, *(layer.out_features for layer in layers)]


def batch_mlp(weights: Tensor, x: Tensor, y: Tensor, sizes: list[int], *, units_first: bool, outer: bool) -> Tensor:
    """Return the mean squared errors `(n,)` of `n` MLPs at once.

    Args:
        weights: `(n, n_params)`.
        x: `(n_points, 1)`.
        y: `(n_points, 1)`.
        sizes: units of each layer.
        units_first: store activations as (n, units, points) instead of (n, points, units).
        outer: compute a layer with one input as an outer product instead of a matrix product.
    """
    start, h, target = 0, (x.T if units_first else x).expand(len(weights), -1, -1), y.T if units_first else y
    for i, (n_in, n_out) in enumerate(pairwise(sizes)):
        matrix = weights[:, start : start + n_in * n_out].unflatten(1, (n_out, n_in))
        bias = weights[:, start + n_in * n_out : start + (n_in + 1) * n_out]
        start += (n_in + 1) * n_out
        if outer and n_in == 1:
            h = (
                torch.addcmul(bias[:, :, None], matrix, h)
                if units_first
                else torch.addcmul(bias[:, None], h, matrix.mT)
            )
        elif units_first:
            h = torch.baddbmm(bias[:, :, None], matrix, h)
        else:
            h = torch.baddbmm(bias[:, None], h, matrix.mT)
        if i < len(sizes) - 2:
            h = functional.silu(h, inplace=True)
    return (h - target).square_().mean((1, 2))


def batch_by_hand(net: Network, weights: np.ndarray, chunk: int, *, units_first: bool, outer: bool) -> Losses:
    """Return a call that applies `batch_mlp` to chunks of the weight vectors."""
    sizes = find_sizes(net.run.model)

    def call() -> np.ndarray:
        losses = np.empty(len(weights))
        with torch.no_grad():
            for start in range(0, len(weights), chunk):
                rows = torch.from_numpy(weights[start : start + chunk]).to(net.x.device)
                found = batch_mlp(rows, net.x, net.y, sizes, units_first=units_first, outer=outer)
                losses[start : start + chunk] = found.double().cpu().numpy()
        return losses

    return call


def tune_by_hand(net: Network, weights: np.ndarray, timer: Timer) -> dict[str, tuple[Losses, str]]:
    """Return the hand-batched baselines of an MLP by name, each with its fastest chunk size and a note that states it.

    In the first two, which differ in layout, every layer is one `baddbmm`, as it would usually be written. In the third
    the first layer is an outer product, and the faster layout is chosen: the fastest that such code can be.
    """
    if not find_sizes(net.run.model):
        return {}
    chunks = [chunk for chunk in CHUNKS if chunk <= len(weights)]
    tried: dict[str, list[tuple[float, Losses, str]]] = {}
    kinds = list(product((False, True), (False, True), chunks))
    for outer, units_first, chunk in tqdm(kinds, desc=f"{net.name}: tuning by hand", leave=False):
        layout = "(n, units, points)" if units_first else "(n, points, units)"
        call = batch_by_hand(net, weights, chunk, units_first=units_first, outer=outer)
        seconds = min(timer.time(Workload("", call)) for _ in range(3))
        name = TUNED if outer else f"{BATCHED} {layout}"
        tried.setdefault(name, []).append((seconds, call, f"{layout if outer else ''} {chunk} at a time".strip()))
    best = {name: min(found, key=lambda one: one[0]) for name, found in tried.items()}
    return {name: (call, note) for name, (_, call, note) in best.items()}
