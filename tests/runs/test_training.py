import re
import threading
import time
from functools import partial

import numpy as np
import pytest
import reference
import torch

import loss_viz as lv
from loss_viz.runs.training import build_training, run_training
from loss_viz.settings import TrainSettings
from loss_viz.tasks.regression import build_task

LEVELS = {"x^2": 0.09249, "x^3": 0.02424, "sin(3x)": 0.17118}


def dwell(loss, level):
    """Steps from the first loss within a quarter of the level to the first below 0.7 of it."""
    return int(np.argmax(loss < 0.7 * level) - np.argmax(loss <= 1.25 * level))


def weights_of(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]).numpy()


def test_rows_are_the_loss_at_the_recorded_weights(run):
    for t in (0, 1, 30, 60):
        assert reference.loss_at(run.model, run.objective.loss_fn, run.weights[t]) == pytest.approx(
            run.loss[t], rel=1e-12
        )
    assert np.array_equal(run.step, np.arange(61))
    assert np.array_equal(run.weights[-1], weights_of(run.model))


def test_training_equals_full_batch_adam_written_by_hand():
    run = lv.train("sin(3x)", steps=25, dtype=torch.float64, progress=False)
    model = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.SiLU(), torch.nn.Linear(8, 1)).double()
    torch.nn.utils.vector_to_parameters(torch.tensor(run.weights[0]), model.parameters())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    x = torch.linspace(-1, 1, 100, dtype=torch.float64)[:, None]
    for t in range(25):
        loss = ((model(x) - torch.sin(3 * x)) ** 2).mean()
        assert loss.item() == pytest.approx(run.loss[t], rel=1e-10)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        weights = torch.nn.utils.parameters_to_vector(model.parameters()).detach().numpy()
        np.testing.assert_allclose(run.weights[t + 1], weights, rtol=1e-9, atol=1e-12)


def test_the_seed_determines_the_initial_weights_as_in_pytorch():
    torch.manual_seed(7)
    layers = torch.nn.Linear(1, 8), torch.nn.Linear(8, 1)
    expected = torch.cat([p.detach().reshape(-1) for layer in layers for p in layer.parameters()])
    run = lv.train("x", steps=1, seed=7, progress=False)
    assert np.array_equal(run.weights[0], expected.numpy())


def test_networks_and_other_threads_do_not_share_random_numbers():
    settings = TrainSettings(target="x^3", width=8, depth=3, lr=0.01, steps=1, seed=52)
    torch.manual_seed(52)
    sizes = [(1, 8), (8, 8), (8, 8), (8, 1)]
    expected = torch.cat([p.detach().reshape(-1) for size in sizes for p in torch.nn.Linear(*size).parameters()])
    torch.manual_seed(5)
    drawn, done = [], threading.Event()

    def draw():
        while not done.is_set():
            drawn.append(torch.rand(()).item())

    threads = [threading.Thread(target=draw) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        weights = [weights_of(build_training(settings).model) for _ in range(60)]
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert all(np.array_equal(found, expected.numpy()) for found in weights)
    torch.manual_seed(5)
    assert sorted(drawn) == sorted(torch.rand(()).item() for _ in drawn)
    assert len(drawn) > 100


def test_an_activation_that_draws_numbers_continues_those_of_the_network():
    class Drawing(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.slope = torch.nn.Parameter(torch.rand(1))

        def forward(self, x):
            return self.slope * x

    torch.manual_seed(7)
    parts = torch.nn.Linear(1, 8), Drawing(), torch.nn.Linear(8, 1)
    expected = torch.cat([p.detach().reshape(-1) for part in parts for p in part.parameters()])
    before = torch.get_rng_state()
    run = lv.train("x", steps=1, seed=7, activation=Drawing, progress=False)
    assert np.array_equal(run.weights[0], expected.numpy())
    assert torch.equal(torch.get_rng_state(), before)


def test_same_seed_same_bytes_and_global_state_untouched():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    runs = [lv.train("x^2", steps=40, seed=seed, progress=False) for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), before)
    assert runs[0].weights.tobytes() == runs[1].weights.tobytes()
    assert runs[0].weights.tobytes() != runs[2].weights.tobytes()


def test_the_last_step_is_recorded_when_thinned():
    full = lv.train("x^3", steps=23, progress=False)
    thin = lv.train("x^3", steps=23, every=10, progress=False)
    assert thin.step.tolist() == [0, 10, 20, 23]
    assert np.array_equal(thin.weights, full.weights[thin.step])
    assert np.array_equal(thin.loss, full.loss[thin.step])


@pytest.mark.parametrize("activation", ["tanh", "silu", "relu", "gelu", torch.nn.ELU])
@pytest.mark.parametrize(
    "optimizer",
    [
        "adam",
        "adamw",
        "sgd",
        torch.optim.RMSprop,
        partial(torch.optim.LBFGS, max_iter=4),
        partial(torch.optim.Adagrad, lr=0.1),
    ],
)
def test_every_activation_and_optimizer_learns(activation, optimizer):
    run = lv.train("x", steps=30, activation=activation, optimizer=optimizer, depth=2, progress=False)
    assert run.loss[-1] < 0.9 * run.loss[0]
    assert run.objective.n_params == 8 + 8 + 64 + 8 + 8 + 1


@pytest.mark.parametrize("spelling", ["x**2", "x ^ 2", "x²"])
def test_one_formula_is_one_task_however_it_is_spelled(spelling, post_runs):
    run = lv.train(spelling, progress=False)
    assert run.weights.tobytes() == post_runs["x^2"].weights.tobytes()
    assert len(run) == 501


def test_callable_target_is_the_formula():
    by_name = lv.train("sin(3x)", steps=5, progress=False)
    by_function = lv.train(lambda x: torch.sin(3 * x), steps=5, progress=False)
    np.testing.assert_allclose(by_function.loss, by_name.loss, rtol=1e-6)


@pytest.mark.parametrize("degree_and_target", [(0, "x^2"), (1, "x^3"), (1, "sin(3x)")])
def test_plateaus_are_at_the_loss_of_the_best_constant_or_line(degree_and_target, post_runs):
    degree, target = degree_and_target
    continuum = {"x^2": 4 / 45, "x^3": 4 / 175, "sin(3x)": 0.1648}[target]

    def level(n):
        task = build_task(target, n_points=n, dtype=torch.float64)
        x, y = task.x.numpy().ravel(), task.y.numpy().ravel()
        return np.mean((np.polyval(np.polyfit(x, y, degree), x) - y) ** 2)

    assert level(100_000) == pytest.approx(continuum, rel=1e-3)
    assert level(100) == pytest.approx(LEVELS[target], rel=1e-3)
    loss = post_runs[target].loss
    near = (loss < 1.25 * LEVELS[target]) & (loss > 0.7 * LEVELS[target])
    assert np.median(loss[near]) == pytest.approx(LEVELS[target], rel=0.08)


@pytest.mark.parametrize(("target", "post"), [("x^2", 76), ("x^3", 1038), ("sin(3x)", 672)])
def test_defaults_stay_on_the_plateau_as_long_as_the_post(target, post, post_runs):
    assert dwell(post_runs[target].loss, LEVELS[target]) == pytest.approx(post, rel=0.2)


@pytest.mark.parametrize(("target", "post"), [("x", 0.0031), ("x^2", 1.71e-4), ("x^3", 7.19e-5), ("sin(3x)", 1.7e-4)])
def test_defaults_end_within_a_factor_of_three_of_the_post(target, post, post_runs):
    loss = post_runs[target].loss
    assert len(loss) == {"x": 201, "x^2": 501}.get(target, 2001)
    assert 1 / 3 < loss[-1] / post < 3


@pytest.mark.slow
@pytest.mark.parametrize(("target", "least"), [("x^2", 40), ("x^3", 200), ("sin(3x)", 200)])
def test_robust_preset_sticks(target, least):
    loss = lv.train(target, preset="robust", progress=False).loss
    assert dwell(loss, LEVELS[target]) >= least


def test_a_diverging_run_ends_at_the_last_finite_step():
    with pytest.warns(RuntimeWarning, match=r"The loss became (inf|nan) at step \d+; .* Lower `lr`"):
        run = lv.train("x^3", optimizer="sgd", lr=5.0, steps=500, progress=False)
    assert 2 < len(run) < 500
    assert np.isfinite(run.loss).all()
    assert np.isfinite(run.weights).all()
    assert f"kept up to step {run.step[-1]}" in run.note
    assert np.array_equal(run.weights[-1], weights_of(run.model))


def test_the_last_finite_step_survives_thinning():
    with pytest.warns(RuntimeWarning, match="kept up to step"):
        full = lv.train("x^3", optimizer="sgd", lr=5.0, steps=500, progress=False)
    with pytest.warns(RuntimeWarning, match="kept up to step"):
        thin = lv.train("x^3", optimizer="sgd", lr=5.0, steps=500, every=1000, progress=False)
    assert thin.step.tolist() == [0, full.step[-1]]


def test_an_interrupted_run_is_kept():
    calls = []

    class Interrupting(torch.optim.SGD):
        def step(self, closure):
            calls.append(1)
            loss = super().step(closure)
            if len(calls) == 12:
                raise KeyboardInterrupt
            return loss

    with pytest.warns(RuntimeWarning, match="Training was interrupted; the run is kept up to step 10 of 50"):
        run = lv.train("x", steps=50, optimizer=Interrupting, progress=False)
    assert run.step[-1] == 10
    assert np.array_equal(run.weights[-1], weights_of(run.model))


def test_on_step_is_called_at_every_step_and_can_end_the_run():
    called = []

    def record(step, loss):
        called.append((step, loss))
        if step == 7:
            raise KeyboardInterrupt

    run = run_training(build_training(TrainSettings(target="x", steps=50)), on_step=record)
    assert called == list(zip(run.step.tolist(), run.loss.tolist(), strict=True))
    assert run.note == "Training was interrupted; the run is kept up to step 7 of 50."
    whole = lv.train("x", steps=50, progress=False)
    assert np.array_equal(run.weights, whole.weights[:8])

    def fail(step, loss):
        raise LookupError

    with pytest.raises(LookupError):
        run_training(build_training(TrainSettings(target="x", steps=50)), on_step=fail)


def test_a_run_predicts_with_the_weights_of_a_row(post_runs):
    run = post_runs["x^3"]
    for row in (0, 500, 2000):
        answer = run.predict(row)
        assert np.mean((answer - run.task.y.numpy().ravel()) ** 2) == pytest.approx(run.loss[row], rel=1e-5)
    foreign = lv.Run(run.weights, run.loss, run.step, run.objective)
    with pytest.raises(ValueError, match="`predict` needs a run of a built-in task"):
        foreign.predict(0)


@pytest.mark.parametrize(
    ("arguments", "cause", "repair"),
    [
        ({"target": "sin(3y)"}, "the name 'y' is not known", 'Type one like "x^2"'),
        ({"target": "sqrt(x)"}, "it is nan at x = -1", "defined there"),
        ({"target": "1/(x-1)"}, "it is inf at x = 1", "defined there"),
        ({"target": lambda x: x[:3]}, "it gave shape (3,)", "of the shape of its argument"),
        ({"steps": 0}, "`steps` must be a whole number of at least 1, got 0", "200 to 2000"),
        ({"every": 0}, "`every` must be a whole number of at least 1, got 0", "every step is recorded"),
        ({"width": 0}, "`width` must be a whole number of at least 1, got 0", "width 8"),
        ({"depth": 0}, "`depth` must be a whole number of at least 1, got 0", "depth 1"),
        ({"n_points": 1}, "`n_points` must be a whole number from 2 to 4194304, got 1", "Use 100"),
        ({"lr": 0.0}, "`lr` must be a positive number, got 0.0", "0.01"),
        ({"lr": float("nan")}, "`lr` must be a positive number, got nan", "0.01"),
        ({"preset": "best"}, "`preset` must be one of post, robust; got 'best'", "default"),
        ({"activation": "swish"}, "`activation` must be one of tanh, silu, relu, gelu", "torch.nn.ELU"),
        ({"optimizer": "sdg"}, "`optimizer` must be one of adam, adamw, sgd", "Did you mean 'sgd'?"),
        ({"optimizer": partial(torch.optim.SGD, lr=0.1), "lr": 0.1}, "`lr` = 0.1 has no effect", "Leave `lr` out"),
        ({"target": "1e30"}, "finite before training", "smaller values"),
    ],
)
def test_wrong_arguments_raise_an_error_with_cause_and_repair(arguments, cause, repair):
    with pytest.raises(ValueError, match=re.escape(cause)) as error:
        lv.train(**({"target": "x", "progress": False} | arguments))
    assert repair in str(error.value)
    assert error.value.argument in arguments


def test_an_optimizer_function_must_return_an_optimizer():
    with pytest.raises(TypeError, match="it returned list"):
        lv.train("x", optimizer=lambda parameters: list(parameters), progress=False)


def test_progress_bar_shows_after_a_second(capsys):
    class Slow(torch.optim.SGD):
        def step(self, closure=None):
            time.sleep(0.1)
            return super().step(closure)

    lv.train("x^3", steps=20, optimizer=Slow)
    assert "training on x^3" in capsys.readouterr().err
    lv.train("x", steps=10)
    assert capsys.readouterr().err == ""
