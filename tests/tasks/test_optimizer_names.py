"""Optimizers and schedules by name, against plain loops with PyTorch's own classes and with schedules by hand."""

import math
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

import loss_viz as lv
from loss_viz.runs.optimizer_state import check_track
from loss_viz.tasks.optimizers import OPTIMIZERS

LR, STEPS, WIDTH = 0.02, 7, 5
X = torch.linspace(-1, 1, 100, dtype=torch.float64)[:, None]
NAMES = (
    *("Adadelta", "Adafactor", "Adagrad", "Adam", "Adamax", "AdamW", "ASGD", "LBFGS", "NAdam", "RAdam"),
    *("RMSprop", "Rprop"),
)
HAS_MUON = hasattr(torch.optim, "Muon")


def train(**arguments):
    given = {"steps": STEPS, "width": WIDTH, "dtype": torch.float64, "lr": LR} | arguments
    return lv.train("x^3", progress=False, **{name: value for name, value in given.items() if value is not None})


def train_by_hand(build, run, *, schedule=lambda optimizers: lambda loss: None):
    """Return the weights of a plain loop from the first weights of a run, with all optimizers stepped in turn."""
    model = nn.Sequential(nn.Linear(1, WIDTH), nn.SiLU(), nn.Linear(WIDTH, 1)).double()
    nn.utils.vector_to_parameters(torch.from_numpy(run.weights[0].copy()), model.parameters())
    optimizers = build(list(model.parameters()))
    after_each = schedule(optimizers)
    rows = [run.weights[0]]

    def closure():
        model.zero_grad()
        loss = (model(X) - X**3).square().mean()
        loss.backward()
        return loss

    for _ in range(run.step[-1]):
        loss = closure().item()
        for one in optimizers:
            one.step(*[closure] * (len(optimizers) == 1))
        after_each(loss)
        rows.append(nn.utils.parameters_to_vector(model.parameters()).detach().numpy())
    return np.stack(rows)


@pytest.mark.parametrize("name", NAMES)
def test_each_optimizer_of_pytorch_is_known_by_its_name(name):
    run = train(optimizer=name)
    assert run.settings["optimizer"] == name.lower()
    expected = train_by_hand(lambda p: [getattr(torch.optim, name)(p, lr=LR)], run)
    np.testing.assert_allclose(run.weights, expected, rtol=1e-9)
    assert all((one != two).any() for one, two in pairwise(run.weights))


def test_the_names_are_those_of_this_pytorch():
    found = {name.lower() for name in dir(torch.optim) if name[0].isupper()} - {"optimizer", "sparseadam"}
    assert set(OPTIMIZERS) == found >= {name.lower() for name in NAMES}
    assert list(OPTIMIZERS) == ["adam", "adamw", "sgd", "rmsprop", *sorted([*OPTIMIZERS][4:])]


def test_sgd_has_momentum():
    run = train(optimizer="SGD")
    expected = train_by_hand(lambda p: [torch.optim.SGD(p, lr=LR, momentum=0.9)], run)
    np.testing.assert_allclose(run.weights, expected, rtol=1e-12)


def split_for_muon(parameters):
    matrices, rest = ([p for p in parameters if (p.ndim == 2) is wanted] for wanted in (True, False))
    return [torch.optim.Muon(matrices, lr=LR), torch.optim.Adam(rest, lr=LR)]


@pytest.mark.skipif(not HAS_MUON, reason="torch.optim.Muon came with PyTorch 2.9")
def test_muon_is_of_matrices_with_adam_for_vectors():
    run = train(optimizer="muon", depth=1)
    np.testing.assert_allclose(run.weights, train_by_hand(split_for_muon, run), rtol=1e-12)
    scheduled = train(optimizer="muon", scheduler="linear", track=["momentum_buffer", "exp_avg"])

    def schedule(optimizers):
        made = [torch.optim.lr_scheduler.LinearLR(one, 1, 0, total_iters=STEPS) for one in optimizers]
        return lambda loss: [one.step() for one in made]

    expected = train_by_hand(split_for_muon, scheduled, schedule=schedule)
    np.testing.assert_allclose(scheduled.weights, expected, rtol=1e-12)
    assert np.abs(scheduled.weights[-1] - run.weights[-1]).max() > 1e-3
    assert (np.stack(list(scheduled.optimizer_state.values()))[:, 1:] > 0).all()


@pytest.mark.skipif(HAS_MUON, reason="this PyTorch has Muon")
def test_muon_needs_a_new_pytorch():
    with pytest.raises(ValueError, match=r"torch\.optim\.Muon came with PyTorch 2\.9, this is .*Update PyTorch, or"):
        train(optimizer="muon")


def two(parameters):
    return [torch.optim.Adam(parameters[:2], lr=0.05), torch.optim.SGD(parameters[2:], lr=0.1)]


def test_a_function_may_return_several_optimizers():
    run = train(optimizer=lambda parameters: two(list(parameters)), lr=None)
    assert run.settings["optimizer"] == "Adam+SGD"
    np.testing.assert_allclose(run.weights, train_by_hand(two, run), rtol=1e-12)


FACTORS = {
    "cosine": lambda t: (1 + math.cos(math.pi * t / STEPS)) / 2,
    "linear": lambda t: 1 - t / STEPS,
    "step": lambda t: 0.5 ** (t // 3),
    "warmup": lambda t: min(1, (t + 1) / 4),
}
SCHEDULES = {
    "step": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5),
    "warmup": lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, FACTORS["warmup"]),
}


@pytest.mark.parametrize("name", FACTORS)
def test_a_schedule_scales_the_learning_rate_of_each_update(name):
    run = train(optimizer=torch.optim.SGD, scheduler=SCHEDULES.get(name, name))
    assert run.settings["scheduler"] == ("own" if name in SCHEDULES else name)
    assert run.settings["lr"] == LR
    model = nn.Sequential(nn.Linear(1, WIDTH), nn.SiLU(), nn.Linear(WIDTH, 1)).double()
    for t in range(STEPS):
        nn.utils.vector_to_parameters(torch.from_numpy(run.weights[t].copy()), model.parameters())
        gradient = torch.autograd.grad((model(X) - X**3).square().mean(), list(model.parameters()))
        step = LR * FACTORS[name](t) * nn.utils.parameters_to_vector(gradient).numpy()
        np.testing.assert_allclose(run.weights[t + 1] - run.weights[t], -step, rtol=1e-9, atol=1e-15)


def test_a_schedule_may_watch_the_loss():
    def reduce(optimizer):
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.5)

    run = train(optimizer=torch.optim.SGD, scheduler=reduce)
    expected = train_by_hand(
        lambda p: [torch.optim.SGD(p, lr=LR)], run, schedule=lambda optimizers: reduce(optimizers[0]).step
    )
    np.testing.assert_allclose(run.weights, expected, rtol=1e-12)
    assert (run.weights != train(optimizer=torch.optim.SGD).weights).any()


def test_comparison_takes_names_in_any_case():
    names = ["Adam", "sgd", "NADAM", "lbfgs", torch.optim.SGD]
    runs = lv.compare("x", names, steps=3, scheduler="cosine", progress=False)
    assert [run.name for run in runs] == ["Adam", "SGD + momentum", "NAdam", "LBFGS", "SGD"]
    assert {run.settings["scheduler"] for run in runs} == {"cosine"}


@pytest.mark.parametrize(
    ("arguments", "cause", "repair"),
    [
        ({"optimizer": "nadamm"}, "must be one of adam, adamw, sgd, rmsprop, ", "Did you mean 'nadam'? Others are"),
        ({"optimizer": "?"}, "got '?'. Others are passed as a class", "a function of the parameters"),
        ({"optimizer": "SparseAdam"}, "it updates sparse gradients only, and those of", "Use 'adam'"),
        ({"scheduler": "cosin"}, "`scheduler` must be one of cosine, linear; got 'cosin'", "StepLR(optimizer, 9)"),
        ({"scheduler": lambda o: torch.optim.lr_scheduler.StepLR(o)}, "it fails: ", "StepLR(optimizer, 9)"),
        (
            {"scheduler": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=3)},
            "`scheduler` must be stepped after each of `steps` updates, OneCycleLR fails: Tried to step 4 times",
            "Build it for that number",
        ),
        ({"track": ["exp_avg", "nothing", "else"]}, "'nothing', 'else' are not there", "Track 'exp_avg', 'exp_avg_sq'"),
        ({"track": ["a"], "optimizer": torch.optim.SGD}, "'a' is not there. This one keeps none", "another optimizer"),
        ({"track": ["a", "a"]}, "each of them once; got ['a', 'a']", "Leave it out"),
        ({"track": [""]}, "each of them once; got ['']", "Leave it out"),
        (
            {"optimizer": lambda p: [torch.optim.SGD(q, lr=0.1) for q in [list(p)] * 2], "lr": None},
            "in common: ",
            "Give",
        ),
        (
            {"optimizer": lambda p: [torch.optim.LBFGS([q], lr=0.1) for q in p], "lr": None},
            "`optimizer` must be able to update this network, but JointOptimizer fails: LBFGS.step() missing",
            "Use another one",
        ),
    ],
)
def test_wrong_arguments_raise_an_error_with_cause_and_repair(arguments, cause, repair):
    with pytest.raises(ValueError, match=re.escape(cause)) as error:
        train(**arguments)
    assert repair in str(error.value)
    assert error.value.argument in arguments


@pytest.mark.parametrize("wrong", [lambda optimizer: None, lambda optimizer: optimizer])
def test_a_schedule_of_another_type_is_refused(wrong):
    with pytest.raises(TypeError, match=r"`scheduler` must return a schedule of torch.*StepLR\(optimizer, 9\)"):
        train(scheduler=wrong)


@pytest.mark.parametrize("wrong", ["exp_avg", None, [5], {"exp_avg": 1}])
def test_tracked_names_of_another_type_are_refused(wrong):
    with pytest.raises(TypeError, match=r"`track` must be a list of names .* Leave it out to track none") as error:
        check_track(wrong)
    assert error.value.argument == "track"
