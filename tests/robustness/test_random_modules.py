"""Random models with the habits of real code: each loss is that of the model itself, or refused in words."""

import os
import warnings

import numpy as np
import pytest
import torch
from random_modules import N_STEPS, build, loss_of_live, train
from torch import nn

import loss_viz as lv
from loss_viz.objective.objective import LossCheck
from loss_viz.runs import recorder

N_QUICK, N_ALL = 25, 250
SAID = "differ from those of the model itself"


@pytest.fixture(autouse=True)
def keep_settings():
    dtype, n_threads = torch.get_default_dtype(), torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        yield
    torch.set_default_dtype(dtype)
    torch.set_num_threads(n_threads)


def examine(seed):
    """Return "equal", "said" or "refused"; raise AssertionError for a number that is wrong, and nobody says so."""
    model, loss_fn, trained = build(seed)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            recorder = lv.Recorder(model, loss_fn)
        except ValueError as error:
            if str(error).startswith(("`", "Parameters")):  # a sentence of ours
                return "refused"
            raise
        n_kept = len(getattr(model, "collected", []))
        true = train(model, loss_fn, trained, recorder.record)
        n_own = len(getattr(model, "collected", []))
        run = recorder.run(progress=False)
        land = lv.landscape(run, plane="flat", center="last", resolution=(3, 5), progress=False)
        assert len(getattr(model, "collected", [])) == n_own == n_kept + n_calls(loss_fn, model)
    assert len(run) == N_STEPS + 1
    if any(SAID in str(warning.message) for warning in caught):
        assert SAID in run.note
        assert any(SAID in sentence for sentence in lv.assess(land).warnings)
        return "said"
    np.testing.assert_allclose(run.loss, true, rtol=1e-8, err_msg=f"seed {seed}")
    # One point beside the run, by the live model itself, which holds the state of the last step.
    weights = np.array(run.weights[-1])
    weights += (np.array([land.x[-1], land.y[0]]) - land.path[-1]) @ land.projection.components
    model.train()
    with torch.no_grad():
        for p, part in run.objective.layout.split(torch.tensor(weights)).items():
            dict(model.named_parameters())[p].copy_(part)
    expected = loss_of_live(model, loss_fn)
    np.testing.assert_allclose(land.loss[0, -1], expected, rtol=1e-8, err_msg=f"seed {seed}")
    return "equal"


def n_calls(loss_fn, model):
    """Return how often the hook that collects is called by the training itself."""
    return N_STEPS * (2 if getattr(loss_fn, "__name__", "") == "residual" else 1) if hasattr(model, "collected") else 0


def examine_all(seeds):
    found = [examine(seed) for seed in seeds]
    return {kind: found.count(kind) for kind in ("equal", "said", "refused")}


def test_random_modules():
    counts = examine_all(range(N_QUICK))
    assert counts["equal"] > 0.8 * N_QUICK, counts


@pytest.mark.slow
def test_many_random_modules():
    n = int(N_ALL * float(os.environ.get("LOSS_VIZ_FUZZ", "1")))
    counts = examine_all(range(N_QUICK, N_QUICK + n))
    assert counts["equal"] > 0.8 * n, counts


def test_a_wrong_loss_would_be_noticed(monkeypatch):
    """With the state of the first step in place of the recorded one, and without the check, the comparison fails."""
    seed = next(seed for seed in range(100) if any(isinstance(m, nn.BatchNorm1d) for m in build(seed)[0].modules()))
    monkeypatch.setattr(recorder, "gather_snapshots", lambda look, _: (look.objective, forget(look), None))
    monkeypatch.setattr(lv.Objective, "check_losses", lambda *_: LossCheck(5, 1.0))
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        examine(seed)


def forget(look):
    return np.stack([snapshot.weights for snapshot in look.snapshots.values()])
