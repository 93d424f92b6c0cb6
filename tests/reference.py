"""The method once more, slow and obvious: one point, one step, one loss at a time, in float64."""

import numpy as np
import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters


def loss_at(model, loss_fn, weights):
    """The loss of the model itself, with its weights replaced for the moment."""
    kept = parameters_to_vector(model.parameters()).detach().clone()
    vector_to_parameters(torch.as_tensor(np.array(weights), dtype=kept.dtype), model.parameters())
    with torch.no_grad():
        loss = loss_fn(model).item()
    vector_to_parameters(kept, model.parameters())
    return loss


def principal_plane(weights):
    """Mean, the two leading right singular vectors, and the shares of the variance, from a dense SVD."""
    mean = weights.mean(axis=0)
    _, values, vectors = np.linalg.svd(weights - mean, full_matrices=False)
    components = vectors[:2].copy()
    for row in components:
        if row[np.abs(row).argmax()] < 0:
            row *= -1
    return mean, components, values[:2] ** 2 / (values**2).sum()


def local_basis(weights, t, k):
    """Velocity and acceleration at step t, made orthonormal by hand; a missing direction is left out."""
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
    """Where the step's plane is evaluated for a point of the picture."""
    carried = components.T @ (point - path[t])
    if plane == "parallel":
        return weights[t] + carried
    theta = weights[t].copy()
    for direction in local_basis(weights, t, k):
        theta += (direction @ carried) * direction
    return theta


def picture_distance(point, center, basis, components):
    """Distance to an anchor, where what its plane cannot follow counts four times; `basis` None for a round kernel."""
    step = point - center
    if basis is None:
        return np.linalg.norm(step)
    carried = components.T @ step
    followed = sum(((direction @ carried) * (components @ direction) for direction in basis), np.zeros(2))
    return np.sqrt(step @ step + 3 * (step - followed) @ (step - followed))


def kernel_weights(point, path, anchors, sigma, bases=None, components=None, left_out=()):
    """The weight of each anchor at one point, summing to 1; logarithms, so that nothing underflows."""
    diagonal = np.linalg.norm(path.max(axis=0) - path.min(axis=0))
    bases = bases or [None] * len(anchors)
    distance = [picture_distance(point, path[t], basis, components) for t, basis in zip(anchors, bases, strict=True)]
    nearest = min(distance[j] for j, t in enumerate(anchors) if t not in left_out)
    logs = []
    for j, t in enumerate(anchors):
        if sigma == "auto":
            neighbours = [anchors[i] for i in (j - 1, j + 1) if 0 <= i < len(anchors)]
            spacing = min(np.linalg.norm(path[t] - path[other]) for other in neighbours)
            narrow = min(max(0.35 * spacing, 1e-5 * diagonal), 0.003 * diagonal)
            width = np.sqrt(narrow**2 + (0.14 * nearest) ** 2)
            logs.append(-2 * np.log(width) - distance[j] ** 2 / (2 * width**2))
        else:
            logs.append(-(distance[j] ** 2) / (2 * (sigma * diagonal) ** 2))
    logs = [-np.inf if t in left_out else log for t, log in zip(anchors, logs, strict=True)]
    weights = np.exp(np.array(logs) - max(logs))
    return weights / weights.sum()


def blended_height(run, point, anchors, *, k, sigma, plane, shaped, left_out=()):
    """The full sum over all anchors at one point of the picture, or over those that are not left out."""
    weights = np.array(run.weights, dtype=float)
    mean, components, _ = principal_plane(weights)
    path = np.array([components @ (row - mean) for row in weights])
    bases = [local_basis(weights, t, k) for t in anchors] if shaped else None
    shares = kernel_weights(point, path, anchors, sigma, bases, components, left_out)
    losses = [
        loss_at(run.model, run.objective.loss_fn, lift(weights, components, path, t, k, point, plane)) for t in anchors
    ]
    return float(shares @ losses)


def held_out_heights(run, anchors, reach, **settings):
    """At each anchor the blend of all that lie farther along the path than `reach` of its diagonal."""
    weights = np.array(run.weights, dtype=float)
    mean, components, _ = principal_plane(weights)
    path = np.array([components @ (row - mean) for row in weights])
    diagonal = np.linalg.norm(path.max(axis=0) - path.min(axis=0))
    arc = [sum(np.linalg.norm(path[i] - path[i - 1]) for i in range(1, t + 1)) for t in range(len(path))]
    rows, heights = [], []
    for t in anchors:
        left_out = [other for other in anchors if other == t or abs(arc[other] - arc[t]) <= reach * diagonal]
        if len(left_out) < len(anchors):
            rows.append(t)
            heights.append(blended_height(run, path[t], anchors, left_out=left_out, **settings))
    return rows, np.array(heights)


def filter_norms(model, vector):
    """For each filter of each weight matrix the norm of its part of a flat vector; and all the rest of the vector."""
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
    """Second derivatives, one parameter after the other, in the precision of the model."""
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
    """The sum over every plane at some points, one plane after the other; shares below `least` are none."""
    total = np.zeros(len(points))
    shares = kernel.weights(points)
    for plane in range(len(planes)):
        buffers = None if planes.buffers is None else np.repeat(planes.buffers[[plane]], len(points), axis=0)
        losses = objective(planes.lift(np.full(len(points), plane), points), buffers)
        counts = shares[:, plane] > least
        total[counts] += shares[counts, plane] * losses[counts]
    return total
