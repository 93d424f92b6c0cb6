"""Many kinds of modules: the batched loss against the model itself, in float64."""

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import loss_viz as lv
from loss_viz.objective.functional import unfused_attention
from loss_viz.objective.objective import Objective

DTYPE = torch.float64


class Attention(nn.Module):
    """Causal self-attention with `scaled_dot_product_attention`."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x):
        q, k, v = (part.view(*x.shape[:2], 2, 4).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)


class Tied(nn.Module):
    """Tied embedding and output weights, as in language models."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 5)
        self.read = nn.Linear(5, 7, bias=False)
        self.read.weight = self.embed.weight

    def forward(self, tokens):
        return self.read(torch.tanh(self.embed(tokens)))


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.inner = kind(8, 4, num_layers=2, batch_first=True)

    def forward(self, x):
        return self.inner(x)[0]


class Square(torch.autograd.Function):
    """A custom autograd function without a vmap rule."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, slope):
        return 2 * slope * ctx.saved_tensors[0]


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 3)

    def forward(self, x):
        return Square.apply(self.inner(x))


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 3)

    def forward(self, x):
        y = self.inner(x)
        return y if y.mean().item() > 0 else -3 * y


class Counting(nn.Module):
    """A module that writes to a buffer in each forward pass, and depends on it."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 3)
        self.register_buffer("total", torch.ones(3))

    def forward(self, x):
        self.total += self.inner.bias.detach()
        return self.inner(x) * self.total


def images():
    return torch.linspace(-1, 1, 6 * 3 * 8 * 8, dtype=DTYPE).reshape(6, 3, 8, 8).sin()


def sequences():
    return torch.linspace(-3, 3, 4 * 5 * 8, dtype=DTYPE).reshape(4, 5, 8).sin()


def tokens():
    return torch.arange(20).reshape(4, 5) % 7


CONVOLUTIONS = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 2, 2, groups=2, bias=False), nn.Flatten()]
BATCHED = {
    "convolution": (lambda: nn.Sequential(*copy.deepcopy(CONVOLUTIONS), nn.Linear(8, 3)), images),
    "transposed convolution": (lambda: nn.ConvTranspose2d(3, 2, 3, stride=2), images),
    "batch norm": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), images),
    "group norm": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.GELU()), images),
    "layer norm": (lambda: nn.Sequential(nn.Linear(8, 6), nn.LayerNorm(6), nn.SiLU()), sequences),
    "dropout": (lambda: nn.Sequential(nn.Linear(8, 6), nn.Dropout(0.5)), sequences),
    "embedding": (lambda: nn.Sequential(nn.Embedding(7, 8), nn.Linear(8, 2)), tokens),
    "tied": (Tied, tokens),
}
ATTENTION = {
    "attention": (Attention, sequences),
    "transformer": (
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, enable_nested_tensor=False
        ),
        sequences,
    ),
}
ONE_AT_A_TIME = {
    "weight norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(8, 3)), sequences),
    "lstm": (lambda: Recurrent(nn.LSTM), sequences),
    "gru": (lambda: Recurrent(nn.GRU), sequences),
    "own function": (Own, sequences),
    "branching": (Branching, sequences),
}


def build(kind):
    make, data = kind
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = make().to(DTYPE)
    x = data()
    return model, lambda m: m(x).square().mean()


def losses_one_by_one(model, loss_fn, weights, train=False):
    losses = []
    for row in weights:
        other = copy.deepcopy(model).train(train)
        nn.utils.vector_to_parameters(torch.tensor(row), [p for p in other.parameters() if p.requires_grad])
        with torch.no_grad():
            losses.append(loss_fn(other).item())
    return losses


def random_weights(objective, n=5):
    return objective.initial_weights + 0.1 * np.random.default_rng(0).normal(size=(n, objective.n_params))


def require_equal(model, loss_fn, objective):
    weights = random_weights(objective)
    losses = objective(weights)
    np.testing.assert_allclose(losses, losses_one_by_one(model, loss_fn, weights), rtol=1e-10)
    assert np.ptp(losses) > 0


@pytest.mark.parametrize("name", BATCHED)
def test_batched(name):
    model, loss_fn = build(BATCHED[name])
    objective = Objective(model, loss_fn)  # warnings are errors
    assert objective.chunk_size > 1
    require_equal(model, loss_fn, objective)


def batches_attention():
    """Return whether this version of PyTorch has a vmap rule for plain attention."""
    with warnings.catch_warnings(record=True) as caught, unfused_attention():
        warnings.simplefilter("always")
        torch.func.vmap(lambda q: F.scaled_dot_product_attention(q, q, q, is_causal=True))(torch.ones(3, 1, 2, 5, 4))
    return not caught


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_is_batched_where_vmap_can(name):
    model, loss_fn = build(ATTENTION[name])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        objective = Objective(model, loss_fn)
    assert bool(caught) == (not batches_attention())
    assert (objective.chunk_size == 1) == bool(caught)
    require_equal(model, loss_fn, objective)


@pytest.mark.parametrize("name", ONE_AT_A_TIME)
def test_falls_back_to_one_at_a_time(name):
    model, loss_fn = build(ONE_AT_A_TIME[name])
    with pytest.warns(RuntimeWarning, match=r"vmap cannot batch this model \(.+\); .* one at a time"):
        objective = Objective(model, loss_fn)
    require_equal(model, loss_fn, objective)


def test_buffers_written_by_the_model_have_no_effect_on_later_losses():
    model, loss_fn = build((Counting, sequences))
    objective = Objective(model, loss_fn)
    require_equal(model, loss_fn, objective)
    assert model.total.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("kind", ["batch norm", "dropout"])
def test_loss_fn_may_switch_to_training_mode(kind):
    model, inner = build(BATCHED[kind])

    def loss_fn(m):
        torch.manual_seed(1)
        return inner(m.train())

    objective = Objective(model, loss_fn)
    weights = random_weights(objective)
    random = torch.get_rng_state()
    losses = objective(weights)
    assert torch.equal(torch.get_rng_state(), random)  # though the loss seeds it
    np.testing.assert_allclose(losses, losses_one_by_one(model, loss_fn, weights, train=True), rtol=1e-10)
    assert not np.allclose(losses, Objective(model, inner)(weights), rtol=1e-3)


def test_random_losses_raise():
    model, _ = build(BATCHED["dropout"])
    x = sequences()
    with pytest.raises(ValueError, match=r"same loss twice.*torch\.manual_seed\(0\) inside it"):
        Objective(model, lambda m: F.dropout(m(x), 0.5, training=True).mean())


def test_buffers_go_with_their_rows():
    model, loss_fn = build(BATCHED["batch norm"])
    objective = Objective(model, loss_fn)
    assert [entry.name for entry in objective.buffer_layout.entries] == ["1.running_mean", "1.running_var"]
    weights = random_weights(objective, 3)
    buffers = np.abs(np.random.default_rng(1).normal(size=(3, 8))) + 0.1
    expected = []
    for row, state in zip(weights, buffers, strict=True):
        other = copy.deepcopy(model).eval()
        nn.utils.vector_to_parameters(torch.tensor(row), other.parameters())
        other[1].running_mean.copy_(torch.tensor(state[:4]))
        other[1].running_var.copy_(torch.tensor(state[4:]))
        expected.append(loss_fn(other).item())
    np.testing.assert_allclose(objective(weights, buffers), expected, rtol=1e-12)
    x = images()
    answer = objective.predict(weights[2], x, buffers[2])
    torch.testing.assert_close(answer, other(x).detach(), rtol=1e-12, atol=0)


def test_tied_weights_count_once():
    model, loss_fn = build(BATCHED["tied"])
    objective = Objective(model, loss_fn)
    assert objective.n_params == 35
    [entry] = objective.layout.entries
    assert entry.names == ("embed.weight", "read.weight")


def test_mixed_precision_models_have_one_vector():
    model = nn.Sequential(nn.Linear(8, 4).to(torch.bfloat16), nn.Linear(4, 1))
    x = sequences().float()
    objective = Objective(model, lambda m: m[1](m[0](x.bfloat16()).float()).mean())
    assert objective.initial_weights.dtype == np.float32
    expected = model[1](model[0](x.bfloat16()).float()).mean().item()
    assert objective(objective.initial_weights[None])[0] == pytest.approx(expected, rel=2e-2)  # of bfloat16


def test_autocast_around_the_call_changes_nothing():
    model = nn.Linear(8, 3)
    x = sequences().float()
    objective = Objective(model, lambda m: m(x).square().mean())
    plain = objective(objective.initial_weights[None])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert objective(objective.initial_weights[None]) == plain
        assert Objective(model, lambda m: m(x).square().mean())(objective.initial_weights[None]) == plain


def test_a_loss_that_uses_no_model_raises():
    model, loss_fn = build(BATCHED["layer norm"])
    with pytest.raises(ValueError, match=r"must use the model that it receives.*lambda m: criterion\(m\(x\), y\)"):
        Objective(model, lambda _: sequences().mean())
    # The copy is used in place of a model that the loss names.
    require_equal(model, loss_fn, Objective(model, lambda _: loss_fn(model)))


def test_a_model_that_cannot_be_copied_raises():
    model = nn.Linear(8, 3)
    x = sequences().float()
    model.file = (line for line in "no copy")
    with pytest.raises(ValueError, match=r"copy\.deepcopy can copy.*Keep no open files"):
        Objective(model, lambda m: m(x).mean())


def test_data_on_another_device_raise():
    model, loss_fn = build(BATCHED["layer norm"])
    with pytest.raises(
        ValueError, match=r"data of `loss_fn` must be on the device of the evaluation, meta.*x\.to\('meta'\)"
    ):
        Objective(model, loss_fn, device="meta")
    assert next(model.parameters()).device.type == "cpu"


def test_complex_parameters_are_two_real_ones_each():
    model = nn.Linear(8, 3, dtype=torch.complex128)
    x = sequences().to(torch.complex128)
    objective = Objective(model, lambda m: m(x).abs().square().mean())
    assert objective.n_params == 2 * (24 + 3)
    weights = random_weights(objective, 3)
    expected = []
    for row in weights:
        other, parts = copy.deepcopy(model), torch.tensor(row).reshape(-1, 2)
        numbers = torch.complex(parts[:, 0], parts[:, 1])
        nn.utils.vector_to_parameters(numbers, other.parameters())
        expected.append(other(x).abs().square().mean().item())
    np.testing.assert_allclose(objective(weights), expected, rtol=1e-12)


@pytest.mark.parametrize("name", ["layer norm", "batch norm", "attention", "tied"])
def test_hessian_vector_products_equal_the_dense_hessian(name):
    model, loss_fn = build((BATCHED | ATTENTION)[name])
    with warnings.catch_warnings():
        if not batches_attention():
            warnings.filterwarnings("ignore", "torch.func.vmap cannot batch", RuntimeWarning)
        objective = Objective(model, loss_fn)
    at = torch.tensor(objective.initial_weights)
    buffers = torch.tensor(objective.initial_buffers)
    with unfused_attention():
        dense = torch.autograd.functional.hessian(lambda w: objective._loss_at(w, buffers), at).numpy()
    vector = np.random.default_rng(0).normal(size=objective.n_params)
    product = objective.hessian_vector_product(objective.initial_weights, vector)
    np.testing.assert_allclose(product, dense @ vector, atol=1e-10)


class Once(torch.autograd.Function):
    """tanh, with a gradient that cannot be differentiated, as those of fused kernels."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x.tanh())
        return x.tanh()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient * (1 - ctx.saved_tensors[0] ** 2)


class Twice(Once):
    """The same with a gradient that can be differentiated."""

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (1 - ctx.saved_tensors[0] ** 2)

    @staticmethod
    def forward(ctx, x):
        y = x.tanh()
        ctx.save_for_backward(y)
        return y


def test_a_backward_pass_that_can_be_differentiated_is():
    torch.manual_seed(0)
    model, x = nn.Linear(3, 5, dtype=torch.float64), torch.linspace(-1, 1, 21, dtype=torch.float64).reshape(7, 3)
    with pytest.warns(RuntimeWarning, match="vmap cannot batch"):
        own = Objective(model, lambda m: Twice.apply(m(x)).square().mean())
    twin = Objective(model, lambda m: m(x).tanh().square().mean())
    at, vector = twin.initial_weights, np.random.default_rng(0).normal(size=twin.n_params)
    exact = twin.hessian_vector_product(at, vector)
    np.testing.assert_allclose(own.hessian_vector_product(at, vector), exact, rtol=1e-12)


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-7), (torch.float32, 2e-3)])
def test_products_where_pytorch_differentiates_only_once_equal_those_of_a_twin(dtype, rtol):
    torch.manual_seed(0)
    layers = nn.Linear(3, 5, dtype=dtype), nn.Linear(5, 2, dtype=dtype)
    x = torch.linspace(-1, 1, 21, dtype=dtype).reshape(7, 3)
    with pytest.warns(RuntimeWarning, match="vmap cannot batch"):
        fused = Objective(nn.Sequential(*layers), lambda m: m[1](Once.apply(m[0](x))).square().mean())
    twin = Objective(nn.Sequential(*layers), lambda m: m[1](m[0](x).tanh()).square().mean())
    vector = np.random.default_rng(0).normal(size=twin.n_params)
    exact = twin.hessian_vector_product(twin.initial_weights, vector)
    for size in (1.0, 1e-3, 1e4):
        with pytest.warns(
            RuntimeWarning, match=r"cannot differentiate this loss twice .* differences of two gradients"
        ):
            product = fused.hessian_vector_product(fused.initial_weights, size * vector)
        np.testing.assert_allclose(product, size * exact, atol=rtol * np.abs(size * exact).max())
    assert not fused.hessian_vector_product(fused.initial_weights, 0 * vector).any()
    with pytest.warns(RuntimeWarning, match="differences of two gradients"):
        land = lv.landscape(
            lv.Run(fused.initial_weights[None], fused(fused.initial_weights[None]), np.zeros(1, int), fused),
            axes="hessian",
            resolution=(5, 3),
            progress=False,
        )
    dense = np.stack([twin.hessian_vector_product(twin.initial_weights, axis) for axis in np.eye(twin.n_params)])
    top = np.linalg.eigh(dense)[1][:, :-3:-1].T
    assert np.abs((land.projection.components * top).sum(axis=1)) == pytest.approx([1, 1], abs=1e-3)


def test_a_loss_that_is_not_smooth_has_no_hessian():
    model = nn.Linear(2, 1)
    objective = Objective(model, lambda m: m.weight.detach().sum() + m.bias.detach().sum())
    with pytest.raises(ValueError, match="differentiate twice"):
        objective.hessian_vector_product(objective.initial_weights, objective.initial_weights)


def second_derivative(model, x):
    def u(t):
        return model(t[None])[0, 0]

    return torch.func.vmap(torch.func.hessian(u))(x)[:, 0, 0]


def slope(model, x):
    return torch.func.vmap(torch.func.jacrev(lambda t: model(t[None])[0, 0]))(x)[:, 0]


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")  # of PyTorch, in its own hessian
@pytest.mark.parametrize("n_units", [16, 17])  # with and without a rule of our own for narrow layers
@pytest.mark.parametrize("derivative", [second_derivative, slope])
def test_a_loss_with_functional_derivatives_is_batched(derivative, n_units):
    torch.manual_seed(0)
    x = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
    layers = nn.Linear(1, n_units, dtype=torch.float64), nn.Tanh(), nn.Linear(n_units, 1, dtype=torch.float64)
    model = nn.Sequential(*layers)
    objective = Objective(model, lambda m: (derivative(m, x) + m(x)[:, 0]).square().mean())
    assert objective.chunk_size > 1
    weights = objective.initial_weights + 0.3 * np.random.default_rng(0).normal(size=(5, objective.n_params))
    expected = []
    for row in weights:
        w, b, v, c = np.split(row, np.cumsum([n_units, n_units, n_units]))
        y = np.tanh(x.numpy() * w + b)
        by_hand = (1 - y**2) @ (v * w) if derivative is slope else (-2 * y * (1 - y**2)) @ (v * w**2)
        expected.append(np.mean((by_hand + y @ v + c) ** 2))
    np.testing.assert_allclose(objective(weights), expected, rtol=1e-12)
