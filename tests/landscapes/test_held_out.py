"""Held-out heights, and the choices based on them, against the sums of the reference."""

import numpy as np
import pytest
import reference
from tqdm import tqdm

import loss_viz as lv
from loss_viz.landscapes.grid import build_sampling
from loss_viz.landscapes.held_out import fit_shaped_kernel, held_out_error, held_out_heights, select_kernel
from loss_viz.landscapes.kernels import fit_kernel
from loss_viz.planes.projection import fit_projection
from loss_viz.runs.run_set import as_run_set
from loss_viz.settings import LandscapeSettings

SILENT = tqdm(disable=True)


@pytest.fixture(scope="module")
def sampling(run):
    projection = fit_projection(run.weights)
    return build_sampling(as_run_set(run), projection, LandscapeSettings(k=3, resolution=(5, 3), n_anchors=12))


def round_kernel(sampling):
    planes = sampling.planes
    return fit_kernel(planes.position, "auto", diagonal=sampling.projection.diagonal, path=planes.path)


@pytest.mark.parametrize("block_radius", [0.0, 0.03, 0.2])
@pytest.mark.parametrize("shaped", [True, False])
def test_held_out_heights_are_those_of_the_other_planes_alone(run, sampling, block_radius, shaped):
    kernel = fit_shaped_kernel(sampling, "auto") if shaped else round_kernel(sampling)
    rows, heights = held_out_heights(sampling, kernel, block_radius, SILENT)
    anchors = sampling.anchors.tolist()
    expected = reference.held_out_heights(run, anchors, block_radius, k=3, sigma="auto", plane="local", shaped=shaped)
    assert rows.tolist() == expected[0]
    np.testing.assert_allclose(heights, expected[1], rtol=0.01)
    decades = np.log10(expected[1] / run.loss[rows])
    assert held_out_error(sampling, kernel, block_radius, SILENT) == pytest.approx(
        np.sqrt(np.mean(decades**2)), abs=0.01
    )


def test_what_is_left_out_does_not_matter(run, sampling):
    """A plane that is left out may hold any loss: the blend is as if it were not there."""
    kernel = fit_shaped_kernel(sampling, 0.1)
    left_out = np.zeros((1, len(sampling.planes)), dtype=bool)
    left_out[0, 3:7] = True
    shares = kernel.weights(sampling.projection.path[[20]], left_out)
    assert (shares[0, 3:7] == 0).all()
    assert shares.sum() == pytest.approx(1.0)
    rest = fit_kernel(np.delete(kernel.centers, range(3, 7), axis=0), 0.1, diagonal=sampling.projection.diagonal)
    np.testing.assert_allclose(np.delete(shares[0], range(3, 7)), rest.weights(sampling.projection.path[[20]])[0])


def test_auto_takes_the_shape_that_predicts_the_run_better(sampling):
    kernels = {True: fit_shaped_kernel(sampling, "auto"), False: round_kernel(sampling)}
    errors = {shaped: held_out_error(sampling, kernel, 0.03, SILENT) for shaped, kernel in kernels.items()}
    assert errors[True] != errors[False]
    chosen = select_kernel(sampling, "auto", SILENT)
    assert (chosen.shape is not None) == (errors[True] < errors[False])


def test_both_shapes_are_chosen_by_some_run(post_landscapes):
    assert {land.kernel.shape is not None for land in post_landscapes.values()} == {True, False}


def test_kernels_with_a_shape_count_what_their_plane_misses(sampling):
    """r² = |d|² + 3 |d - M d|², by hand."""
    kernel = fit_shaped_kernel(sampling, "auto")
    axes, picture = sampling.planes.bases[5][1], sampling.projection.components
    step = np.array([0.3, -0.2])
    followed = picture @ axes.T @ axes @ picture.T @ step
    expected = step @ step + 3 * (step - followed) @ (step - followed)
    root = kernel.shape[5] @ step
    assert root @ root == pytest.approx(expected, rel=1e-9)
    assert fit_shaped_kernel(sampling, 0.06).shape is None


def test_held_out_factors_of_a_landscape(run):
    land = lv.landscape(run, k=3, resolution=(5, 3), n_anchors=12, progress=False)
    shaped = land.kernel.shape is not None
    fit = lv.fidelity(land, held_out=True, block_radius=0.03)
    rows, heights = reference.held_out_heights(
        run, land.anchors.tolist(), 0.03, k=3, sigma="auto", plane="local", shaped=shaped
    )
    assert fit.step.tolist() == run.step[rows].tolist()
    ratio = heights / run.loss[rows]
    np.testing.assert_allclose(fit.factor, np.maximum(ratio, 1 / ratio), rtol=0.02)
    assert fit.decades == pytest.approx(np.sqrt(np.mean(np.log10(fit.factor) ** 2)))


def test_errors_where_nothing_can_be_held_out(run):
    with pytest.raises(ValueError, match="one global plane") as error:
        lv.fidelity(lv.landscape(run, plane="global", resolution=3, progress=False), held_out=True)
    assert "Use `plane`='local'" in str(error.value)
    land = lv.landscape(run, resolution=3, n_anchors=3, progress=False)
    with pytest.raises(ValueError, match="leaves no plane for any anchor"):
        lv.fidelity(land, held_out=True, block_radius=5.0)
    with pytest.raises(ValueError, match="must be a fraction of the path's diagonal, 0 or more; got -1"):
        lv.fidelity(land, held_out=True, block_radius=-1.0)


def test_the_sigma_curve_is_the_error_of_each_width(run):
    land = lv.landscape(run, k=3, resolution=3, n_anchors=12, progress=False)
    curve = lv.sigma_curve(land, [0.02, 0.2], progress=False)
    for sigma, error in zip((0.02, 0.2), curve.error, strict=True):
        rows, heights = reference.held_out_heights(
            run, land.anchors.tolist(), 0.03, k=3, sigma=sigma, plane="local", shaped=False
        )
        assert error == pytest.approx(np.sqrt(np.mean(np.log10(heights / run.loss[rows]) ** 2)), abs=0.01)
    assert curve.auto == pytest.approx(lv.fidelity(land, held_out=True).decades)
    assert curve.best in (0.02, 0.2)
    with pytest.raises(ValueError, match="needs planes to blend"):
        lv.sigma_curve(lv.landscape(run, plane="final", resolution=3, progress=False))
    with pytest.raises(ValueError, match="`sigma` must be 'auto' or a fraction"):
        lv.sigma_curve(land, [0.0])


@pytest.mark.parametrize("target", ["x^2", "x^3", "sin(3x)", "abs(x)"])
def test_auto_is_near_the_best_width_that_could_be_chosen_afterwards(target, post_runs):
    run = post_runs.get(target) or lv.train(target, seed=0, progress=False)
    curve = lv.sigma_curve(lv.landscape(run, resolution=2, progress=False))
    assert curve.auto <= 1.3 * np.nanmin(curve.error)


def test_maps_against_the_definition(run):
    land = lv.landscape(run, k=3, resolution=(5, 3), n_anchors=12, progress=False)
    mixing, disagreement = lv.disagreement_map(land, of="run"), lv.disagreement_map(land, progress=False)
    assert mixing.shape == disagreement.shape == (3, 5)
    weights = np.array(run.weights)
    _, components, _ = reference.principal_plane(weights)
    for row, column in ((0, 0), (2, 1), (1, 4)):
        point = np.array([land.x[column], land.y[row]])
        share = land.kernel.weights(point[None])[0]
        counted = np.flatnonzero(share >= share.max() / 100)
        share = share[counted] / share[counted].sum()
        for found, losses in (
            (mixing, [run.loss[land.anchors[j]] for j in counted]),
            (
                disagreement,
                [
                    reference.loss_at(
                        run.model,
                        run.objective.loss_fn,
                        reference.lift(weights, components, land.path, land.anchors[j], 3, point, "local"),
                    )
                    for j in counted
                ],
            ),
        ):
            logs = np.log(losses)
            spread = np.sqrt(share @ (logs - share @ logs) ** 2)
            assert found[row, column] == pytest.approx(np.exp(spread), rel=1e-6)


def test_one_plane_has_no_disagreement(run):
    land = lv.landscape(run, plane="global", resolution=(5, 3), progress=False)
    assert (lv.disagreement_map(land, of="run") == 1).all()
    assert (lv.disagreement_map(land) == 1).all()


def test_wide_kernels_average_more_different_losses(run):
    narrow, wide = (lv.landscape(run, sigma=s, resolution=(7, 5), progress=False) for s in (0.01, 0.2))
    assert np.median(lv.disagreement_map(wide, of="run")) > np.median(lv.disagreement_map(narrow, of="run"))
