"""The recorder: against training without it, and against a manual record."""

import copy
import itertools
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import loss_viz as lv
from loss_viz.runs import recorder as module
from loss_viz.runs.checkpoints import Checkpoints

X = torch.linspace(-1, 1, 40)[:, None]
Y = X.sin()


def mse(model):
    return nn.functional.mse_loss(model(X), Y)


def build(*, batch_norm=False, dropout=False):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Linear(1, 6), *([nn.BatchNorm1d(6)] if batch_norm else []), nn.Tanh()]
        layers += [nn.Dropout(0.3)] if dropout else []
        return nn.Sequential(*layers, nn.Linear(6, 1))


def steps(model, optimizer, n, *, accumulate=1, seed=1):
    """Train on random batches; yield after each update."""
    torch.manual_seed(seed)
    model.train()
    for _ in range(n):
        optimizer.zero_grad()
        for _ in range(accumulate):
            batch = torch.randint(0, len(X), (8,))
            nn.functional.mse_loss(model(X[batch]), Y[batch]).backward()
        optimizer.step()
        yield


def exhaust(generator):
    for _ in generator:
        pass


def state(model, optimizer):
    parts = [*model.state_dict().values(), torch.get_rng_state()]
    parts += [
        value for group in optimizer.state.values() for value in group.values() if isinstance(value, torch.Tensor)
    ]
    return [part.clone() for part in parts], [module.training for module in model.modules()]


def same(one, two):
    return one[1] == two[1] and all(torch.equal(a, b) for a, b in zip(one[0], two[0], strict=True))


@pytest.mark.parametrize("way", ["record", "attach", "folder"])
def test_recording_changes_no_bit_of_the_training(way, tmp_path):
    ends = []
    for recorded in (False, True):
        model = build(batch_norm=True, dropout=True)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, amsgrad=True)
        torch.manual_seed(7)
        if not recorded:
            exhaust(steps(model, optimizer, 30))
        else:
            folder = tmp_path if way == "folder" else None
            recorder = lv.Recorder(model, mse, every=2, folder=folder)
            if way == "attach":
                with recorder.attach(optimizer):
                    exhaust(steps(model, optimizer, 30))
            else:
                for _ in steps(model, optimizer, 30):
                    recorder.record()
            run = recorder.run()
            assert run.step.tolist() == list(range(0, 31, 2))
            lv.landscape(run, k=2, resolution=5, progress=False)
        ends.append(state(model, optimizer))
    assert same(*ends)


def test_rows_and_losses_equal_a_manual_record():
    model = build(batch_norm=True, dropout=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    recorder = lv.Recorder(model, mse)
    weights, losses = [], []

    def note():
        weights.append(nn.utils.parameters_to_vector(model.parameters()).detach().clone().numpy())
        with torch.no_grad():
            losses.append(mse(copy.deepcopy(model).eval()).item())  # with the running statistics of the moment

    note()
    for _ in steps(model, optimizer, 20):
        recorder.record()
        note()
    run = recorder.run()
    np.testing.assert_array_equal(run.weights, weights)
    np.testing.assert_allclose(run.loss, losses, rtol=1e-5)
    assert run.step.tolist() == list(range(21))
    np.testing.assert_allclose(run.objective(run.weights, run.buffers), run.loss, rtol=1e-6)
    land = lv.landscape(run, k=2, resolution=3, n_anchors=None, progress=False)
    assert lv.fidelity(land).median < 1.02  # each plane has the statistics of its step


def test_constant_buffers_are_not_in_the_run():
    model = build(batch_norm=True).eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with lv.Recorder(model, mse).attach(optimizer) as recorder:
        for _ in range(5):
            optimizer.zero_grad()
            mse(model).backward()
            optimizer.step()
    assert recorder.run().buffers is None


@pytest.mark.parametrize("n_steps", [3, 9, 10, 11, 57, 200, 1001])
@pytest.mark.parametrize("max_snapshots", [3, 10])
def test_snapshots_are_evenly_spaced(n_steps, max_snapshots):
    model = nn.Linear(1, 1)
    recorder = lv.Recorder(model, mse, max_snapshots=max_snapshots)
    for _ in range(n_steps):
        with torch.no_grad():
            model.weight += 0.001
        recorder.record()
    run = recorder.run()
    assert len(run) <= max_snapshots
    assert run.step[0] == 0
    assert run.step[-1] == n_steps
    gaps = np.diff(run.step)
    assert len(set(gaps[:-1].tolist())) <= 1
    assert gaps[-1] <= gaps[0]
    assert len(run) >= min(n_steps + 1, max_snapshots // 2)
    np.testing.assert_allclose(np.diff(run.weights[:, 0]), 0.001 * gaps, rtol=1e-2)


def test_run_can_be_called_at_any_time(tmp_path):
    for folder in (None, tmp_path):
        model = nn.Linear(1, 1)
        recorder = lv.Recorder(model, mse, every=10, folder=folder)
        lengths = []
        for step in range(1, 36):
            with torch.no_grad():
                model.bias += 0.01
            recorder.record()
            if step in (4, 5, 20, 33):
                lengths.append(recorder.run().step.tolist())
        assert lengths == [[0, 4], [0, 5], [0, 10, 20], [0, 10, 20, 30, 33]]
        assert recorder.run().step.tolist() == [0, 10, 20, 30, 35]
    assert len(list(tmp_path.iterdir())) == 5


def test_accumulated_gradients_count_as_one_update():
    model = build()
    optimizer = torch.optim.Adam(model.parameters())
    with lv.Recorder(model, mse).attach(optimizer) as recorder:
        exhaust(steps(model, optimizer, 6, accumulate=4))
    assert recorder.run().step.tolist() == list(range(7))
    exhaust(steps(model, optimizer, 2))
    assert recorder.step == 6  # the block is over

    recorder = lv.Recorder(model, mse)
    for _ in steps(model, optimizer, 6):
        for _ in range(4):
            recorder.record()
    with pytest.warns(RuntimeWarning, match=r"\d\d% of the snapshots hold the weights of the one before"):
        recorder.run()


def test_updates_skipped_by_a_gradient_scaler_do_not_count():
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu") if hasattr(torch.amp, "GradScaler") else None
    if scaler is None:
        pytest.skip("this PyTorch has no scaler for the CPU")
    with lv.Recorder(model, mse).attach(optimizer) as recorder:
        for i in range(4):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = mse(model) * (float("inf") if i == 1 else 1.0)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    run = recorder.run()
    assert run.step.tolist() == [0, 1, 2, 3]
    assert run.loss[-1] == pytest.approx(mse(model).item(), rel=1e-5)  # not that of bfloat16


def test_parameters_tied_frozen_and_in_groups():
    model = nn.ModuleDict({"a": nn.Linear(1, 3), "b": nn.Linear(3, 3), "c": nn.Linear(3, 3), "d": nn.Linear(3, 1)})
    model["c"].weight = model["b"].weight
    model["a"].requires_grad_(False)

    def loss_fn(m):
        return nn.functional.mse_loss(m["d"](m["c"](m["b"](m["a"](X)).tanh()).tanh()), Y)

    groups = [{"params": model["b"].parameters(), "lr": 0.1}, {"params": model["d"].parameters(), "lr": 0.01}]
    optimizer = torch.optim.SGD([*groups, {"params": [model["c"].bias], "lr": 0.0}])
    with lv.Recorder(model, loss_fn).attach(optimizer) as recorder:
        for _ in range(12):
            optimizer.zero_grad()
            loss_fn(model).backward()
            optimizer.step()
    run = recorder.run()
    assert run.weights.shape == (13, 9 + 3 + 3 + 4)
    assert run.loss[-1] == pytest.approx(loss_fn(model).item(), rel=1e-5)
    assert run.loss[-1] < run.loss[0]


def test_lbfgs_and_a_loop_without_optimizer():
    model = build()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5)

    def closure():
        optimizer.zero_grad()
        loss = mse(model)
        loss.backward()
        return loss

    with lv.Recorder(model, mse).attach(optimizer) as recorder:
        for _ in range(5):
            optimizer.step(closure)
    assert recorder.run().step.tolist() == list(range(6))

    recorder = lv.Recorder(model, mse)
    for _ in range(5):
        model.zero_grad()
        mse(model).backward()
        for p in model.parameters():
            p.data -= 0.01 * p.grad
        recorder.record()
    assert len(np.unique(recorder.run().weights[:, 0])) == 6


@pytest.mark.parametrize(
    "wrap", [lambda m: torch.compile(m, backend="eager"), nn.DataParallel], ids=["compile", "parallel"]
)
def test_wrapped_models_are_unwrapped(wrap):
    model = build()
    wrapped = wrap(model)
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.1)
    with lv.Recorder(wrapped, mse).attach(optimizer) as recorder:
        exhaust(steps(wrapped, optimizer, 4))
    run = recorder.run()
    assert run.model is model
    assert run.loss[-1] == pytest.approx(mse(model.eval()).item(), rel=1e-5)
    assert run.objective.layout.entries[0].name == "0.weight"


def test_the_folder_holds_plain_checkpoints(tmp_path):
    model = build(batch_norm=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with lv.Recorder(model, mse, folder=tmp_path / "new" / "run").attach(optimizer) as recorder:
        exhaust(steps(model, optimizer, 9))
    run = recorder.run()
    assert isinstance(run.weights, Checkpoints)
    again = lv.Run.from_checkpoints(build(batch_norm=True), mse, tmp_path / "new" / "run")
    assert again.step.tolist() == run.step.tolist() == list(range(10))
    np.testing.assert_array_equal(again.loss, run.loss)
    np.testing.assert_array_equal(again.weights[:], run.weights[:])
    safetensors = pytest.importorskip("safetensors.torch")
    other = build(batch_norm=True)
    missing, unknown = other.load_state_dict(safetensors.load_file(run.weights.paths[-1]), strict=False)
    assert missing == ["1.num_batches_tracked"] or not missing
    assert not unknown
    assert mse(other.eval()).item() == pytest.approx(run.loss[-1], rel=1e-6)
    with pytest.raises(ValueError, match=r"`folder` must be a new or empty folder.*10 snapshots of another run"):
        lv.Recorder(model, mse, folder=tmp_path / "new" / "run")


def test_landscapes_from_disk_and_from_memory_are_the_same(tmp_path, monkeypatch):
    made = []
    for folder in (None, tmp_path):
        model = build(batch_norm=True)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
        with lv.Recorder(model, mse, folder=folder).attach(optimizer) as recorder:
            exhaust(steps(model, optimizer, 40))
        if folder:
            monkeypatch.setattr("loss_viz.runs.weights.BLOCK_BYTES_ON_DISK", 1000)  # a few columns at a time
        for plane in ("local", "parallel", "flat"):
            made.append(lv.landscape(recorder.run(), k=3, plane=plane, resolution=(7, 5), progress=False))
    for held, read in zip(made[:3], made[3:], strict=True):
        assert isinstance(held.run_set.weights, np.ndarray)
        assert not isinstance(read.run_set.weights, np.ndarray)
        np.testing.assert_allclose(read.path, held.path, atol=1e-12)
        np.testing.assert_allclose(read.loss, held.loss, rtol=1e-5)
        np.testing.assert_allclose(read.path_height, held.path_height, rtol=1e-5)
        assert read.n_evaluations == held.n_evaluations


def test_a_crash_loses_only_the_snapshot_being_written(tmp_path):
    """The process dies while it writes a snapshot; the complete ones open."""
    script = tmp_path / "train.py"
    script.write_text(
        "import os, torch, loss_viz as lv\n"
        "from pathlib import Path\n"
        "torch.manual_seed(0)\n"
        "model = torch.nn.Linear(1, 1)\n"
        "x = torch.ones(3, 1)\n"
        f"recorder = lv.Recorder(model, lambda m: m(x).square().mean(), folder={str(tmp_path / 'run')!r})\n"
        "sync = os.fsync\n"
        "def die(file):\n"
        "    os.ftruncate(file, 40)\n"
        "    os._exit(9)\n"
        "for step in range(8):\n"
        "    with torch.no_grad():\n"
        "        model.weight += 0.1\n"
        "    if step == 6:\n"
        "        os.fsync = die\n"
        "    recorder.record()\n"
    )
    assert subprocess.run([sys.executable, str(script)], check=False).returncode == 9
    x = torch.ones(3, 1)
    run = lv.Run.from_checkpoints(nn.Linear(1, 1), lambda m: m(x).square().mean(), tmp_path / "run")
    assert run.step.tolist() == list(range(7))


def test_a_full_disk_ends_only_the_recording(tmp_path, monkeypatch):
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = lv.Recorder(model, mse, folder=tmp_path).attach(optimizer)
    loop = steps(model, optimizer, 10)
    exhaust(itertools.islice(loop, 5))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_snapshot", full)
    with pytest.warns(RuntimeWarning, match=r"could not go on at step 6: .*No space left.*kept up to step 5"):
        next(loop)
    exhaust(loop)
    assert not optimizer._optimizer_step_post_hooks
    run = recorder.run()
    assert run.step.tolist() == list(range(6))
    assert "No space left" in run.note
    with pytest.raises(OSError, match="No space left"):
        lv.Recorder(model, mse, folder=tmp_path / "other")


def test_weights_that_are_not_finite_end_the_recording():
    model = nn.Linear(1, 1)
    recorder = lv.Recorder(model, mse)
    for value in (1.0, 2.0, float("nan"), 3.0):
        with torch.no_grad():
            model.weight.fill_(value)
        if np.isnan(value):
            with pytest.warns(RuntimeWarning, match="no longer finite at step 3; the run is kept up to step 2"):
                recorder.record()
        else:
            recorder.record()
    assert recorder.run().step.tolist() == [0, 1, 2]


def test_a_loss_that_is_not_finite_ends_the_run():
    model = nn.Linear(1, 1)
    recorder = lv.Recorder(model, lambda m: 1 / (m.weight.sum() < 5).float() + m(X).square().mean())
    with torch.no_grad():
        for _ in range(8):
            model.weight += 1
            recorder.record()
    with pytest.warns(RuntimeWarning, match="The loss is inf at step"):
        run = recorder.run()
    assert np.isfinite(run.loss).all()
    assert 2 < len(run) < 9


def test_an_interrupted_block_keeps_what_was_recorded():
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(KeyboardInterrupt), lv.Recorder(model, mse, every=4).attach(optimizer) as recorder:  # noqa: PT012
        exhaust(steps(model, optimizer, 6))
        raise KeyboardInterrupt
    assert recorder.run().step.tolist() == [0, 4, 6]


@pytest.mark.parametrize(
    ("loss_fn", "error", "cause"),
    [
        (lambda m: m(X), ValueError, r"got a tensor of shape \(40, 1\)"),
        (lambda m: mse(m).item(), TypeError, "must return a scalar tensor, got float"),
        (lambda m: mse(m) * float("nan"), ValueError, r"must be finite at the start, it is nan\. Check its data"),
        (lambda m: (mse(m), 0), TypeError, "got tuple"),
        (lambda m: nn.functional.mse_loss(m(X[torch.randint(0, 40, (5,))]), Y[:5]), ValueError, "same loss twice"),
    ],
)
def test_an_invalid_loss_raises_before_the_training(loss_fn, error, cause):
    model = build()
    random = torch.get_rng_state()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=cause):
        lv.Recorder(model, loss_fn)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training


def grow(model):
    model[2] = nn.Linear(6, 2)


def shrink(model):
    del model[2]


def unfreeze(model):
    model[0].requires_grad_(True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (grow, r"'2\.weight' was \(1, 6\) and is \(2, 6\)"),
        (shrink, r"'2\.weight' was \(1, 6\) and is gone"),
        (unfreeze, r"'0\.weight' was not trained and is \(6, 1\)"),
    ],
)
@pytest.mark.parametrize("way", ["record", "attach"])
def test_a_changed_model_ends_only_the_recording(change, words, way):
    model = build()
    model[0].requires_grad_(False)
    recorder = lv.Recorder(model, mse)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if way == "attach":
        recorder.attach(optimizer)
    follow = recorder.record if way == "record" else int
    for _ in steps(model, optimizer, 3):
        follow()
    change(model)
    text = rf"At step 4 the model has changed, {words}; the run is kept up to step 3\. Make a new Recorder"
    optimizer.zero_grad()
    with pytest.warns(RuntimeWarning, match=text):
        optimizer.step() if way == "attach" else follow()
    optimizer.step()
    follow()
    run = recorder.run()
    assert run.step.tolist() == [0, 1, 2, 3]
    assert "the model has changed" in run.note


def test_other_misuse_raises():
    model = build()
    with pytest.raises(ValueError, match=r"holds only the start\. Call recorder\.record\(\) after each"):
        lv.Recorder(model, mse).run()
    for arguments in ({"every": 0}, {"max_snapshots": 2}):
        with pytest.raises(ValueError, match="must be a whole number of at least"):
            lv.Recorder(model, mse, **arguments)
    with pytest.raises(ValueError, match="none of its parameters are the model's"):
        lv.Recorder(model, mse).attach(torch.optim.SGD(build().parameters(), lr=0.1))
    with pytest.raises(TypeError, match=r"must be a torch\.optim\.Optimizer, got Sequential"):
        lv.Recorder.attach.__wrapped__(lv.Recorder(model, mse), model)  # past the shape checks of the tests
    with pytest.raises(ValueError, match="`device` must be available to PyTorch, got 'nowhere'"):
        lv.Recorder(model, mse, device="nowhere")


def test_two_lines_in_a_script_are_enough(tmp_path):
    """A training script with two added lines, in which warnings are errors."""
    script = tmp_path / "stranger.py"
    script.write_text(
        "import torch\n"
        "from torch import nn\n"
        "import loss_viz as lv\n"
        "x = torch.linspace(-1, 1, 64)[:, None]\n"
        "y = (3 * x).sin()\n"
        "model = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1))\n"
        "criterion = nn.MSELoss()\n"
        "optimizer = torch.optim.Adam(model.parameters(), lr=0.01)\n"
        "recorder = lv.Recorder(model, lambda m: criterion(m(x), y)).attach(optimizer)\n"
        "for epoch in range(100):\n"
        "    optimizer.zero_grad()\n"
        "    criterion(model(x), y).backward()\n"
        "    optimizer.step()\n"
        "figure = lv.surface_figure(lv.landscape(recorder.run(), resolution=21))\n"
        "assert figure.data[0].name == 'surface'\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", str(script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_warnings_are_no_errors_of_the_run_itself():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = build()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with lv.Recorder(model, mse, name="mine").attach(optimizer) as recorder:
            exhaust(steps(model, optimizer, 5))
        run = recorder.run()
    assert run.name == "mine"
    assert repr(recorder) == "Recorder(6 snapshots of 19 weights, up to step 5)"
