"""Everything of a model that changes in a training is recorded, or said; and recording never breaks the training."""

import copy
import threading
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import loss_viz as lv

X = torch.linspace(-1, 1, 60, dtype=torch.float64).reshape(15, 4)
Y = X.sum(1, keepdim=True).sin()
N = 12


def mse(m):
    return nn.functional.mse_loss(m(X), Y)


class Net(nn.Module):
    """A network with one thing more, which `change` moves after each update."""

    def __init__(self, **more):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(4, 6).double(), nn.Linear(6, 1).double()
        for name, value in more.items():
            if isinstance(value, nn.Parameter | nn.Module) or not isinstance(value, torch.Tensor):
                setattr(self, name, value)
            else:
                self.register_buffer(name, value, persistent=not name.startswith("temporary"))

    def forward(self, z):
        return self.b(torch.tanh(self.use(self.a(z))))

    def use(self, h):
        return h


def masked(dtype):
    class Masked(Net):
        def use(self, h):
            return h * self.keep

        def change(self, step):
            self.keep[step % 6] = 0

    return Masked(keep=torch.ones(6, dtype=dtype))


class Replaced(Net):
    """A buffer that is replaced by assignment, and is in no state_dict."""

    def use(self, h):
        return h - self.temporary_mean

    def change(self, step):
        self.temporary_mean = self.temporary_mean + 0.1


class Counted(Net):
    def use(self, h):
        return h * (1 + 0.1 * self.count)

    def change(self, step):
        self.count += 3


class Rotated(Net):
    """A complex buffer."""

    def use(self, h):
        return h * self.phase.real

    def change(self, step):
        self.phase *= torch.exp(torch.tensor(0.1j))


class Moved(Net):
    """A frozen parameter, moved through .data."""

    def use(self, h):
        return h + self.shift

    def change(self, step):
        self.shift.data = self.shift.data + 0.1 * self.a.bias.data


class Twin(Net):
    """A frozen copy that follows as an average."""

    def use(self, h):
        return h - 0.3 * self.twin(X)

    def change(self, step):
        for new, old in zip(self.a.parameters(), self.twin.parameters(), strict=True):
            old.data.lerp_(new.data, 0.2)


class Infinite(Net):
    """A smallest value so far that starts at infinity, as observers of quantization have it."""

    def use(self, h):
        return h.clamp(max=self.low.clamp(max=2) + 1)

    def change(self, step):
        if step > 3:
            self.low = torch.minimum(self.low, torch.tensor(1.0 / step, dtype=torch.float64))


class Inner(Net):
    def use(self, h):
        return self.inner(h)


def twin():
    model = Twin()
    model.twin = copy.deepcopy(model.a).requires_grad_(False)
    return model


MODELS = {
    "bool": lambda: masked(torch.bool),
    "uint8": lambda: masked(torch.uint8),
    "int64": lambda: masked(torch.int64),
    "float16": lambda: masked(torch.float16),
    "replaced": lambda: Replaced(temporary_mean=torch.zeros(6, dtype=torch.float64)),
    "counted": lambda: Counted(count=torch.tensor(0)),
    "complex": lambda: Rotated(phase=torch.ones(6, dtype=torch.complex128)),
    "moved": lambda: Moved(shift=nn.Parameter(torch.zeros(6, dtype=torch.float64), requires_grad=False)),
    "twin": twin,
    "infinite": lambda: Infinite(low=torch.tensor(torch.inf, dtype=torch.float64)),
    "batch norm": lambda: Inner(inner=nn.BatchNorm1d(6).double()),
}


def train(model, record, loss_fn=mse, keep=lambda step: None):
    """Train, and return the losses of the model itself, in evaluation mode, where it is recorded."""

    def true_loss():
        model.eval()
        loss = loss_fn(model).item()
        model.train()
        return loss

    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 0.05)
    true = [true_loss()]
    keep(0)
    for step in range(1, N + 1):
        optimizer.zero_grad()
        loss_fn(model).backward()
        optimizer.step()
        if hasattr(model, "change"):
            model.change(step)
        record()
        keep(step)
        true.append(true_loss())
    return np.array(true)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("place", ["memory", "folder", "checkpoints", "file"])
def test_losses_are_those_of_the_model_at_each_step(name, place, tmp_path):
    model = MODELS[name]()
    recorder = lv.Recorder(model, mse, folder=tmp_path / "run" if place == "folder" else None)
    folder = tmp_path / "saved"
    folder.mkdir()
    true = train(model, recorder.record, keep=lambda t: torch.save(model.state_dict(), folder / f"step_{t}.pt"))
    run = recorder.run(progress=False)
    if place == "checkpoints":
        if name == "replaced":
            pytest.skip("such a buffer is in no checkpoint")
        run = lv.Run.from_checkpoints(MODELS[name](), mse, folder, progress=False)
    if place == "file":
        run.save(tmp_path / "run.safetensors")
        run = lv.load_run(tmp_path / "run.safetensors", MODELS[name](), mse)
    np.testing.assert_allclose(run.loss, true, rtol=1e-10)
    assert np.ptp(true) > 0.01
    assert run.check == lv.objective.objective.LossCheck(5, 1.0)
    land = lv.landscape(run, plane="parallel", n_anchors=N + 1, resolution=(3, 5), progress=False)
    np.testing.assert_allclose(land.path_loss, true, rtol=1e-10)
    assert lv.fidelity(land).median < 1.1


@pytest.mark.parametrize("name", ["bool", "counted", "infinite", "twin"])
def test_heights_beside_the_run_use_the_state_of_the_planes(name):
    """Averages where an average means something, the heaviest plane's state elsewhere; by a loop over whole models."""
    model = MODELS[name]()
    states = [copy.deepcopy(model.state_dict())]
    recorder = lv.Recorder(model, mse)
    train(model, lambda: (recorder.record(), states.append(copy.deepcopy(model.state_dict()))))
    run = recorder.run(progress=False)
    land = lv.landscape(run, plane="parallel", sigma=0.2, n_anchors=N + 1, resolution=(3, 5), progress=False)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    states, places = [states[row] for row in land.anchors], land.path[land.anchors]
    for i, point in enumerate(land.sampling.points):
        shares = land.kernel.weights(point[None])[0]
        state = dict(states[int(shares.argmax())])
        for key in state:
            values = torch.stack([s[key].double() for s in states])
            if states[0][key].is_floating_point() and values.isfinite().all():
                state[key] = torch.tensordot(torch.tensor(shares), values, dims=1)
        moved = torch.tensor((point - shares @ places) @ land.projection.components)
        for key in trained:
            part, moved = moved.split([state[key].numel(), len(moved) - state[key].numel()])
            state[key] = state[key] + part.reshape(state[key].shape)
        other = MODELS[name]()
        other.load_state_dict(state)
        assert land.loss.ravel()[i] == pytest.approx(mse(other.eval()).item(), rel=1e-9)


def test_what_stays_is_kept_once():
    model = Net(bank=torch.zeros(1000, dtype=torch.float64))
    recorder = lv.Recorder(model, mse)
    train(model, recorder.record)
    assert not any(snapshot.state for snapshot in recorder._snapshots._kept.values())
    assert recorder.run(progress=False).buffers is None


def test_what_changes_once_is_kept_twice():
    model = Net(bank=torch.zeros(1000, dtype=torch.bfloat16), count=torch.tensor(0))

    def change(step):
        if step == 5:
            model.bank += 1
            model.count += 1

    model.change = change
    recorder = lv.Recorder(model, mse)
    train(model, recorder.record)
    states = [snapshot.state for snapshot in recorder._snapshots._kept.values()]
    assert [len(state) for state in states] == [0] * 5 + [2] * (N - 4)
    for name in ("bank", "count"):
        assert len({id(state[name]) for state in states[5:]}) == 1
    buffers = recorder.run(progress=False).buffers
    assert buffers.shape == (N + 1, 1001)
    np.testing.assert_array_equal(buffers[:, [0, -1]], np.repeat([[0, 0], [1, 1]], [5, N - 4], axis=0))


def attribute(model):
    model.offset = torch.zeros(6, dtype=torch.float64)

    def change(step):
        model.offset = model.offset + 0.2

    return change, lambda h: h + model.offset, "offset"


def number(model):
    model.factor = 1.0

    def change(step):
        model.factor *= 0.9

    return change, lambda h: h * model.factor, "factor"


def nested(model):
    model.statistics = {"mean": [0.0, 1.0]}

    def change(step):
        model.statistics["mean"][0] += 0.1

    return change, lambda h: h - model.statistics["mean"][0], "statistics"


@pytest.mark.parametrize("kind", [attribute, number, nested])
def test_attributes_that_change_are_said(kind):
    model = Net()
    model.change, model.use, name = kind(model)
    recorder = lv.Recorder(model, mse)
    true = train(model, recorder.record)
    with pytest.warns(
        RuntimeWarning, match=rf"differ from those of the model itself, by up to ×.*: {name}\. Make them"
    ):
        run = recorder.run(progress=False)
    assert abs(run.loss[-1] / true[-1] - 1) > 0.001
    land = lv.landscape(run, resolution=5, progress=False)
    assert any(name in sentence for sentence in lv.assess(land).warnings)


def test_a_run_whose_losses_are_not_the_models_is_said():
    recorder = lv.Recorder(Net(), mse)
    train(recorder.model, recorder.record)
    run = recorder.run(progress=False)
    other = lv.Run(run.weights, 2 * run.loss, run.step, run.objective)
    with pytest.warns(RuntimeWarning, match="differ from those of the model itself, by up to ×2"):
        land = lv.landscape(other, resolution=5, progress=False)
    assert "by up to ×2" in lv.assess(land).warnings[0]
    assert "checked        5 steps" in repr(lv.assess(lv.landscape(run, resolution=5, progress=False)))


def test_the_check_costs_at_most_twenty_forward_passes():
    calls = []

    def loss_fn(m):
        calls.append(1)
        return mse(m)

    model = Net()
    recorder = lv.Recorder(model, loss_fn)
    train(model, recorder.record, loss_fn=loss_fn)
    run = recorder.run(progress=False)
    calls.clear()
    run.objective.check_losses(*run.state([0, 3, 6, 9, 12]))
    assert 6 <= len(calls) <= 20  # five models, and one batch


def test_low_rank_updates_that_are_merged_in_evaluation_mode():
    class LowRank(nn.Linear):
        def __init__(self):
            super().__init__(6, 6, dtype=torch.float64)
            self.down = nn.Parameter(torch.ones(2, 6, dtype=torch.float64) / 4)
            self.up = nn.Parameter(torch.zeros(6, 2, dtype=torch.float64))
            self.merged = False
            self.weight.requires_grad_(False)

        def train(self, mode=True):
            super().train(mode)
            if mode == self.merged:
                with torch.no_grad():
                    self.weight += (-1 if mode else 1) * self.up @ self.down
                self.merged = not mode
            return self

        def forward(self, z):
            out = nn.functional.linear(z, self.weight, self.bias)
            return out if self.merged else out + z @ self.down.T @ self.up.T

    model = Inner(inner=LowRank())
    recorder = lv.Recorder(model, mse)
    true = train(model, recorder.record)
    run = recorder.run(progress=False)
    np.testing.assert_allclose(run.loss, true, rtol=1e-10)
    network = run.objective.network(*run.state(4))
    assert mse(network).item() == pytest.approx(true[4], rel=1e-10)
    with pytest.raises(ValueError, match="merges weights"):
        run.objective.gradients(run.weights[:1])


def grow(model, step):
    model.bank = torch.cat([model.bank, torch.ones(1, 6, dtype=torch.float64)])


def vanish(model, step):
    model.bank = None


def widen(model, step):
    model.bank = model.bank.float()


def overflow(model, step):
    model.count += 2**60


def appear(model, step):
    model.later = torch.ones(2)


def add(model, step):
    model.register_buffer("new", torch.ones(1))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (grow, r"'bank' was \(1, 6\) and is \(2, 6\)"),
        (vanish, r"'bank' was \(1, 6\) and is gone"),
        (widen, r"'bank' was torch\.float64 and is torch\.float32"),
        (overflow, "'count' holds whole numbers beyond 2\\^53"),
        (add, r"'new' was not there and is \(1,\)"),
        (appear, r"'later' was not there and is \(2,\)"),
    ],
)
@pytest.mark.parametrize("on_disk", [False, True])
def test_a_buffer_that_cannot_be_recorded_ends_only_the_recording(change, words, on_disk, tmp_path):
    model = Net(bank=torch.zeros(1, 6, dtype=torch.float64), count=torch.tensor(0))
    model.register_buffer("later", None)
    recorder = lv.Recorder(model, mse, folder=tmp_path / "run" if on_disk else None)
    model.change = lambda step: change(model, step) if step == 6 else None
    with pytest.warns(RuntimeWarning, match=f"(?s){words}.*the run is kept up to step 5") as caught:
        train(model, recorder.record)
    assert len(caught) == 1
    run = recorder.run(progress=False)
    assert run.step.tolist() == [0, 1, 2, 3, 4, 5]


def test_whatever_fails_in_the_hook_the_training_goes_on(monkeypatch):
    model = Net()
    recorder = lv.Recorder(model, mse)

    def fail(*_):
        raise ZeroDivisionError("no reason")

    def change(step):
        if step == 6:
            monkeypatch.setattr(recorder._snapshots, "add", fail)

    model.change = change
    with pytest.warns(
        RuntimeWarning, match="Recording could not go on at step 6: no reason; the run is kept up to step 5"
    ):
        train(model, recorder.record)
    assert len(recorder.run(progress=False)) == 6


def test_buffers_that_take_their_shape_in_the_first_update():
    """As the observers of quantization-aware training do."""

    class Late(Net):
        def use(self, h):
            return h if self.scale.numel() == 0 else h * self.scale

        def change(self, step):
            self.scale = torch.full((6,), 1.0 + step / 10, dtype=torch.float64)

    model = Late(scale=torch.empty(0, dtype=torch.float64))
    recorder = lv.Recorder(model, mse)
    with pytest.warns(RuntimeWarning, match="took their shape in the first update; the run starts at step 1"):
        true = train(model, recorder.record)
    run = recorder.run(progress=False)
    assert run.step.tolist() == list(range(1, N + 1))
    np.testing.assert_allclose(run.loss, true[1:], rtol=1e-10)


def test_weights_that_were_put_back_are_said():
    model = Net()
    recorder = lv.Recorder(model, mse)
    best = copy.deepcopy(model.state_dict())
    train(model, recorder.record)
    model.load_state_dict(best)
    with pytest.warns(RuntimeWarning, match="no longer those of step 12.*put back"):
        run = recorder.run(progress=False)
    assert len(run) == N + 1


def test_a_training_that_was_not_recorded_is_said():
    model = Net()
    recorder = lv.Recorder(model, mse)
    with pytest.raises(ValueError, match="holds only the start"):
        recorder.run()
    train(model, lambda: None)
    with pytest.raises(ValueError, match="The weights have moved, but no step was seen"):
        recorder.run()


@pytest.mark.parametrize("keeps", [False, True])
def test_two_threads_evaluate_at_once(keeps):
    class Keeping(Net):
        def use(self, h):
            if keeps:
                self.features = h
            return h

    model = Keeping()
    recorder = lv.Recorder(model, mse)
    train(model, recorder.record)
    run = recorder.run(progress=False)
    expected = run.objective(run.weights)
    found = []
    threads = [threading.Thread(target=lambda: found.append(run.objective(run.weights)), daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 8
    for losses in found:
        np.testing.assert_array_equal(losses, expected)


def test_a_clone_that_fails_gives_its_place_back(monkeypatch):
    objective = lv.Objective(Net(), mse)
    weights = objective.initial_weights[None]
    inside, leave = threading.Event(), threading.Event()

    def hold():
        with objective._borrow():
            inside.set()
            leave.wait(60)

    def fail(_):
        raise RuntimeError("no memory")

    monkeypatch.setattr(type(objective._loss), "clone", fail)
    holder = threading.Thread(target=hold, daemon=True)
    holder.start()
    inside.wait(60)
    threading.Timer(0.2, leave.set).start()
    with pytest.raises(RuntimeError, match="no memory"):  # it had to wait, and could not make a copy of its own
        objective(weights)
    monkeypatch.undo()
    assert objective(weights).shape == (1,)


def test_quantization_aware_training():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.ao import quantization

        class Quantized(nn.Module):
            def __init__(self):
                super().__init__()
                self.take, self.give = quantization.QuantStub(), quantization.DeQuantStub()
                self.a, self.relu, self.b = nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)

            def forward(self, z):
                return self.give(self.b(self.relu(self.a(self.take(z)))))

        def loss_fn(m):
            return nn.functional.mse_loss(m(X.float()), Y.float())

        torch.manual_seed(0)
        model = Quantized().train()
        model.qconfig = quantization.get_default_qat_qconfig("fbgemm")
        model = quantization.prepare_qat(model)
        recorder = lv.Recorder(model, loss_fn)
        true = train(model, recorder.record, loss_fn=loss_fn)
        run = recorder.run(progress=False)
    np.testing.assert_allclose(run.loss, true[1:], rtol=1e-5)
