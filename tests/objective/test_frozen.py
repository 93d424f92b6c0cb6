"""Large frozen parameters: never copied, never written to, and noticed if they change."""

import copy
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import loss_viz as lv
from loss_viz.objective.frozen import sum_bytes
from loss_viz.objective.objective import Objective

X = torch.linspace(-1, 1, 12).reshape(4, 3)


class LowRank(nn.Module):
    """A frozen linear layer with a trained update of rank one."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        self.base = nn.Linear(3, 8, dtype=dtype).requires_grad_(False)
        self.a, self.b = (nn.Parameter(torch.randn(shape, dtype=torch.float64)) for shape in ((1, 3), (8, 1)))

    def forward(self, x):
        return self.base(x.to(self.base.weight.dtype)) + (x @ self.a.mT @ self.b.mT).to(self.base.weight.dtype)


class Merging(LowRank):
    """Merges the update into the base in evaluation mode, in place, as loralib does."""

    merged = False

    def train(self, mode=True):
        if mode == self.merged:
            with torch.no_grad():
                self.base.weight.data += (self.b @ self.a).to(self.base.weight.dtype) * (-1 if mode else 1)
            self.merged = not mode
        return super().train(mode)

    def forward(self, x):
        return self.base(x) if self.merged else super().forward(x)


class Writing(LowRank):
    """Writes to its frozen weights whenever it is used."""

    def forward(self, x):
        with torch.no_grad():
            self.base.weight.mul_(1.0)
        return super().forward(x)


@pytest.fixture(autouse=True)
def _share_everything(monkeypatch):
    monkeypatch.setattr("loss_viz.objective.frozen.LARGE_BYTES", 0)


def build(kind=LowRank, **options):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return kind(**options)


def loss(model):
    return model(X.double()).square().mean().double()


def perturb(objective, n=5):
    return objective.initial_weights + np.random.default_rng(0).normal(size=(n, objective.n_params))


def reference(model, weights):
    """Return the losses of deep copies into which the weights are loaded."""
    losses = []
    for row in weights:
        other = copy.deepcopy(model)
        trained = [p for p in other.parameters() if p.requires_grad]
        with torch.no_grad():
            nn.utils.vector_to_parameters(torch.tensor(row), trained)
        losses.append(loss(other.eval()).item())
    return losses


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_losses_over_a_shared_base_are_those_of_deep_copies(dtype):
    model = build(dtype=dtype)
    state = copy.deepcopy(model.state_dict())
    objective = Objective(model, loss)
    weights = perturb(objective)
    rtol = 1e-12 if dtype == torch.float64 else 8 * torch.finfo(dtype).eps
    np.testing.assert_allclose(objective(weights), reference(model, weights), rtol=rtol)
    assert objective.check_losses(weights).passed
    assert objective.uncopied == {"base.weight", "base.bias"}
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name])


def test_all_threads_share_the_base():
    model = build()
    objective = Objective(model, loss)
    expected = objective(perturb(objective))
    barrier, seen, results = threading.Barrier(3), [], []

    def slow(one):
        seen.append(one.base.weight.data_ptr())
        return loss(one)

    other = Objective(model, slow)
    other.chunk_size, other._way = 1, "singly"
    seen.clear()

    def work():
        barrier.wait()
        results.append(other(perturb(other)))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for found in results:
        np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert set(seen) == {model.base.weight.data_ptr()}


CHANGES = {
    "data": lambda w: w.data.add_(0.5),
    "in place": lambda w: w.mul_(1.5),
    "one value": lambda w: w[1, 2].add_(1e-12),
    "copied": lambda w: w.copy_(torch.ones_like(w)),
    "not finite": lambda w: w[0, 0].fill_(np.nan),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_base_that_changes_is_noticed_and_can_be_put_back(change):
    model = build()
    objective = Objective(model, loss)
    weights, before = perturb(objective), model.base.weight.clone()
    expected = objective(weights)
    with torch.no_grad():
        change(model.base.weight)
    for use in (objective, objective.gradients, objective.check_losses):
        with pytest.raises(ValueError, match=r"must keep their values; 'base.weight' has changed. .*unmerge it"):
            use(weights)
    with torch.no_grad():
        model.base.weight.copy_(before)
    assert objective(weights).tolist() == expected.tolist()


def test_a_model_that_is_given_another_base_leaves_the_recorded_one():
    model = build()
    objective = Objective(model, loss)
    weights = perturb(objective)
    expected = objective(weights)
    model.base.weight.data = torch.zeros(8, 3, dtype=torch.float64)
    assert objective(weights).tolist() == expected.tolist()


def test_a_training_that_moves_a_shared_base_goes_on_and_its_run_is_refused():
    model = build()
    recorder = lv.Recorder(model, loss)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.01)

    def train():
        for i in range(5):
            optimizer.zero_grad()
            loss(model).backward()
            optimizer.step()
            if i == 2:
                model.base.weight.data.add_(0.1)
            recorder.record()

    with pytest.warns(RuntimeWarning, match=r"could not go on at step 3: Frozen parameters .* must keep their values"):
        train()
    assert recorder.step == 5
    with pytest.raises(ValueError, match=r"must keep their values; 'base.weight' has changed"):
        recorder.run()


def test_an_average_of_trained_weights_is_copied_and_recorded():
    model = build()
    model.average = nn.Parameter(model.a.detach().clone(), requires_grad=False)

    def both(one):
        return loss(one) + one.average.square().sum()

    recorder = lv.Recorder(model, both)
    assert "average" not in recorder.objective.uncopied
    optimizer = torch.optim.SGD([model.a, model.b], lr=0.01)
    expected = [both(model).item()]
    for _ in range(4):
        optimizer.zero_grad()
        both(model).backward()
        optimizer.step()
        model.average.data.lerp_(model.a.data, 0.5)
        recorder.record()
        expected.append(both(model).item())
    np.testing.assert_allclose(recorder.run().loss, expected, rtol=1e-12)


def test_a_base_into_which_updates_are_merged_is_copied():
    model = build(Merging)
    before = model.base.weight.clone()
    objective = Objective(model, loss)
    assert not objective.uncopied
    weights = perturb(objective)
    np.testing.assert_allclose(objective(weights), reference(model, weights), rtol=1e-9)
    assert torch.equal(model.base.weight, before)


def test_a_forward_pass_that_writes_to_the_base_is_refused_before_it_does():
    model = build(Writing)
    version = model.base.weight._version
    with pytest.raises(ValueError, match=r"must not write to its frozen parameters .* it writes to 'base.weight'"):
        Objective(model, loss)
    assert model.base.weight._version == version


def test_a_network_is_independent_of_the_shared_base():
    model = build()
    objective = Objective(model, loss)
    network = objective.network(objective.initial_weights)
    with torch.no_grad():
        network.base.weight.zero_()
    assert model.base.weight.abs().min() > 0
    objective(perturb(objective))


def test_a_base_that_differs_between_checkpoints_is_read_from_them(tmp_path):
    model, expected = build(), []
    for step in range(4):
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.base.weight.mul_(1 + step)
            other.a.add_(step)
        expected.append(loss(other).item())
        torch.save(other.state_dict(), tmp_path / f"step-{step}.pt")
    before = model.base.weight.clone()
    run = lv.Run.from_checkpoints(model, loss, tmp_path, progress=False)
    np.testing.assert_allclose(run.loss, expected, rtol=1e-12)
    run.objective._way = "loading"
    np.testing.assert_allclose(run.objective(*run.state(slice(None))), expected, rtol=1e-12)
    assert torch.equal(model.base.weight, before)


def test_a_large_frozen_teacher_that_the_loss_names_is_shared():
    model, teacher = build(), nn.Linear(3, 8, dtype=torch.float64).requires_grad_(False)

    def distill(one):
        return functional.mse_loss(one(X.double()), teacher(X.double()))

    objective = Objective(model, distill)
    assert "loss_fn:teacher.weight" in objective.uncopied
    assert objective(objective.initial_weights[None])[0] == pytest.approx(distill(model).item(), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int8])
def test_the_checksum_is_that_of_the_bytes(dtype):
    tensor = torch.randn(4, 8, dtype=torch.float64).mul(50).to(dtype)
    integers = np.frombuffer(tensor.view(torch.uint8).numpy().tobytes(), dtype=np.int64)
    total = sum(int(value) for value in integers)
    assert (sum_bytes(tensor) - total) % 2**64 == 0
