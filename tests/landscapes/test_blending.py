"""Losses kept from one blend to the next change its cost, never its result."""

import numpy as np
import pytest
from tqdm import tqdm

from loss_viz.landscapes.grid import build_sampling, with_resolution
from loss_viz.landscapes.held_out import fit_shaped_kernel
from loss_viz.landscapes.kernels import fit_kernel
from loss_viz.landscapes.landscape import blend_path, blend_surface
from loss_viz.planes.projection import fit_projection
from loss_viz.runs.run_set import as_run_set
from loss_viz.settings import LandscapeSettings

SILENT = tqdm(disable=True)


class Stop(Exception):
    pass


class StopAfter(tqdm):
    """A bar that stops the work after `n_allowed` losses."""

    def __init__(self, n_allowed):
        super().__init__(disable=True)
        self.n_allowed = n_allowed

    def update(self, n=1):
        self.n_allowed -= n
        if self.n_allowed < 0:
            raise Stop


def sample(run, resolution=(23, 9)):
    settings = LandscapeSettings(resolution=resolution)
    return build_sampling(as_run_set(run), fit_projection(run.weights), settings)


@pytest.fixture
def sampling(run):
    return sample(run)


def blend_grid(sampling, sigma, bar=SILENT):
    return blend_surface(sampling, fit_shaped_kernel(sampling, sigma), bar)


def blend_all(sampling, sigma):
    return blend_path(sampling, blend_grid(sampling, sigma), fit_shaped_kernel(sampling, sigma), SILENT)


def count_evaluations(objective, monkeypatch):
    counts = []
    evaluate = objective._evaluate
    monkeypatch.setattr(objective, "_evaluate", lambda w, b: counts.append(len(w)) or evaluate(w, b))
    return counts


def test_a_second_kernel_evaluates_only_missing_losses(run, sampling, monkeypatch):
    counts = count_evaluations(run.objective, monkeypatch)
    blend_grid(sampling, 0.05)
    first = sum(counts)
    counts.clear()
    blend_grid(sampling, 0.05)
    assert not counts
    blend_grid(sampling, 0.06)
    assert 0 < sum(counts) < first / 4


def test_kept_losses_change_no_number(run, sampling):
    for sigma in ("auto", 0.2, 0.003, 0.06):
        blend_grid(sampling, sigma)
    fresh = sample(run)
    for sigma in ("auto", 0.06):
        kept, new = (blend_all(a, sigma) for a in (sampling, fresh))
        np.testing.assert_allclose(kept.loss, new.loss, rtol=1e-12)
        np.testing.assert_allclose(kept.path_height, new.path_height, rtol=1e-12)
        assert kept.n_evaluations == new.n_evaluations


def test_another_grid_keeps_the_losses_at_the_path(run, sampling, monkeypatch):
    blend_all(sampling, 0.06)
    other = with_resolution(sampling, (6, 7))
    fresh = sample(run, (6, 7))
    counts = count_evaluations(run.objective, monkeypatch)
    surface = blend_grid(other, 0.06)
    counts.clear()
    land = blend_path(other, surface, fit_shaped_kernel(other, 0.06), SILENT)
    assert not counts
    expected = blend_all(fresh, 0.06)
    np.testing.assert_allclose(land.loss, expected.loss, rtol=1e-12)
    np.testing.assert_allclose(land.path_height, expected.path_height, rtol=1e-12)
    np.testing.assert_allclose(land.support, expected.support)


@pytest.mark.parametrize("n_allowed", [0, 700, 2000, 5000])
def test_stopped_work_keeps_its_losses(run, sampling, monkeypatch, n_allowed):
    monkeypatch.setattr(run.objective, "chunk_size", 50)
    whole = sample(run)
    expected = blend_grid(whole, 0.06)
    with pytest.raises(Stop):
        blend_grid(sampling, 0.06, StopAfter(n_allowed))
    n_kept = len(sampling.grid)
    assert n_kept >= n_allowed - 61 * 25
    assert n_kept < len(whole.grid)
    counts = count_evaluations(run.objective, monkeypatch)
    heights = blend_grid(sampling, 0.06).loss
    np.testing.assert_allclose(heights, expected.loss, rtol=1e-12)
    assert sum(counts) - 61 * 25 <= len(whole.grid) - n_kept


def test_every_kept_loss_is_that_of_its_key(run, sampling):
    for sigma in (0.01, 0.1, 0.03):
        sampling.grid.blend(fit_kernel(sampling.planes.position, sigma, diagonal=sampling.projection.diagonal), SILENT)
    keys, losses = sampling.grid.loss_table._table
    assert (np.diff(keys) > 0).all()
    i, j = np.divmod(keys, len(sampling.planes))
    np.testing.assert_allclose(losses, run.objective(sampling.planes.lift(j, sampling.grid.points[i])), rtol=1e-12)
