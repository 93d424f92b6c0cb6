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
from loss_viz.panel.controller import BUNDLED_CHOICE, BUNDLED_RUN

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


def place_eye(elevation, azimuth):
    up, around = np.radians([elevation, azimuth])
    return camera.RADIUS * np.array([np.cos(up) * np.cos(around), np.cos(up) * np.sin(around), np.sin(up)])


@pytest.mark.parametrize(("target", "log", "n_runs"), [("x^2", True, 1), ("sin(3x)", False, 1), ("x^3", True, 2)])
def test_most_of_the_runs_is_seen(target, log, n_runs):
    runs = lv.compare(target, ["adam", "sgd"][:n_runs], steps=90, progress=False)
    land = lv.landscape(runs, resolution=(17, 13), progress=False)
    scale = fit_scale([land.loss, land.path_loss], log=log)
    found = np.array([aim(land, scale, distance=1.0)["eye"][axis] for axis in "xyz"])
    assert np.linalg.norm(found) == pytest.approx(camera.RADIUS)
    lengths = np.array(
        [[visible_length(land, scale, place_eye(up, around)) for around in range(0, 360, 15)] for up in (28, 42)]
    )
    smooth = (2 * lengths + np.roll(lengths, 1, axis=1) + np.roll(lengths, -1, axis=1)) / 4
    places = [place_eye(up, around) for up in (28, 42) for around in range(0, 360, 15)]
    [index] = [i for i, place in enumerate(places) if np.allclose(place, found)]
    # The product follows about a hundred points of the run, and 60 of each ray.
    assert smooth.ravel()[index] > 0.97 * smooth.max()
    assert lengths.max() > 1.2 * lengths.min()


def test_a_surface_above_the_run_hides_it():
    land = lv.landscape(lv.train("x^2", steps=60, progress=False), resolution=(9, 7), progress=False)
    raised = replace(land, loss=land.loss + 1.0)
    scale = fit_scale([raised.loss, land.path_loss], log=False)
    points = camera._place(raised, scale, land.path, land.path_loss)
    for eye in camera._list_eyes():
        assert not camera._is_visible(raised, scale.fraction(raised.loss), points, eye).any()
        assert visible_length(raised, scale, eye) == 0.0


def test_the_end_of_the_bundled_run_is_seen_on_the_coarsest_surface_and_on_the_finest():
    """The camera is aimed at the first surface on screen and stays."""
    run = lv.load_run(BUNDLED_RUN)
    coarse, fine = (lv.landscape(run, **BUNDLED_CHOICE, resolution=n, progress=False) for n in (16, 61))
    scale = fit_scale([coarse.loss, coarse.path_loss], log=True)
    eye = np.array(list(aim(coarse, scale, distance=1.0)["eye"].values()))
    for land in (coarse, fine):
        last = camera._place(land, scale, land.path, land.path_loss)[-20:]
        assert camera._is_visible(land, scale.fraction(land.loss), last, eye).all()
