"""Headlines of a run: one true sentence for every step."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import loss_viz as lv
from loss_viz.diagnostics.fidelity import Fidelity
from loss_viz.diagnostics.headlines import list_stops, opening_step, rate_fidelity, write_headlines
from loss_viz.diagnostics.plateaus import Plateau


def build_run(losses, step=None):
    """Return a run with given losses, without a task."""
    model = torch.nn.Linear(1, 1)
    losses = np.asarray(losses, dtype=float)
    step = np.arange(len(losses)) if step is None else np.asarray(step)
    objective = lv.Objective(model, lambda m: m.weight.square().sum())
    return lv.Run(np.zeros((len(losses), 2)), losses, step, objective)


def sentence(headlines, step):
    [text] = [one.text for one in headlines if one.start <= step <= one.end]
    return text


def test_the_post_s_runs(post_runs):
    for target in ("x^3", "sin(3x)"):
        run = post_runs[target]
        [plateau] = lv.find_plateaus(run)
        headlines, stops = write_headlines(run, [plateau]), list_stops(run, [plateau])
        assert sentence(headlines, 0) == "the loss falls."
        for step in (plateau.start, opening_step(run, [plateau]), plateau.end):
            assert sentence(headlines, step) == "stuck. All it has learned is the best straight line."
        left = next(step for step in range(plateau.end + 1, 2001) if run.loss[step] < plateau.level)
        assert sentence(headlines, left) == "it escapes: the loss falls again."
        first = next(step for step in range(plateau.end + 1, 2001) if run.loss[step] <= 0.1 * plateau.level)
        assert sentence(headlines, first - 1) == "it escapes: the loss falls again."
        assert sentence(headlines, first) == "it has escaped."
        y = run.task.y.double().numpy().ravel()
        error = np.sqrt(((run.predict(2000) - y) ** 2).mean() / ((y - y.mean()) ** 2).mean())
        assert sentence(headlines, 2000) == f"learned, with an error of {100 * error:.2g} % of the target's spread."
        assert [stop.text for stop in stops] == ["falls", "sticks", "escapes"]
        assert [stop.step for stop in stops] == [0, (plateau.start + plateau.end) // 2, plateau.end]


def test_a_run_that_never_leaves_its_plateau_is_still_stuck():
    run = lv.train("x^3", optimizer="sgd", steps=800, progress=False)
    plateaus = lv.find_plateaus(run)
    headlines = write_headlines(run, plateaus)
    assert sentence(headlines, 400) == "stuck. All it has learned is the best straight line."
    assert sentence(headlines, 800) == "still stuck. All it has learned is the best straight line."
    assert [stop.text for stop in list_stops(run, plateaus)] == ["falls", "sticks"]


@pytest.mark.parametrize(
    ("losses", "end"),
    [
        ([1.0, 0.5, 0.1, 0.2], "done, with loss 0.2."),
        ([1.0, 0.5, 0.1, 0.32], "the loss has risen to 3.2 times its lowest value."),
        ([1.0, 0.5, 1.5], "the loss is no lower than at the start."),
        ([1.0], "the loss is no lower than at the start."),
        ([1.0, -3.0], "done, with loss -3."),
    ],
)
def test_the_end_of_a_run(losses, end):
    run = build_run(np.linspace(2, 1, len(losses)))
    run = replace(run, loss=np.array(losses))
    headlines = write_headlines(run, [])
    assert sentence(headlines, len(losses) - 1) == end
    assert opening_step(run, []) == len(losses) - 1
    assert list_stops(run, []) == []


def test_a_run_that_diverges_is_not_said_to_fall():
    headlines = write_headlines(build_run([1.0, 0.5, 0.9, 1.5, 3.0]), [])
    risen = "the loss has risen above its lowest value so far."
    said = [sentence(headlines, step) for step in range(5)]
    assert said[:4] == ["the loss falls.", "the loss falls.", "the loss falls.", risen]
    assert said[4] == "the loss is no lower than at the start."
    after = write_headlines(build_run([1.0, 0.5, 0.5, 0.4, 0.04, 0.6, 0.6]), [Plateau(1, 2, 0.5)])
    said = [sentence(after, step) for step in range(6)]
    assert said[3:] == ["it escapes: the loss falls again.", "it has escaped.", risen]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_recorded_step_has_one_sentence(data):
    step = np.array(sorted(data.draw(st.sets(st.integers(0, 500), min_size=1, max_size=60))))
    losses = data.draw(st.lists(st.floats(1e-6, 1e3), min_size=len(step), max_size=len(step)))
    run = build_run(losses, step)
    cuts = sorted(data.draw(st.sets(st.sampled_from(step.tolist()), max_size=6)))
    pairs = list(zip(cuts[::2], cuts[1::2], strict=False))
    plateaus = [Plateau(start, end, 0.5) for start, end in pairs]
    headlines = write_headlines(run, plateaus)
    assert headlines[0].start == step[0]
    assert headlines[-1].end == step[-1]
    for one in step.tolist():
        text = sentence(headlines, one)
        assert 0 < len(text) <= 80
        on = any(plateau.start <= one <= plateau.end for plateau in plateaus)
        assert ("stuck" in text) == on or one == step[-1]
        row = step.tolist().index(one)
        if "falls" in text and one > step[0]:
            assert losses[row] < losses[0] or any(plateau.end < one for plateau in plateaus)
        if "risen" in text:
            assert losses[row] > 2 * min(losses[: row + 1])


def test_the_chip_names_the_worst_step():
    step = np.array([0, 10, 20, 30])
    assert rate_fidelity(Fidelity(step, np.array([1.0, 1.0, 1.0, 1.0]))) == (True, "true to 0.1 %")
    mixed = Fidelity(step, np.array([1.0, 1.2, np.nan, 1.1]))
    assert rate_fidelity(mixed) == (True, f"true to {100 * (mixed.p90 - 1):.2g} %")
    assert rate_fidelity(Fidelity(step, np.array([4.7, 1.0, 1.0, 1.0]))) == (False, "off × 4.7 at the start")
    assert rate_fidelity(Fidelity(step, np.array([1.0, 1.0, 2.0, 1.0]))) == (False, "off × 2 at step 20")
    assert rate_fidelity(Fidelity(step, np.array([1.0, np.inf, 2.0, 1.0]))) == (False, "off × inf at step 10")
    assert rate_fidelity(Fidelity(step, np.full(4, np.nan))) == (False, "not measured")
