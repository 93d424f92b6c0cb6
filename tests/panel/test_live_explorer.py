"""The panel beside a training that goes on, in a thread or in another process."""

import subprocess
import sys
import textwrap
import threading
import time
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import scipy.linalg
import torch
from tqdm import tqdm

import loss_viz as lv
from loss_viz.panel import controller, pacer, watch
from loss_viz.panel.pacer import Pacer
from loss_viz.planes.projection import align_axes, fit_projection
from loss_viz.runs import growing
from loss_viz.runs.growing import FolderGrowth, RecorderGrowth

X = torch.linspace(-1, 1, 50)[:, None]
QUIET = partial(tqdm, disable=True)


def loss_fn(model):
    return (model(X) - torch.sin(3 * X)).square().mean()


def build():
    torch.manual_seed(0)
    layers = torch.nn.Linear(1, 12), torch.nn.Tanh(), torch.nn.Dropout(0.1), torch.nn.Linear(12, 1)
    model = torch.nn.Sequential(*layers)
    return model, torch.optim.Adam(model.parameters(), lr=0.02)


def train(model, optimizer, n_steps, seconds=0.0):
    for _ in range(n_steps):
        optimizer.zero_grad()
        loss_fn(model).backward()
        optimizer.step()
        time.sleep(seconds)


@pytest.fixture
def quick(monkeypatch):
    """Look and draw often, so that a training of a second is seen many times."""
    monkeypatch.setattr(watch, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(watch, "PAUSE_SECONDS", 60.0)
    monkeypatch.setattr(controller, "TRAINING_SHARE", 0.5)


class Clock:
    """The clocks of a thread whose work takes as long as it says: those of a busy machine do not add up."""

    def __init__(self):
        self._wall = self._cpu = 0.0

    def monotonic(self):
        return self._wall

    def thread_time(self):
        return self._cpu

    def sleep(self, seconds):
        self._wall += seconds

    def work(self, seconds, interrupted=0.0):
        self._cpu += seconds
        self._wall += seconds + interrupted


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(pacer, "time", clock)
    return clock


def wait_for(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_training_ends_as_without_the_panel_and_the_last_picture_is_that_of_its_run(quick, monkeypatch):
    model, optimizer = build()
    lv.Recorder(model, loss_fn)  # whose probes are the same in both trainings
    torch.manual_seed(1)
    recorder = lv.Recorder(model, loss_fn).attach(optimizer)
    train(model, optimizer, 300)
    alone, expected = recorder.run(progress=False), model.state_dict()

    model, optimizer = build()
    lv.Recorder(model, loss_fn)
    torch.manual_seed(1)
    recorder = lv.Recorder(model, loss_fn)
    planes, seen = [], []
    draw = controller.Controller._draw

    def observe(self, view, *rest):
        if self._is_growing:
            planes.append(view.projection)
        draw(self, view, *rest)

    monkeypatch.setattr(controller.Controller, "_draw", observe)
    explorer = lv.Explorer(recorder, resolution=31)
    state = torch.get_rng_state()

    def work():
        torch.set_rng_state(state)
        torch.manual_seed(1)
        with recorder.attach(optimizer):
            train(model, optimizer, 300, seconds=0.008)

    training = threading.Thread(target=work)
    training.start()
    while training.is_alive():
        seen.append((explorer.step, explorer.state, explorer.work.get("text", "")))
        training.join(0.05)
    assert explorer.wait(60.0)

    now = model.state_dict()
    assert all(torch.equal(now[name], expected[name]) for name in expected)
    land = lv.landscape(alone, resolution=31, progress=False)
    np.testing.assert_array_equal(explorer.landscape.loss, land.loss)
    np.testing.assert_array_equal(explorer.landscape.path_loss, alone.loss)
    assert explorer.step == 300
    assert explorer.timeline["headlines"][-1]["text"].startswith("done")
    assert not explorer._watch.is_running

    steps = [step for step, *_ in seen if step is not None]
    assert steps == sorted(steps)
    assert len(set(steps)) > 5
    assert any(text.startswith("Training, step") and state == "live" for _, state, text in seen)
    assert len(planes) > 3
    for old, new in pairwise(planes):
        overlap = old.components @ new.components.T
        np.testing.assert_allclose(overlap, overlap.T, atol=1e-9)  # of all turns the one with the largest trace
        assert np.linalg.eigvalsh(overlap).min() >= -1e-12
    explorer.close()


def test_axes_are_turned_as_scipy_turns_them():
    rng = np.random.default_rng(0)
    walk = np.cumsum(rng.standard_normal((40, 7)), axis=0)
    old, new = fit_projection(walk[:25]), fit_projection(walk)
    aligned = align_axes(new, old)
    turn, _ = scipy.linalg.orthogonal_procrustes(new.components.T, old.components.T)
    np.testing.assert_allclose(aligned.components, turn.T @ new.components, atol=1e-12)
    centered = walk - walk.mean(axis=0)
    np.testing.assert_allclose(aligned.path, centered @ aligned.components.T, atol=1e-10)
    ratio = (centered @ aligned.components.T).var(axis=0).sum() / centered.var(axis=0).sum()
    np.testing.assert_allclose(aligned.explained_variance_ratio.sum(), ratio)
    each = (centered @ aligned.components.T).var(axis=0) / centered.var(axis=0).sum()
    np.testing.assert_allclose(aligned.explained_variance_ratio, each)
    assert aligned.axes[0] != "PC1"


def test_the_ball_stays_where_it_was_put_and_settings_are_drawn_at_once(quick):
    model, optimizer = build()
    recorder = lv.Recorder(model, loss_fn).attach(optimizer)
    explorer = lv.Explorer(recorder)
    train(model, optimizer, 20)
    wait_for(lambda: explorer._controller.growing_surface_step)
    explorer.step = 7
    explorer.resolution = 25
    train(model, optimizer, 20, seconds=0.01)
    wait_for(lambda: explorer._controller.view.run_set.last_step == 40)
    assert explorer.step == 7
    assert len(explorer._controller.view.sampling.x) == 25
    recorder.finish()
    assert explorer.wait(60.0)
    assert explorer.step == 7
    explorer.close()


def test_a_pause_shows_the_whole_run_until_the_training_goes_on(quick, monkeypatch):
    monkeypatch.setattr(watch, "PAUSE_SECONDS", 0.5)
    model, optimizer = build()
    recorder = lv.Recorder(model, loss_fn, every=3).attach(optimizer)
    explorer = lv.Explorer(recorder, resolution=11)
    train(model, optimizer, 30)
    assert explorer.wait(30.0)
    assert len(explorer.run) == 11
    assert explorer.landscape is not None
    train(model, optimizer, 30)
    wait_for(lambda: explorer.state == "live")
    recorder.run(progress=False)
    assert explorer.wait(30.0)
    assert explorer.run.step[-1] == 60
    explorer.close()


def test_an_error_of_the_loss_is_shown_and_never_reaches_the_training(quick):
    model, optimizer = build()
    fails = False

    def loss(m):
        if fails and threading.current_thread().name.startswith("loss_viz"):
            raise RuntimeError("the data are gone")
        return loss_fn(m)

    recorder = lv.Recorder(model, loss).attach(optimizer)
    fails = True
    explorer = lv.Explorer(recorder, resolution=11)
    train(model, optimizer, 30, seconds=0.01)
    wait_for(lambda: explorer.work.get("bad"))
    assert "the data are gone" in explorer.work["text"]
    assert "RuntimeError" in explorer.work["details"]
    assert recorder.step == 30
    fails = False
    recorder.finish()
    assert explorer.wait(30.0)
    assert explorer.landscape is not None
    explorer.close()


def test_close_ends_the_thread_and_leaves_the_recorder(quick):
    model, optimizer = build()
    recorder = lv.Recorder(model, loss_fn).attach(optimizer)
    explorer = lv.Explorer(recorder)
    assert explorer.run is None
    wait_for(lambda: "Waiting for the first step" in explorer.work.get("text", ""))
    assert not explorer.wait(0.05)
    train(model, optimizer, 5)
    thread = explorer._watch._thread
    explorer.close()
    thread.join(5.0)
    assert not thread.is_alive()
    train(model, optimizer, 5)
    assert len(recorder.run(progress=False)) == 11


def test_a_loss_that_draws_random_numbers_waits_for_the_end(quick):
    model, optimizer = build()

    def noisy(m):
        torch.manual_seed(3)
        return loss_fn(m) + 0 * torch.randn(()).square()

    recorder = lv.Recorder(model, noisy).attach(optimizer)
    explorer = lv.Explorer(recorder, resolution=11)
    before = torch.get_rng_state()
    train(model.eval(), optimizer, 30)
    wait_for(lambda: "draws random numbers" in explorer.work.get("text", ""))
    assert torch.equal(before, torch.get_rng_state())
    recorder.finish()
    assert explorer.wait(30.0)
    assert len(explorer.run) == 31
    explorer.close()


def test_losses_beside_a_training_change_no_setting_of_the_process(monkeypatch):
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    inputs = torch.randn(3, 5, 4)
    recorder = lv.Recorder(layer, lambda m: m(inputs).square().mean())
    beside = recorder.objective.beside_training()
    weights = recorder.objective.initial_weights[None].repeat(3, axis=0)
    expected = recorder.objective(weights)
    for name in ("loss_viz.objective.objective.unfused_attention", "torch.random.fork_rng"):
        monkeypatch.setattr(name, lambda *_: pytest.fail("a setting of the process"))
    np.testing.assert_allclose(beside(weights), expected, rtol=1e-5)


WRITER = """
import sys, time, torch, loss_viz as lv
torch.manual_seed(0)
torch.set_num_threads(1)
x = torch.linspace(-1, 1, 50)[:, None]
loss_fn = lambda m: (m(x) - torch.sin(3 * x)).square().mean()
model = torch.nn.Sequential(torch.nn.Linear(1, 12), torch.nn.Tanh(), torch.nn.Linear(12, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
with lv.Recorder(model, loss_fn, folder=sys.argv[1]).attach(optimizer):
    for _ in range(120):
        optimizer.zero_grad()
        loss_fn(model).backward()
        optimizer.step()
        time.sleep(0.01)
"""


def build_plain():
    return torch.nn.Sequential(torch.nn.Linear(1, 12), torch.nn.Tanh(), torch.nn.Linear(12, 1))


@pytest.mark.slow
def test_a_training_in_another_process_is_followed_through_its_folder(quick, monkeypatch, tmp_path):
    monkeypatch.setattr(watch, "PAUSE_SECONDS", 1.5)
    folder = tmp_path / "snapshots"
    explorer = lv.Explorer.watch(folder, build_plain(), loss_fn, resolution=15)
    wait_for(lambda: "Waiting for the folder" in explorer.work.get("text", ""))
    writer = subprocess.Popen([sys.executable, "-c", textwrap.dedent(WRITER), str(folder)])
    seen = set()
    while writer.poll() is None:
        seen.add(explorer.step)
        time.sleep(0.05)
    assert writer.returncode == 0
    assert seen - {None, 120}
    assert explorer.wait(60.0)
    run = lv.load_run(folder, build_plain(), loss_fn)
    np.testing.assert_array_equal(explorer.run.loss, run.loss)
    land = lv.landscape(run, resolution=15, progress=False)
    np.testing.assert_array_equal(explorer.landscape.loss, land.loss)
    assert explorer._watch.is_running
    explorer._on_press("stop")
    wait_for(lambda: not explorer._watch.is_running)
    assert explorer.wait(60.0)
    explorer.close()


def write_checkpoints(folder, steps):
    torch.manual_seed(0)
    for step in steps:
        torch.save({"model": build_plain().state_dict(), "optimizer": {}, "step": step}, folder / f"step-{step}.pt")


def test_only_new_files_are_opened_and_half_written_ones_later(tmp_path, monkeypatch):
    opened = []
    plain = growing.open_checkpoint
    monkeypatch.setattr(growing, "open_checkpoint", lambda path: opened.append(path.name) or plain(path))
    write_checkpoints(tmp_path, range(0, 50, 10))
    source = FolderGrowth(tmp_path, build_plain(), loss_fn)
    assert source.look().steps == [0, 10, 20, 30, 40]
    assert len(source.sample(QUIET())) == 5
    write_checkpoints(tmp_path, [50])
    whole = (tmp_path / "step-50.pt").read_bytes()
    (tmp_path / "step-50.pt").write_bytes(whole[: len(whole) // 2])
    opened.clear()
    first, second = source.look(), source.look()
    assert opened == ["step-50.pt"]
    assert first.steps == second.steps == [0, 10, 20, 30, 40]
    assert not first.problem  # it may still be being written
    assert "step-50.pt cannot be read" in second.problem
    (tmp_path / "step-50.pt").write_bytes(whole)
    assert source.look() == source.look()
    assert source.look().steps[-1] == 50
    assert not source.look().problem
    (tmp_path / "step-10.pt").unlink()
    run = source.sample(QUIET())  # between two looks
    assert source.look().steps == [0, 20, 30, 40, 50]
    run = source.sample(QUIET())
    expected = lv.load_run(tmp_path, build_plain(), loss_fn)
    np.testing.assert_array_equal(run.step, expected.step)
    np.testing.assert_allclose(run.loss, expected.loss, rtol=1e-6)
    np.testing.assert_array_equal(source.whole(QUIET()).loss, expected.loss)


def test_checkpoints_of_another_model_are_reported(quick, tmp_path):
    write_checkpoints(tmp_path, [0, 10])
    explorer = lv.Explorer.watch(tmp_path, torch.nn.Linear(1, 1), lambda m: m(X).square().mean())
    wait_for(lambda: explorer.work.get("bad"))
    assert "as it was when this checkpoint was written" in explorer.work["text"]
    explorer.close()


def test_a_long_run_is_sampled_and_each_loss_evaluated_once(monkeypatch):
    monkeypatch.setattr(growing, "MAX_ROWS", 20)
    model, optimizer = build()
    recorder = lv.Recorder(model, loss_fn).attach(optimizer)
    source = RecorderGrowth(recorder)
    counted = []
    evaluate = lv.Objective.__call__
    monkeypatch.setattr(
        lv.Objective, "__call__", lambda self, w, b=None: counted.append(len(w)) or evaluate(self, w, b)
    )
    for _ in range(10):
        train(model, optimizer, 10)
        source.look()
        run = source.sample(QUIET())
        assert run.step[-1] == recorder.step
        assert len(run) <= 21
        np.testing.assert_allclose(run.loss[-1], loss_fn(model.eval()).item(), rtol=1e-5)
        model.train()
    assert np.ptp(np.diff(run.step)[:-1]) == 0
    assert sum(counted) < 70, counted
    whole = source.whole(QUIET())
    np.testing.assert_array_equal(whole.step, np.arange(101))


def test_work_takes_its_share_of_the_time(clock):
    share, work = 0.1, Pacer(0.1)
    with work:
        for _ in range(10):
            clock.work(0.01)
            work.rest()
    assert clock.monotonic() == pytest.approx(0.1 / share)
    assert work.spent == pytest.approx(0.1)


def test_a_piece_of_work_that_is_interrupted_is_charged_by_the_clock_on_the_wall(clock):
    work = Pacer(0.1)
    with work:
        clock.work(0.01, interrupted=0.05)
        work.rest()
    assert clock.monotonic() == pytest.approx(0.06 / 0.1)
    assert work.spent == pytest.approx(0.01)


def test_a_rest_ends_when_there_is_something_else_to_do():
    work = Pacer(1e-6)

    def check():
        raise KeyboardInterrupt

    with work, pytest.raises(KeyboardInterrupt):
        work.rest(check)
    assert not work._lock.locked()
