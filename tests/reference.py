"""A slow and obvious implementation of the method in float64: one point, one step and one loss at a time."""

import numpy as np
import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters


def loss_at(model, loss_fn, weights):
    """Return the loss of the model itself with other weights, which are restored afterwards."""
    kept = parameters_to_vector(model.parameters()).detach().clone()
    vector_to_parameters(torch.as_tensor(np.array(weights), dtype=kept.dtype), model.parameters())
    with torch.no_grad():
        loss = loss_fn(model).item()
    vector_to_parameters(kept, model.parameters())
    return loss


def principal_plane(weights):
    """Return mean, the two leading right singular vectors, and explained variance ratios, from a dense SVD."""
    mean = weights.mean(axis=0)
    _, values, vectors = np.linalg.svd(weights - mean, full_matrices=False)
    components = vectors[:2].copy()
    for row in components:
        if row[np.abs(row).argmax()] < 0:
            row *= -1
    return mean, components, values[:2] ** 2 / (values**2).sum()


def local_basis(weights, t, k):
    """Return velocity and acceleration at step t, orthonormalized; a vanishing direction is left out."""
    if t >= 2 * k:
        velocity = weights[t] - weights[t - k]
        acceleration = weights[t] - 2 * weights[t - k] + weights[t - 2 * k]
    else:
        start = min(t, len(weights) - 1 - 2 * k)
        velocity = weights[start + k] - weights[start]
        acceleration = weights[start + 2 * k] - 2 * weights[start + k] + weights[start]
    basis = []
    for vector in (velocity, acceleration):
        rest = vector.copy()
        for earlier in basis:
            rest -= (rest @ earlier) * earlier
        if np.linalg.norm(rest) > 1e-6 * np.linalg.norm(vector):
            basis.append(rest / np.linalg.norm(rest))
    return basis


def lift(weights, components, path, t, k, point, plane):
    """Return the weights at which the step's plane is evaluated for a point of the picture."""
    carried = components.T @ (point - path[t])
    if plane == "parallel":
        return weights[t] + carried
    theta = weights[t].copy()
    for direction in local_basis(weights, t, k):
        theta += (direction @ carried) * direction
    return theta


def picture_distance(point, center, basis, components):
    """Return the distance to an anchor; given `basis`, the square counts what its plane cannot reach fourfold."""
    step = point - center
    if basis is None:
        return np.linalg.norm(step)
    carried = components.T @ step
    followed = sum(((direction @ carried) * (components @ direction) for direction in basis), np.zeros(2))
    return np.sqrt(step @ step + 3 * (step - followed) @ (step - followed))


def kernel_weights(point, path, anchors, sigma, bases=None, components=None, left_out=()):
    """Return the weight of each anchor at one point, with sum 1, computed from logarithms to avoid underflow."""
    diagonal = np.linalg.norm(path.max(axis=0) - path.min(axis=0))
    bases = bases or [None] * len(anchors)
    distance = [picture_distance(point, path[t], basis, components) for t, basis in zip(anchors, bases, strict=True)]
    nearest = min(distance[j] for j, t in enumerate(anchors) if t not in left_out)
    logs = []
    for j, t in enumerate(anchors):
        if sigma == "auto":
            neighbors = [anchors[i] for i in (j - 1, j + 1) if 0 <= i < len(anchors)]
            spacing = min(np.linalg.norm(path[t] - path[other]) for other in neighbors)
            narrow = min(max(0.35 * spacing, 1e-5 * diagonal), 0.003 * diagonal)
            width = np.sqrt(narrow**2 + (0.14 * nearest) ** 2)
            logs.append(-2 * np.log(width) - distance[j] ** 2 / (2 * width**2))
        else:
            logs.append(-(distance[j] ** 2) / (2 * (sigma * diagonal) ** 2))
    logs = [-np.inf if t in left_out else log for t, log in zip(anchors, logs, strict=True)]
    weights = np.exp(np.array(logs) - max(logs))
    return weights / weights.sum()


def blended_height(run, point, anchors, *, k, sigma, plane, shaped, left_out=()):
    """Return the sum over the anchors at one point of the picture, except those left out."""
    weights = np.array(run.weights, dtype=float)
    mean, components, _ = principal_plane(weights)
    path = np.array([components @ (row - mean) for row in weights])
    bases = [local_basis(weights, t, k) for t in anchors] if shaped else None
    shares = kernel_weights(point, path, anchors, sigma, bases, components, left_out)
    losses = [
        loss_at(run.model, run.objective.loss_fn, lift(weights, components, path, t, k, point, plane)) for t in anchors
    ]
    return float(shares @ losses)


def held_out_heights(run, anchors, block_radius, **settings):
    """Return at each anchor the blend without planes within `block_radius` diagonals along the path."""
    weights = np.array(run.weights, dtype=float)
    mean, components, _ = principal_plane(weights)
    path = np.array([components @ (row - mean) for row in weights])
    diagonal = np.linalg.norm(path.max(axis=0) - path.min(axis=0))
    arc = [sum(np.linalg.norm(path[i] - path[i - 1]) for i in range(1, t + 1)) for t in range(len(path))]
    rows, heights = [], []
    for t in anchors:
        left_out = [other for other in anchors if other == t or abs(arc[other] - arc[t]) <= block_radius * diagonal]
        if len(left_out) < len(anchors):
            rows.append(t)
            heights.append(blended_height(run, path[t], anchors, left_out=left_out, **settings))
    return rows, np.array(heights)


def filter_norms(model, vector):
    """Return the norm of each filter's part of a flat vector, and the part of all other parameters."""
    norms, rest, start = [], [], 0
    for p in model.parameters():
        part = vector[start : start + p.numel()].reshape(tuple(p.shape))
        start += p.numel()
        if p.ndim < 2:
            rest.append(np.ravel(part))
        else:
            norms += [np.linalg.norm(part[i]) for i in range(len(part))]
    return np.array(norms), np.concatenate([np.zeros(0), *rest])


def dense_hessian(model, loss_fn, weights):
    """Return the Hessian, one row after another, in the precision of the model."""
    kept = parameters_to_vector(model.parameters()).detach().clone()
    vector_to_parameters(torch.as_tensor(np.array(weights), dtype=kept.dtype), model.parameters())
    parameters = list(model.parameters())
    slopes = torch.autograd.grad(loss_fn(model), parameters, create_graph=True)
    rows = []
    for slope in torch.cat([slope.reshape(-1) for slope in slopes]):
        parts = torch.autograd.grad(slope, parameters, retain_graph=True)
        rows.append(torch.cat([part.reshape(-1) for part in parts]))
    vector_to_parameters(kept, model.parameters())
    return torch.stack(rows).double().numpy()


def full_sum(objective, planes, kernel, points, *, least=0.0):
    """Return the sum over all planes at some points, one plane after another, without weights up to `least`."""
    total = np.zeros(len(points))
    shares = kernel.weights(points)
    for plane in range(len(planes)):
        buffers = None if planes.buffers is None else np.repeat(planes.buffers[[plane]], len(points), axis=0)
        losses = objective(planes.lift(np.full(len(points), plane), points), buffers)
        counts = shares[:, plane] > least
        total[counts] += shares[counts, plane] * losses[counts]
    return total
