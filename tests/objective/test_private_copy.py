"""Losses of models and losses whose parts lead back to the user's own objects."""

import copy
import pickle
import re
import types
from functools import partial

import numpy as np
import pytest
import torch
from joblib import wrap_non_picklable_objects
from torch import nn
from torch.nn.utils import prune

import loss_viz as lv
from loss_viz.objective.private_copy import copy_program

X = torch.linspace(-1, 1, 60, dtype=torch.float64).reshape(15, 4)
Y = X.sum(1, keepdim=True).sin()


def build():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 5), nn.Tanh(), nn.Linear(5, 1)).double()


def mse(m):
    return nn.functional.mse_loss(m(X), Y)


def send(objective):
    """Return an objective as a worker receives it."""
    return pickle.loads(pickle.dumps(wrap_non_picklable_objects(objective, keep_wrapper=False)))


def squares(module):
    return sum(p.square().sum() for p in module.parameters())


def wrap(model):
    own = model[2].forward
    model[2].forward = lambda z: 1.5 * own(z)
    return mse


def wrap_twice(model):
    inner = model[2].forward

    def timed(z):
        return inner(z)

    def logged(z, *, forward=timed):
        return forward(z) + 0.1

    model[2].forward = logged
    return mse


def wrap_partially(model):
    model[2].forward = partial(nn.Linear.forward, model[2])
    return mse


def hook(model):
    model[2].register_forward_hook(lambda _, given, out: out + given[0] @ model[2].weight)
    return mse


def hook_before(model):
    model[2].register_forward_pre_hook(lambda _, given: (given[0] * model[0].bias.sum(),))
    return mse


def hook_in_an_object(model):
    class Steering:
        def __init__(self, of):
            self.of = of

        def __call__(self, layer, given, out):
            return out + self.of.weight.sum()

    model[2].register_forward_hook(Steering(model[0]))
    return mse


def method_of_the_model(model):
    model.scale = types.MethodType(lambda self, z: z * self[0].weight.sum(), model)
    return lambda m: m.scale(m(X)).square().mean()


def penalty(model):
    return lambda m: mse(m) + 0.1 * squares(model)


def penalty_of_a_part(model):
    parts = [model[0], {"last": model[4]}]
    return lambda m: mse(m) + 0.1 * squares(parts[0]) + 0.2 * squares(parts[1]["last"])


def penalty_in_a_helper(model):
    def helper():
        return sum(p.abs().sum() for p in model.parameters())

    return lambda m: mse(m) + 0.1 * helper()


def penalty_by_default(model):
    def loss(m, other=model):
        return mse(m) + 0.1 * squares(other)

    return loss


def loss_with_arguments(model):
    return partial(lambda m, other, factor: mse(m) + factor * squares(other), other=model, factor=0.3)


class Trainer:
    def __init__(self, model):
        self.model = model

    def loss(self, m):
        return mse(m) + 0.1 * squares(self.model)


def method_of_a_trainer(model):
    return Trainer(model).loss


KINDS = (
    *(wrap, wrap_twice, wrap_partially, hook, hook_before, hook_in_an_object, method_of_the_model, penalty),
    *(penalty_of_a_part, penalty_in_a_helper, penalty_by_default, loss_with_arguments, method_of_a_trainer),
)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_loss_is_that_of_the_model_with_these_weights(kind):
    """The reference puts the weights into the user's own model, which each of these parts leads to."""
    model = build()
    loss_fn = kind(model)
    objective = lv.Objective(model, loss_fn)
    weights = np.random.default_rng(0).normal(size=(3, objective.n_params))
    before = copy.deepcopy(model.state_dict())
    losses = objective(weights)
    unpickled = send(objective)(weights)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        nn.utils.vector_to_parameters(torch.zeros(objective.n_params, dtype=torch.float64), model.parameters())
    np.testing.assert_array_equal(objective(weights), losses)  # whatever becomes of the user's model
    expected = []
    for row in weights:
        nn.utils.vector_to_parameters(torch.tensor(row), model.parameters())
        expected.append(loss_fn(model).item())
    np.testing.assert_allclose(losses, expected, rtol=1e-12)
    np.testing.assert_allclose(unpickled, expected, rtol=1e-12)


def test_functions_that_name_nothing_are_shared():
    model = build()
    copied = copy_program(model, mse)[1]
    assert copied.loss_fn is mse
    batches = [X, Y]
    assert copy_program(model, own := (lambda m: m(batches[0]).mean()))[1].loss_fn is own


@pytest.mark.filterwarnings("ignore:torch.func.vmap cannot batch:RuntimeWarning")
def test_lists_and_tensors_of_hooks_are_not_fed():
    model, kept, named = build(), [], {"n": 0}
    sums = torch.zeros(1, 5, dtype=torch.float64)
    model[0].register_forward_hook(lambda _, given, out: kept.append(out.detach()))
    model[2].register_forward_hook(lambda _, given, out: named.update(n=named["n"] + 1))
    model[2].register_forward_hook(lambda _, given, out: (sums.add_(out.detach().sum(0)), None)[1])
    mse(model)
    before = sums.clone()
    objective = lv.Objective(model, mse)
    objective(np.zeros((4, objective.n_params)))
    assert (len(kept), named["n"]) == (1, 1)
    assert torch.equal(sums, before)


def test_weights_of_a_criterion_follow_the_training():
    model, criterion = build(), nn.Linear(1, 1).double()
    temperature = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)

    def loss_fn(m):
        return (criterion(m(X)) * temperature - Y).square().mean()

    optimizer = torch.optim.Adam([*model.parameters(), *criterion.parameters(), temperature], 0.05)
    recorder = lv.Recorder(model, loss_fn).attach(optimizer)
    true = [loss_fn(model).item()]
    for _ in range(15):
        optimizer.zero_grad()
        loss_fn(model).backward()
        optimizer.step()
        true.append(loss_fn(model).item())
    run = recorder.run(progress=False)
    np.testing.assert_allclose(run.loss, true, rtol=1e-12)
    names = [entry.name for entry in run.objective.buffer_layout.entries]
    assert names == ["loss_fn:criterion.weight", "loss_fn:criterion.bias", "loss_fn:temperature"]
    land = lv.landscape(run, plane="flat", center="last", resolution=(3, 5), progress=False)
    for t in (0, -1):  # far from the run, and with the criterion of the last step
        point = np.array([land.x[t], land.y[t]]) - land.path[-1]
        weights = run.weights[-1] + point @ land.projection.components
        nn.utils.vector_to_parameters(torch.tensor(weights), model.parameters())
        assert land.loss[t, t] == pytest.approx(loss_fn(model).item(), rel=1e-12)


REGISTRY = {}


class Lookup:
    """Leads to a module by a name in a table, which no copy can follow."""

    __slots__ = ()

    def __call__(self, m):
        return mse(m) + squares(REGISTRY["other"])


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda model: model[2], r"it also read '2\.weight' of your own model"),
        (lambda _: nn.Linear(2, 1).double(), r"a trainable parameter of shape \(1, 2\), which is no part of it"),
    ],
)
def test_what_a_copy_cannot_follow_is_refused(other, words):
    model = build()
    REGISTRY["other"] = other(model)
    with pytest.raises(ValueError, match=rf"`loss_fn\(model\)` must use only the model .*{words}.*freeze it"):
        lv.Objective(model, Lookup())
    REGISTRY["other"] = nn.Linear(2, 1).double().requires_grad_(False)
    assert lv.Objective(model, Lookup()).n_params == 61


def test_autocast_around_forward_is_taken_off():
    model = build().float()
    model._original_forward = model.forward

    def forward(self, *given):
        with torch.autocast("cpu", torch.bfloat16):
            return type(self).forward(self, *given).float()

    model.forward = types.MethodType(forward, model)
    objective = lv.Objective(model, lambda m: (m(X.float()) - Y.float()).square().mean())
    expected = (type(model).forward(model, X.float()) - Y.float()).square().mean().item()
    assert objective(objective.initial_weights[None])[0] == pytest.approx(expected, rel=1e-6)


def test_results_of_a_forward_pass_are_no_obstacle():
    model = build()
    prune.l1_unstructured(model[0], "weight", 0.5)
    model.features = {"last": [model[0](X)]}
    objective = lv.Objective(model, mse)
    weights = np.random.default_rng(0).normal(size=objective.n_params)
    losses = objective(weights[None])
    nn.utils.vector_to_parameters(torch.tensor(weights), model.parameters())
    assert losses[0] == pytest.approx(mse(model).item(), rel=1e-12)


@pytest.mark.filterwarnings("ignore:torch.func.vmap cannot batch:RuntimeWarning")
@pytest.mark.parametrize("sparse", [nn.Embedding, nn.EmbeddingBag])
def test_sparse_embeddings_have_gradients(sparse):
    words = torch.arange(24).reshape(6, 4) % 9
    embed, dense = (sparse(9, 3, sparse=is_sparse, dtype=torch.float64) for is_sparse in (True, False))
    dense.load_state_dict(embed.state_dict())
    expected, found = (
        lv.Objective(m, lambda m: m(words).square().mean()).gradients(embed.weight.detach().reshape(1, -1).numpy())
        for m in (dense, embed)
    )
    np.testing.assert_array_equal(found, expected)
    assert embed.sparse


def test_a_loss_that_contains_a_derivative():
    model = build()

    def residual(m):
        at = X.clone().requires_grad_()
        [slope] = torch.autograd.grad(m(at).sum(), at, create_graph=True)
        return (slope.sum(1, keepdim=True) - m(at)).square().mean()

    objective = lv.Objective(model, residual)
    weights = np.random.default_rng(0).normal(size=(3, 61))
    losses, gradients = objective(weights), objective.gradients(weights)
    for row, loss, gradient in zip(weights, losses, gradients, strict=True):
        nn.utils.vector_to_parameters(torch.tensor(row), model.parameters())
        true = residual(model)
        assert loss == pytest.approx(true.item(), rel=1e-12)
        parts = torch.autograd.grad(true, list(model.parameters()))
        np.testing.assert_allclose(gradient, torch.cat([part.reshape(-1) for part in parts]), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("way", ["batch", "singly", "loading"])
def test_a_loss_that_is_one_of_the_weights(way):
    objective = lv.Objective(build(), lambda m: m[4].bias[0])
    assert objective._way == "batch"
    objective._way, objective.chunk_size = way, 4
    weights = np.random.default_rng(0).normal(size=(3, 61))
    np.testing.assert_array_equal(objective(weights), weights[:, -1])


@pytest.mark.parametrize("width", [16, 17])  # narrow layers are evaluated in another way
def test_a_penalty_on_what_requires_a_gradient(width):
    model = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.Linear(width, 1)).double()

    def loss_fn(m):
        return mse(m) + 0.1 * sum(p.square().sum() for p in m.parameters() if p.requires_grad)

    with pytest.warns(RuntimeWarning, match="vmap cannot batch"):
        objective = lv.Objective(model, loss_fn)
    weights = np.random.default_rng(0).normal(size=(2, objective.n_params))
    losses = objective(weights)
    model.eval()
    for row, loss in zip(weights, losses, strict=True):
        nn.utils.vector_to_parameters(torch.tensor(row), model.parameters())
        assert loss == pytest.approx(loss_fn(model).item(), rel=1e-12)


def used_up(_):
    batches = iter([X])
    return lambda m: sum(m(x).mean() for x in batches)


def boxes(_):
    return lambda m: m(X)["loss"]


@pytest.mark.parametrize(
    ("loss", "kind", "words"),
    [
        (used_up, ValueError, "must give the same loss twice, got .* not used up"),
        (boxes, IndexError, "a copy of the model in evaluation mode.*m.train"),
    ],
)
def test_errors_say_what_the_author_of_the_loss_needs_to_know(loss, kind, words):
    with pytest.raises(kind) as error:
        lv.Objective(build(), loss(None))
    text = " ".join([str(error.value), *getattr(error.value, "__notes__", [])])
    assert re.search(words, text, re.DOTALL), text


def test_a_default_device_has_no_effect(tmp_path):
    model = build()
    for step in range(3):
        torch.save(model.state_dict(), tmp_path / f"step-{step}.pt")
    try:
        torch.set_default_device("meta")
        run = lv.Run.from_checkpoints(model, mse, tmp_path, progress=False)
        objective = lv.Recorder(model, mse).objective
        losses = objective(objective.initial_weights[None])
    finally:
        torch.set_default_device(None)
    assert losses[0] == run.loss[0] == pytest.approx(mse(model).item(), rel=1e-12)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda: nn.Sequential(nn.LazyLinear(3)), "'0.weight' is without a shape yet. Pass one batch"),
        (lambda: nn.Linear(4, 1, device="meta"), "'weight' is on the device 'meta'.* Load the weights"),
        (lambda: nn.ParameterList([torch.eye(3).to_sparse()]), "'0' is a Tensor of layout torch.sparse_coo"),
    ],
)
def test_parameters_must_be_ordinary_tensors(model, words):
    with pytest.raises(ValueError, match=f"`model` must hold ordinary tensors, {words}"):
        lv.Objective(model(), lambda m: m(X).mean())
