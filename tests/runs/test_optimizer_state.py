"""Norms of optimizer tensors, against moments that are computed by hand from the gradients."""

import copy
import gc
import json
import math

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

import loss_viz as lv

BETAS = 0.9, 0.999
MOMENTS = ["exp_avg", "exp_avg_sq"]
X = torch.linspace(-1, 1, 40, dtype=torch.float64)[:, None]
N = 11


def mse(model):
    return nn.functional.mse_loss(model(X), X.sin())


def build(**kind):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 1)).to(kind.get("dtype", torch.float64))


def moments_by_hand(gradients):
    """Return the norms of both moments of Adam before the first and after each gradient, `(n, n_params)`."""
    first, second = np.zeros((2, gradients.shape[1]))
    norms = {name: [math.nan] for name in MOMENTS}
    for gradient in gradients:
        first = BETAS[0] * first + (1 - BETAS[0]) * gradient
        second = BETAS[1] * second + (1 - BETAS[1]) * gradient**2
        norms["exp_avg"].append(math.sqrt(sum(value**2 for value in first)))
        norms["exp_avg_sq"].append(math.sqrt(sum(value**2 for value in second)))
    return {name: np.array(values) for name, values in norms.items()}


def train(model, step, n=N):
    """Train in a plain loop; return the gradients of each update, `(n, n_params)`."""
    rows = []
    for _ in range(n):
        model.zero_grad()
        mse(model).backward()
        rows.append(torch.cat([p.grad.reshape(-1) for p in model.parameters()]).numpy().copy())
        step()
    return np.stack(rows)


def assert_norms(run, expected, rows=slice(None), rtol=1e-12):
    assert list(run.optimizer_state) == list(expected)
    for name, norms in expected.items():
        np.testing.assert_allclose(run.optimizer_state[name], norms[rows], rtol=rtol)
        assert not run.optimizer_state[name].flags.writeable


@pytest.mark.parametrize("target", ["x^3", "sin(3x)"])
def test_moments_in_a_run_of_train(target):
    run = lv.train(target, steps=25, dtype=torch.float64, track=MOMENTS, progress=False)
    model = nn.Sequential(nn.Linear(1, 8), nn.SiLU(), nn.Linear(8, 1)).double()
    x = torch.linspace(-1, 1, 100, dtype=torch.float64)[:, None]
    y = x**3 if target == "x^3" else torch.sin(3 * x)
    gradients = []
    for weights in run.weights[:-1]:
        nn.utils.vector_to_parameters(torch.from_numpy(weights.copy()), model.parameters())
        parts = torch.autograd.grad(((model(x) - y) ** 2).mean(), list(model.parameters()))
        gradients.append(nn.utils.parameters_to_vector(parts).numpy())
    assert_norms(run, moments_by_hand(np.stack(gradients)), rtol=1e-8)
    thin = lv.train(target, steps=25, every=10, dtype=torch.float64, track=MOMENTS, progress=False)
    assert thin.step.tolist() == [0, 10, 20, 25]
    assert_norms(thin, dict(run.optimizer_state), thin.step)
    assert not lv.train(target, steps=3, progress=False).optimizer_state


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("settings", [{}, {"every": 3}, {"max_snapshots": 4}])
def test_moments_of_a_recorded_run(tmp_path, on_disk, settings):
    model = build()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, betas=BETAS)
    folder = tmp_path / "snapshots" if on_disk else None
    with lv.Recorder(model, mse, track=MOMENTS, folder=folder, **settings).attach(optimizer) as recorder:
        expected = moments_by_hand(train(model, optimizer.step))
    run = recorder.run(progress=False)
    assert run.step[-1] == N
    assert (len(run) < N + 1) == bool(settings)
    assert_norms(run, expected, run.step)
    run.save(tmp_path / "run.safetensors")
    again = lv.load_run(tmp_path / "run.safetensors", build(), mse)
    assert_norms(again, expected, run.step)
    np.testing.assert_array_equal(again.weights, run.weights[:])
    assert_norms(again.cut(slice(1, 3)), expected, run.step[1:3])
    if on_disk:
        opened = lv.load_run(folder, build(), mse)
        assert opened.step.tolist() == run.step.tolist()
        assert_norms(opened, expected, run.step)


def test_single_precision_is_summed_in_double():
    """The squares of these second moments are below the least single-precision number."""
    model = build(dtype=torch.float32)
    optimizer = torch.optim.Adam(model.parameters(), lr=10.0)
    x = X.float()
    recorder = lv.Recorder(model, lambda m: m(x).square().mean() * 1e-8, track=["exp_avg_sq"]).attach(optimizer)
    (model(x).square().mean() * 1e-8).backward()
    optimizer.step()
    states = [optimizer.state[p]["exp_avg_sq"].numpy().astype(np.float64) for p in model.parameters()]
    expected = math.sqrt(sum((state**2).sum() for state in states))
    assert 0 < expected < 1e-18
    assert recorder.run(progress=False).optimizer_state["exp_avg_sq"][1] == pytest.approx(expected, rel=1e-12)


def test_one_name_in_several_optimizers_is_one_norm():
    model = build()
    parameters = list(model.parameters())
    one, other = torch.optim.Adam(parameters[:1], lr=0.01), torch.optim.AdamW(parameters[1:], lr=0.02)
    recorder = lv.Recorder(model, mse, track=MOMENTS).attach(one, other)
    gradients = train(model, lambda: (one.step(), other.step()))
    assert_norms(recorder.run(progress=False), moments_by_hand(gradients))


def test_a_name_in_one_of_two_optimizers_is_the_norm_of_its_part():
    model = build()
    parameters = list(model.parameters())
    one, other = torch.optim.Adam(parameters[2:], lr=0.01), torch.optim.SGD(parameters[:2], lr=0.1, momentum=0.5)
    recorder = lv.Recorder(model, mse, track=["momentum_buffer", "exp_avg"]).attach(one)  # the other is noticed
    gradients = train(model, lambda: (other.step(), one.step()))
    buffer, norms = np.zeros(12), [math.nan]
    for gradient in gradients[:, :12]:
        buffer = 0.5 * buffer + gradient
        norms.append(np.sqrt((buffer**2).sum()))
    expected = {"momentum_buffer": np.array(norms), "exp_avg": moments_by_hand(gradients[:, 12:])["exp_avg"]}
    assert_norms(recorder.run(progress=False), expected)


class Wrapped(torch.optim.Optimizer):
    """An Optimizer by class that never calls its constructor, without a state."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    @property
    def param_groups(self):
        return self.optimizer.param_groups

    def step(self, closure=None):
        return self.optimizer.step(closure)


class Forwarding(Wrapped):
    """One that shows the state of the optimizer inside, as that of accelerate does."""

    @property
    def state(self):
        return self.optimizer.state


@pytest.mark.parametrize("kind", [Wrapped, Forwarding])
def test_wrapped_optimizers(kind):
    model = build()
    outer = kind(torch.optim.Adam(model.parameters(), lr=0.01))
    recorder = lv.Recorder(model, mse, track=MOMENTS).attach(outer)
    expected = moments_by_hand(train(model, outer.step))
    assert_norms(recorder.run(progress=False), expected)


def test_another_model_in_the_same_optimizer_is_left_out():
    model, other = build(), build()
    mse(other).backward()
    optimizer = torch.optim.Adam([*other.parameters(), *model.parameters()], lr=0.01)
    recorder = lv.Recorder(model, mse, track=MOMENTS).attach(optimizer)
    assert_norms_of = moments_by_hand(train(model, optimizer.step))
    assert_norms(recorder.run(progress=False), assert_norms_of)


def test_a_new_optimizer_replaces_the_state_of_the_one_before():
    model = build()
    recorder = lv.Recorder(model, mse, track=MOMENTS)
    parts = []
    for lr in (0.01, 0.001):
        optimizer = torch.optim.Adam(model.parameters(), lr=lr)
        recorder.attach(optimizer)
        parts.append(moments_by_hand(train(model, optimizer.step)))
    expected = {name: np.concatenate([parts[0][name], parts[1][name][1:]]) for name in MOMENTS}
    assert_norms(recorder.run(progress=False), expected)
    del optimizer
    gc.collect()
    assert recorder._list_optimizers() == []  # their memory is free


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_training_that_goes_on_has_a_norm_at_its_start(tmp_path, on_disk):
    model = build()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    before = train(model, optimizer.step, 5)
    recorder = lv.Recorder(model, mse, track=MOMENTS, folder=tmp_path if on_disk else None).attach(optimizer)
    whole = moments_by_hand(np.concatenate([before, train(model, optimizer.step)]))
    assert_norms(recorder.run(progress=False), whole, slice(5, None))
    if on_disk:
        assert_norms(lv.load_run(tmp_path, build(), mse), whole, slice(5, None))
    adagrad = torch.optim.Adagrad(model.parameters(), lr=0.01, initial_accumulator_value=0.5)
    recorder = lv.Recorder(model, mse, track=["sum"]).attach(adagrad)
    train(model, adagrad.step, 1)
    assert recorder.run(progress=False).optimizer_state["sum"][0] == pytest.approx(0.5 * math.sqrt(19))


def test_tracking_changes_no_bit_of_the_training():
    ends = []
    for track in ([], MOMENTS):
        model = build()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        with lv.Recorder(model, mse, track=track).attach(optimizer):
            train(model, optimizer.step)
        ends.append([*model.state_dict().values(), *(v for s in optimizer.state.values() for v in s.values())])
    assert all(torch.equal(one, two) for one, two in zip(*ends, strict=True))


def test_a_tensor_that_the_optimizer_does_not_have():
    model = build()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    recorder = lv.Recorder(model, mse, track=["exp_avg", "max_exp_avg_sq"]).attach(optimizer)
    text = (
        r"^`track` must name tensors in the state of the optimizer, 'max_exp_avg_sq' is not there\. "
        r"Track 'exp_avg', 'exp_avg_sq', 'step', or use another optimizer\.$"
    )
    with pytest.warns(RuntimeWarning, match=text):
        gradients = train(model, optimizer.step, 1)
    gradients = np.concatenate([gradients, train(model, optimizer.step, 3)])  # without a further warning
    expected = {"exp_avg": moments_by_hand(gradients)["exp_avg"], "max_exp_avg_sq": np.full(5, np.nan)}
    assert_norms(recorder.run(progress=False), expected)
    with pytest.raises(ValueError, match=text) as error:  # it has a state by now
        lv.Recorder(model, mse, track=["max_exp_avg_sq"]).attach(optimizer)
    assert error.value.argument == "track"
    plain = torch.optim.SGD(model.parameters(), lr=0.01)
    lv.Recorder(model, mse, track=["momentum_buffer"]).attach(plain)
    with pytest.warns(RuntimeWarning, match=r"'momentum_buffer' is not there\. This one keeps none: leave `track` out"):
        train(model, plain.step, 1)


def test_a_loop_that_counts_its_steps_itself():
    model = build()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    recorder = lv.Recorder(model, mse, track=MOMENTS)
    recorder.follow(optimizer)
    expected = moments_by_hand(train(model, lambda: (optimizer.step(), recorder.record())))
    assert_norms(recorder.run(progress=False), expected)
    recorder = lv.Recorder(model, mse, track=MOMENTS)
    optimizer.step()
    with pytest.warns(RuntimeWarning, match=r"none is known\. Call recorder\.attach\(optimizer\), or recorder\.follow"):
        recorder.record()
    with pytest.raises(ValueError, match="none of its parameters are the model's"):
        recorder.follow(torch.optim.SGD(build().parameters(), lr=0.1))


def test_norms_end_with_the_run():
    model = build()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    bound = copy.deepcopy(model)
    train(bound, torch.optim.Adam(bound.parameters(), lr=0.01).step, 6)
    limit = mse(bound).item()

    def breaking(m):
        loss = mse(m)
        return torch.where(loss > limit, loss, torch.nan)

    recorder = lv.Recorder(model, breaking, track=MOMENTS).attach(optimizer)
    expected = moments_by_hand(train(model, optimizer.step))
    with pytest.warns(RuntimeWarning, match="The loss is nan at step"):
        run = recorder.run(progress=False)
    assert 2 < len(run) < N
    assert_norms(run, expected, run.step)


def test_a_landscape_of_a_part_and_a_metric_keep_the_norms():
    run = lv.train("x^2", steps=30, track=MOMENTS, progress=False)
    land = lv.landscape(
        run, steps=(5, 20), resolution=4, progress=False, metrics={"size": lambda m: m[0].weight.norm()}
    )
    assert_norms(land.run, dict(run.optimizer_state), slice(5, 21))
    assert_norms(land.metric("size").run, dict(run.optimizer_state), slice(5, 21))


def test_norms_of_another_length_are_refused():
    run = lv.train("x^2", steps=3, progress=False)
    with pytest.raises(ValueError, match=r"`optimizer_state` must hold 4 numbers for each name, 'a' has shape \(3,\)"):
        lv.Run(run.weights, run.loss, run.step, run.objective, optimizer_state={"a": np.ones(3)})


@pytest.mark.parametrize("written", ["[]5", "5", '{"a": []}', '{"a": "b"}', "[" * 5000])
def test_norms_that_are_none_are_refused_with_their_file(tmp_path, written):
    model = build()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with lv.Recorder(model, mse, track=MOMENTS, folder=tmp_path).attach(optimizer):
        train(model, optimizer.step, 2)
    path = tmp_path / "step-0000000001.safetensors"
    with safetensors.safe_open(str(path), framework="pt") as file:
        about = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert set(json.loads(about["optimizer_state"])) == set(MOMENTS)
    safetensors.torch.save_file(tensors, path, about | {"optimizer_state": written})
    with pytest.raises(ValueError, match=r"0001\.safetensors cannot be read as a checkpoint .* leave it out"):
        lv.load_run(tmp_path, build(), mse)
