import numpy as np
import pytest
import reference
from tqdm import tqdm

from loss_viz.planes import projection as projection_module
from loss_viz.planes.projection import fit_projection
from loss_viz.runs.weights import column_blocks

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("block_bytes", [2**29, 300])
@pytest.mark.parametrize("shape", [(40, 7), (7, 40), (12, 12), (3, 2), (3, 500)])
def test_equals_the_dense_svd(shape, block_bytes, monkeypatch):
    monkeypatch.setattr("loss_viz.runs.weights.BLOCK_BYTES", block_bytes)
    weights = RNG.normal(size=shape) * np.linspace(3, 1, shape[1])
    projection = fit_projection(weights)
    mean, components, ratio = reference.principal_plane(weights)
    np.testing.assert_allclose(projection.origin, mean, atol=1e-12)
    np.testing.assert_allclose(projection.components, components, atol=1e-9)
    np.testing.assert_allclose(projection.explained_variance_ratio, ratio, atol=1e-12)
    path = (weights - mean) @ components.T
    np.testing.assert_allclose(projection.path, path, atol=1e-8)
    off_plane = np.linalg.norm(weights - mean - path @ components, axis=1)
    extent = np.linalg.norm(weights - mean, axis=1).max()
    np.testing.assert_allclose(projection.off_plane, off_plane, atol=(1e-12 if block_bytes > 300 else 1e-7) * extent)


def test_blocks_are_counted():
    bar = tqdm(total=0, disable=True)
    assert list(column_blocks(np.zeros((10, 7)), bar)) == [slice(0, 7)]
    assert bar.total == 0  # one block is quick
    blocks = list(column_blocks(np.zeros((1, 7)), bar, n_rows=2**26))
    assert blocks == [slice(i, i + 1) for i in range(7)]
    assert bar.total == 7


@pytest.mark.parametrize("shape", [(40, 7), (7, 40)])
def test_axes_are_orthonormal_and_distances_are_pythagorean(shape):
    weights = RNG.normal(size=shape)
    projection = fit_projection(weights)
    np.testing.assert_allclose(projection.components @ projection.components.T, np.eye(2), atol=1e-12)
    squared = ((weights - projection.origin) ** 2).sum(axis=1)
    np.testing.assert_allclose((projection.path**2).sum(axis=1) + projection.off_plane**2, squared, rtol=1e-12)
    onto = (projection.lift(projection.path) - projection.origin) @ projection.components.T
    np.testing.assert_allclose(onto, projection.path, atol=1e-12)


def test_two_fits_have_the_same_signs_and_the_largest_loading_is_positive():
    weights = RNG.normal(size=(30, 6))
    one, two = fit_projection(weights), fit_projection(-weights)
    np.testing.assert_allclose(one.components, two.components, atol=1e-12)
    for row in one.components:
        assert row[np.abs(row).argmax()] > 0


@pytest.mark.parametrize("n_params", [1, 2, 50])
def test_a_run_that_never_moves_has_a_plane(n_params):
    projection = fit_projection(np.full((5, n_params), 0.3))
    assert not projection.path.any()
    assert not projection.off_plane.any()
    assert not projection.explained_variance_ratio.any()
    assert projection.diagonal == 1.0


@pytest.mark.parametrize("n_params", [1, 2, 3, 50])
def test_a_straight_run_has_a_second_axis_on_which_it_does_not_move(n_params):
    weights = np.outer(np.arange(6.0), RNG.normal(size=n_params))
    projection = fit_projection(weights)
    assert projection.explained_variance_ratio[0] == pytest.approx(1.0)
    np.testing.assert_allclose(projection.path[:, 1], 0, atol=1e-6)
    np.testing.assert_allclose(projection.off_plane, 0, atol=1e-6)


def test_float32_weights_are_accumulated_in_float64():
    weights = (1000 + RNG.normal(size=(50, 4))).astype(np.float32)
    expected = reference.principal_plane(weights.astype(float))[1]
    np.testing.assert_allclose(fit_projection(weights).components, expected, atol=1e-9)


@pytest.mark.parametrize("kind", ["walk", "low rank", "noise"])
def test_many_rows_do_not_need_their_gram_matrix(kind, monkeypatch):
    """Above 1,000 rows the axes come from iterations; where these do not converge, the Gram matrix is formed."""
    weights = RNG.normal(size=(1001, 1100))
    if kind == "walk":
        weights = weights.cumsum(axis=0)
    elif kind == "low rank":
        weights = weights[:, :3] @ weights[:3]
    calls, top = [], projection_module._top_eigenvectors
    monkeypatch.setattr(projection_module, "_top_eigenvectors", lambda gram: calls.append(1) or top(gram))
    projection = fit_projection(weights)
    assert bool(calls) == (kind == "noise")
    mean, components, ratio = reference.principal_plane(weights)
    np.testing.assert_allclose(projection.components, components, atol=1e-9)
    np.testing.assert_allclose(projection.explained_variance_ratio, ratio, atol=1e-12)
    np.testing.assert_allclose(projection.path, (weights - mean) @ components.T, atol=1e-8 * projection.diagonal)
