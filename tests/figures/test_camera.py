"""The camera: the viewpoint from which most of the run is seen."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.interpolate import RegularGridInterpolator

import loss_viz as lv
from loss_viz.figures import camera
from loss_viz.figures.camera import aim
from loss_viz.figures.loss_axis import fit_scale
from loss_viz.figures.style import BOX

SIZE = np.array([BOX[axis] for axis in "xyz"])


def visible_length(land, scale, eye):
    """Return the visible length of the run from a viewpoint, with one ray after the other."""
    ground = RegularGridInterpolator((land.y, land.x), scale.fraction(land.loss))
    low, high = np.array([land.x[0], land.y[0]]), np.array([land.x[-1], land.y[-1]])
    flat = (land.path - low) / (high - low)
    points = (np.column_stack([flat, scale.fraction(land.path_loss)]) - 0.5) * SIZE
    seen = []
    last = set((land.run_set.ends - 1).tolist())
    for point in points:
        ray = (point + np.linspace(0, 0.75, 400)[1:, None] * (eye - point)) / SIZE + 0.5
        inside = (ray[:, 0] >= 0) & (ray[:, 0] <= 1) & (ray[:, 1] >= 0) & (ray[:, 1] <= 1) & (ray[:, 2] <= 1)
        ray = ray[: inside.argmin() if not inside.all() else len(ray)]  # until it leaves the box
        place = low + ray[:, :2] * (high - low)
        seen.append((ray[:, 2] + camera.CLEARANCE >= ground(place[:, ::-1])).all())
    length = 0.0
    for i in range(len(points) - 1):
        if seen[i] and seen[i + 1] and i not in last:  # no line from one run to the next
            length += np.linalg.norm(np.cross(points[i + 1] - points[i], eye / np.linalg.norm(eye)))
    return length


@pytest.mark.parametrize(("target", "log", "n_runs"), [("x^2", True, 1), ("sin(3x)", False, 1), ("x^3", True, 2)])
def test_most_of_the_runs_is_seen(target, log, n_runs):
    runs = lv.compare(target, ["adam", "sgd"][:n_runs], steps=90, progress=False)
    land = lv.landscape(runs, resolution=(17, 13), progress=False)
    scale = fit_scale([land.loss, land.path_loss], log=log)
    found = np.array([aim(land, scale, distance=1.0)["eye"][axis] for axis in "xyz"])
    assert np.linalg.norm(found) == pytest.approx(camera.RADIUS)
    lengths = []
    for elevation in (28, 42):
        for azimuth in range(0, 360, 30):
            up, around = np.radians([elevation, azimuth])
            eye = camera.RADIUS * np.array([np.cos(up) * np.cos(around), np.cos(up) * np.sin(around), np.sin(up)])
            lengths.append(visible_length(land, scale, eye))
    # The product follows about a hundred points of the run, and 60 of each ray.
    assert visible_length(land, scale, found) > 0.97 * max(lengths)
    assert max(lengths) > 1.2 * min(lengths)


def test_a_surface_above_the_run_hides_it():
    land = lv.landscape(lv.train("x^2", steps=60, progress=False), resolution=(9, 7), progress=False)
    raised = replace(land, loss=land.loss + 1.0)
    scale = fit_scale([raised.loss, land.path_loss], log=False)
    points = camera._place(raised, scale, land.path, land.path_loss)
    for eye in camera._list_eyes():
        assert not camera._is_visible(raised, scale.fraction(raised.loss), points, eye).any()
        assert visible_length(raised, scale, eye) == 0.0
