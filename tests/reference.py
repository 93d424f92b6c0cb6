"""A slow and obvious implementation of the method in float64: one point, one plane and one loss at a time."""

import copy

import numpy as np
import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters


def network(model, weights, buffers=None, names=None):
    """Return a copy of the model in evaluation mode, with other weights, and other buffers or frozen parameters.

    The names are those of the buffers, in their order; without them they are the floating-point ones of the model.
    """
    other = copy.deepcopy(model).eval()
    trainable = [p for p in other.parameters() if p.requires_grad]
    vector_to_parameters(torch.as_tensor(np.array(weights), dtype=trainable[0].dtype), trainable)
    tensors = dict(other.named_parameters()) | dict(other.named_buffers())
    if names is None:
        names = [name for name, buffer in other.named_buffers() if buffer.is_floating_point()]
    start = 0
    for name in names if buffers is not None else ():
        part = np.array(buffers[start : start + tensors[name].numel()])
        tensors[name].data.copy_(torch.as_tensor(part).reshape(tensors[name].shape))
        start += tensors[name].numel()
    return other


def loss_at(model, loss_fn, weights, buffers=None, names=None):
    """Return the loss of the model itself with other weights."""
    with torch.no_grad():
        return loss_fn(network(model, weights, buffers, names)).item()


def principal_plane(weights):
    """Return mean, the two leading right singular vectors, and explained variance ratios, from a dense SVD."""
    mean = weights.mean(axis=0)
    _, values, vectors = np.linalg.svd(weights - mean, full_matrices=False)
    components = vectors[:2].copy()
    for row in components:
        if row[np.abs(row).argmax()] < 0:
            row *= -1
    return mean, components, values[:2] ** 2 / (values**2).sum()


def stencil(t, n_steps, k, forward=False):
    """Return the three rows that span the plane at step t: those behind it, or ahead where there is no past."""
    if t + 2 * k <= n_steps - 1 if forward else t < 2 * k:
        here = min(t, n_steps - 1 - 2 * k)
        return [here, here + k, here + 2 * k]
    here = max(t, 2 * k)
    return [here, here - k, here - 2 * k]


def span(weights, rows):
    """Return velocity and acceleration over three rows, orthonormalized; a vanishing direction is left out."""
    near, middle, far = (np.array(weights[row], dtype=float) for row in rows)
    velocity = near - middle if rows[1] < rows[0] else middle - near
    basis = []
    for vector in (velocity, near - 2 * middle + far):
        if np.linalg.norm(vector) > 0:
            q, r = np.linalg.qr(np.column_stack([*basis, vector]))
            if abs(r[-1, -1]) > 1e-6 * np.linalg.norm(vector):
                basis.append(q[:, -1] * np.sign(r[-1, -1]))
    return basis


def local_basis(weights, t, k):
    """Return the axes of the local plane at step t of one run."""
    return span(weights, stencil(t, len(weights), k))


def nearest(anchors, rows):
    """Return the anchor that each of some rows is nearest to, the earlier of two."""
    return [min(anchors, key=lambda anchor: (abs(anchor - row), anchor)) for row in rows]


def move(basis, displacement):
    """Return the part of a displacement in weight space that lies in a plane."""
    return sum(((axis @ displacement) * axis for axis in basis), np.zeros(len(displacement)))


def move_mean(bases, displacement):
    """Return the mean of the parts that lie in some planes."""
    return sum(move(basis, displacement) for basis in bases) / len(bases)


class Picture:
    """The surface over the principal plane of some runs.

    `planes` holds one entry for each plane: its row, the rows from which it is built, and what the steps around it make
    of each axis of the picture, as columns.
    """

    def __init__(self, runs, anchors, *, k=5, sigma="auto", plane="local", center="last", blend="planes"):
        self.runs, self.sigma, self.plane, self.center, self.blend = runs, sigma, plane, center, blend
        self.anchors = [int(row) for row in anchors]
        self.weights = np.concatenate([np.array(run.weights[:], dtype=float) for run in runs])
        self.loss = np.concatenate([run.loss for run in runs])
        self.buffers, self.names = None, [entry.name for entry in runs[0].objective.buffer_layout.entries]
        if any(run.buffers is not None for run in runs):
            own = runs[0].objective.initial_buffers
            self.buffers = np.concatenate(
                [np.array([own] * len(run)) if run.buffers is None else run.buffers[:] for run in runs]
            ).astype(float)
        self.first = [sum(map(len, runs[:i])) for i, run in enumerate(runs) for _ in range(len(run))]
        self.length = [len(run) for run in runs for _ in range(len(run))]
        self.mean, self.axes, _ = principal_plane(self.weights)
        self.path = np.array([self.axes @ (row - self.mean) for row in self.weights])
        self.diagonal = np.linalg.norm(self.path.max(axis=0) - self.path.min(axis=0))
        self.planes = [] if plane == "flat" else [self._place(t, k) for t in self.anchors]
        self.ahead = [self._place(t, k, forward=True) for t in self.anchors] if plane == "local" else []

    def _place(self, t, k, forward=False):
        if self.plane == "parallel":
            return t, {t}, self.axes.T
        first = self.first[t]
        of_run = range(first, first + self.length[t])
        owner = nearest([anchor for anchor in self.anchors if anchor in of_run], of_run)
        steps = [row for row, anchor in zip(of_run, owner, strict=True) if anchor == t]
        stencils = [[first + row for row in stencil(s - first, self.length[t], k, forward)] for s in steps]
        bases = [span(self.weights, rows) for rows in stencils]
        moved = np.column_stack([move_mean(bases, axis) for axis in self.axes])
        return t, {t, *np.ravel(stencils).tolist()}, moved

    def _width(self, t):
        """Return the width of the kernel at an anchor: a share of the distance to the nearer one beside it."""
        if self.sigma != "auto":
            return self.sigma * self.diagonal
        j = self.anchors.index(t)
        beside = [self.anchors[i] for i in (j - 1, j + 1) if 0 <= i < len(self.anchors)]
        beside = [other for other in beside if self.first[other] == self.first[t]]
        spacing = min((np.linalg.norm(self.path[t] - self.path[other]) for other in beside), default=0.0)
        return min(max(0.35 * spacing, 1e-5 * self.diagonal), 0.03 * self.diagonal)

    def _distance(self, point, plane):
        """Return the distance to an anchor, in which what its plane misses counts three times more."""
        t, _, moved = plane
        step = point - self.path[t]
        if self.plane == "parallel" or self.sigma != "auto":
            return np.linalg.norm(step)
        missed = step - self.axes @ moved @ step
        return np.sqrt(step @ step + 3 * missed @ missed)

    def shares(self, point, planes):
        """Return the weight of each plane at a point; from logarithms, as all kernels may underflow."""
        distances = [self._distance(point, plane) for plane in planes]
        logs = []
        for (t, _, _), distance in zip(planes, distances, strict=True):
            growth = 0.5 * min(distances) if self.sigma == "auto" else 0.0
            variance = self._width(t) ** 2 + growth**2
            logs.append(-np.log(variance) - distance**2 / (2 * variance))
        raw = [np.exp(log - max(logs)) for log in logs]
        raw = [share if share >= 1e-4 else 0.0 for share in raw]
        return [share / sum(raw) for share in raw]

    def _flat(self, point):
        row = self.length[0] - 1 if self.center == "last" else None
        if self.center not in ("last", "mean"):
            row = int(np.abs(self.runs[0].step - self.center).argmin())
        buffers = None if self.buffers is None else self.buffers[self.length[0] - 1 if row is None else row]
        if row is None:
            return self.mean + self.axes.T @ point, buffers
        return self.weights[row] + self.axes.T @ (point - self.path[row]), buffers

    def network(self, point, planes=None):
        """Return the average of the planes at a point, and of their buffers."""
        if self.plane == "flat":
            return self._flat(point)
        planes = self.planes if planes is None else planes
        theta, buffers = 0.0, None if self.buffers is None else 0.0
        for share, (t, _, moved) in zip(self.shares(point, planes), planes, strict=True):
            theta = theta + share * (self.weights[t] + moved @ (point - self.path[t]))
            if buffers is not None:
                buffers = buffers + share * self.buffers[t]
        if buffers is not None:  # whole numbers are those of the heaviest plane
            shares = self.shares(point, planes)
            heaviest = self.buffers[planes[int(np.argmax(shares))][0]]
            whole = [name.endswith("num_batches_tracked") for name in self.names]
            buffers[self.nominal(whole)] = heaviest[self.nominal(whole)]
        return theta, buffers

    def nominal(self, whole):
        tensors = dict(self.runs[0].model.named_buffers()) | dict(self.runs[0].model.named_parameters())
        sizes = [tensors[name].numel() for name in self.names]
        return np.repeat(whole, sizes)

    def true_loss(self, weights, buffers=None):
        return loss_at(self.runs[0].model, self.runs[0].objective.loss_fn, weights, buffers, self.names)

    def height(self, point, planes=None):
        if self.blend == "planes" or self.plane == "flat":
            return self.true_loss(*self.network(point, planes))
        planes, total = self.planes if planes is None else planes, 0.0
        for share, plane in zip(self.shares(point, planes), planes, strict=True):
            if share > 0:
                total += share * self.true_loss(*self.network(point, [plane]))
        return total

    def gap(self, t, radius):
        """Return the rows of the same run within a distance of an anchor, measured along the projected path."""
        arc, rows = {self.first[t]: 0.0}, range(self.first[t], self.first[t] + self.length[t])
        for row in rows[1:]:
            arc[row] = arc[row - 1] + np.linalg.norm(self.path[row] - self.path[row - 1])
        return {row for row in rows if row == t or abs(arc[row] - arc[t]) <= radius * self.diagonal}

    def held_out(self, radius):
        """Return anchors and the heights there from planes that are built from no row near them."""
        rows, heights = [], []
        for t in self.anchors:
            gap = self.gap(t, radius)
            planes = [plane for plane in self.planes if not plane[1] & gap]
            for back, ahead in zip(self.planes, self.ahead, strict=self.plane == "local"):
                if back[1] & gap and not ahead[1] & gap:
                    planes.append(ahead)
            if planes:
                rows.append(t)
                heights.append(self.height(self.path[t], planes))
        return rows, np.array(heights)

    def held_out_error(self, radius=0.03):
        rows, heights = self.held_out(radius)
        return np.mean([abs(np.log10(height / self.loss[t])) for t, height in zip(rows, heights, strict=True)])


def grid_heights(picture, land):
    """Return the height at each point of the grid of a landscape, row by row."""
    return np.array([[picture.height(np.array([x, y])) for x in land.x] for y in land.y])


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


def full_sum(objective, planes, kernel, points):
    """Return the average of the losses on all planes at some points, one plane after another."""
    total, shares = np.zeros(len(points)), kernel.weights(points)
    for plane in range(len(planes)):
        alone = np.zeros((len(points), len(planes)))
        alone[:, plane] = 1.0
        buffers = None if planes.buffers is None else np.repeat(planes.buffers[[plane]], len(points), axis=0)
        total += shares[:, plane] * objective(planes.lift(points, alone), buffers)
    return total


def height_of_triangles(land, heights, point):
    """Return the height of the drawn triangles of a landscape at a point."""
    column = min(int(np.searchsorted(land.x, point[0], "right")) - 1, len(land.x) - 2)
    row = min(int(np.searchsorted(land.y, point[1], "right")) - 1, len(land.y) - 2)
    right = (point[0] - land.x[column]) / (land.x[column + 1] - land.x[column])
    up = (point[1] - land.y[row]) / (land.y[row + 1] - land.y[row])
    a, b = heights[row, column], heights[row, column + 1]
    c, d = heights[row + 1, column + 1], heights[row + 1, column]
    if right >= up:
        return a + right * (b - a) + up * (c - b)
    return a + right * (c - d) + up * (d - a)
