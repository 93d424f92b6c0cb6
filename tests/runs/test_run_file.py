"""Saved runs, and runs from folders of checkpoints."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

import loss_viz as lv
from loss_viz.runs.run_file import write_archive


def build(width=6):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(1, width), nn.BatchNorm1d(width), nn.Tanh(), nn.Linear(width, 1))


X = torch.linspace(-1, 1, 30)[:, None]


def loss_fn(model):
    return (model(X) - X.sin()).square().mean()


def train(model, each):
    """Train in a plain loop that calls `each(step)`."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    each(0)
    for step in range(1, 9):
        optimizer.zero_grad()
        nn.functional.mse_loss(model.train()(X), X.sin()).backward()
        optimizer.step()
        each(step)


@pytest.fixture
def recorded():
    model = build()
    recorder = lv.Recorder(model, loss_fn, name="mine")
    train(model, lambda step: recorder.record() if step else None)
    return recorder.run()


def require_same(one, two):
    for name in ("weights", "loss", "step"):
        np.testing.assert_array_equal(getattr(one, name)[:], getattr(two, name)[:])
    assert (one.note, one.name, dict(one.settings)) == (two.note, two.name, dict(two.settings))
    np.testing.assert_allclose(two.objective(*two.state(slice(None))), one.loss, rtol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"depth": 2, "width": 5, "activation": "gelu", "dtype": torch.float64}])
@pytest.mark.parametrize("target", ["x^3", lambda x: x.sin()], ids=["formula", "function"])
def test_a_run_of_train_opens_from_its_file_alone(tmp_path, settings, target):
    run = lv.train(target, steps=30, progress=False, **settings)
    run.save(tmp_path / "run.safetensors")
    again = lv.load_run(tmp_path / "run.safetensors")
    require_same(run, again)
    assert again.task.name == run.task.name
    np.testing.assert_allclose(again.predict(4), run.predict(4), rtol=1e-6)
    pictures = [lv.landscape(one, resolution=(5, 4), progress=False).loss for one in (run, again)]
    np.testing.assert_allclose(*pictures, rtol=1e-5)


def test_the_file_describes_itself(tmp_path):
    run = lv.train("x^3", steps=30, optimizer="sgd", progress=False)
    path = tmp_path / "run.safetensors"
    run.save(path)
    with safetensors.safe_open(str(path), framework="np") as file:
        report = json.loads(file.metadata()["loss_viz"])
        assert set(file.keys()) == {"weights", "loss", "step", "task.x", "task.y"}
    assert report["format"] == "loss_viz run"
    assert report["loss_viz"] == lv.__version__
    assert report["settings"] == {
        **{"target": "x^3", "width": 8, "depth": 1, "activation": "silu"},
        **{"optimizer": "sgd", "scheduler": None, "lr": 0.01, "steps": 30, "seed": 52},
    }
    assert report["parameters"][0] == ["0.weight", [8, 1]]
    assert [path.name for path in tmp_path.iterdir()] == ["run.safetensors"]


def test_a_recorded_run_needs_its_model_and_loss(tmp_path, recorded):
    path = tmp_path / "own.safetensors"
    recorded.save(path)
    assert recorded.buffers is not None
    again = lv.load_run(path, build(), loss_fn)
    require_same(recorded, again)
    np.testing.assert_array_equal(again.buffers, recorded.buffers)
    with pytest.raises(ValueError, match=r"does not hold the model, which is your own code\. Pass it"):
        lv.load_run(path)
    with pytest.raises(ValueError, match="does not hold the loss"):
        lv.load_run(path, build())
    with pytest.raises(ValueError, match=r"the file has \('0.weight', \(6, 1\)\) where `model` has .*\(7, 1\)"):
        lv.load_run(path, build(7), loss_fn)
    with pytest.raises(ValueError, match=r"`loss_fn` must be the loss of the run in .* Use the same data"):
        lv.load_run(path, build(), lambda m: 2 * loss_fn(m))


def test_a_run_with_a_custom_activation_needs_its_model(tmp_path):
    run = lv.train("x", steps=10, activation=nn.ELU, progress=False)
    run.save(tmp_path / "run.safetensors")
    with pytest.raises(ValueError, match="does not hold the model"):
        lv.load_run(tmp_path / "run.safetensors")
    require_same(run, lv.load_run(tmp_path / "run.safetensors", run.model))


def test_truncated_and_other_files_raise(tmp_path):
    run = lv.train("x", steps=10, progress=False)
    path = tmp_path / "run.safetensors"
    run.save(path)
    whole = path.read_bytes()
    for n_bytes in (0, 3, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:n_bytes])
        with pytest.raises(ValueError, match=r"cannot be read as a run: .*truncated or of another kind"):
            lv.load_run(path)
    path.write_text("dear diary")
    with pytest.raises(ValueError, match="cannot be read as a run"):
        lv.load_run(path)
    torch.save({"weights": torch.ones(3)}, path)
    with pytest.raises(ValueError, match="cannot be read as a run"):
        lv.load_run(path)
    safetensors.torch.save_file({"weight": torch.ones(3)}, path)
    with pytest.raises(ValueError, match=r"holds tensors, but no run\. Open checkpoints"):
        lv.load_run(path)
    write_archive(path, {"weights": np.ones((2, 2))}, {"task": None})
    with pytest.raises(ValueError, match="is not a complete run: 'loss' is missing"):
        lv.load_run(path)
    with pytest.raises(FileNotFoundError, match="There is no file"):
        lv.load_run(tmp_path / "nothing")
    write_archive(path, {"weights": np.ones((2, 2))}, {"version": 2})
    with pytest.raises(ValueError, match=r"version 2 of the format"):
        lv.load_run(path)


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    run = lv.train("x", steps=10, progress=False)
    path = tmp_path / "run.safetensors"
    run.save(path)

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        lv.train("x", steps=20, progress=False).save(path)
    assert len(lv.load_run(path)) == 11
    assert [path.name for path in tmp_path.iterdir()] == ["run.safetensors"]


def test_a_folder_of_a_recorder_opens_with_its_model_and_loss(tmp_path):
    model, folder = build(), tmp_path / "snapshots"
    recorder = lv.Recorder(model, loss_fn, folder=folder)
    train(model, lambda step: recorder.record() if step else None)
    run = recorder.run(progress=False)
    again = lv.load_run(folder, build(), loss_fn)
    require_same(run, again)
    np.testing.assert_array_equal(again.buffers[:], run.buffers[:])
    for missing, given in (("model", (None, loss_fn)), ("loss_fn", (build(), None))):
        with pytest.raises(
            ValueError, match=rf"`{missing}` must be passed with a folder, .* Call load_run\(path"
        ) as error:
            lv.load_run(folder, *given)
        assert error.value.argument == missing
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"must lead to checkpoints, none is in .*\. Give the folder of some files"):
        lv.load_run(tmp_path / "empty", build(), loss_fn)
    with pytest.raises(ValueError, match=r"0\.weight.*\(6, 1\).*\(7, 1\)"):
        lv.load_run(folder, build(7), loss_fn)


CHILD = """
import sys
from pathlib import Path
import numpy as np, torch
import loss_viz as lv
from loss_viz.runs import weights as module

module.BLOCK_BYTES = 2**23  # of one block; the rows take 160 MB
folder = Path(sys.argv[1])
model = torch.nn.Linear(1000, 1000)

def loss_fn(m):
    return m.weight[0, :9].square().mean()

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024

def anonymous():
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) * 1024

recorder = lv.Recorder(model, loss_fn, folder=folder / "snapshots")
for step in range(40):
    with torch.no_grad():
        model.weight[step] += 1
    recorder.record()
run = recorder.run(progress=False)
lv.Run(run.weights[:2], run.loss[:2], run.step[:2], run.objective).save(folder / "warm.safetensors")
before = peak()
run.save(folder / "run.safetensors")
grown = peak() - before
held = anonymous()
again = lv.load_run(folder / "run.safetensors", model, loss_fn)
print(grown, anonymous() - held, (folder / "run.safetensors").stat().st_size)
assert all(np.array_equal(again.weights[i], run.weights[i]) for i in range(len(run)))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells what memory a process takes")
def test_a_run_on_disk_is_saved_and_opened_in_little_memory(tmp_path):
    done = subprocess.run([sys.executable, "-c", CHILD, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    saving, opening, size = map(int, done.stdout.split())
    assert size > 160_000_000
    assert saving < 20_000_000
    assert opening < 40_000_000


@pytest.mark.parametrize("kind", ["safetensors", "pt", "ckpt"])
def test_checkpoints_of_a_plain_loop(tmp_path, kind):
    model = build()
    expected = []

    def keep(step):
        expected.append(loss_fn(model.eval()).item())
        path = tmp_path / f"epoch={step // 3}-step={step}.{kind}"
        if kind == "safetensors":
            safetensors.torch.save_file(model.state_dict(), path)
        else:
            whole = {f"net.{name}": value for name, value in model.state_dict().items()}
            torch.save(model.state_dict() if kind == "pt" else {"state_dict": whole, "global_step": step}, path)

    train(model, keep)
    fresh = build()
    before = {name: value.clone() for name, value in fresh.state_dict().items()}
    run = lv.Run.from_checkpoints(fresh, loss_fn, tmp_path, progress=False)
    assert run.step.tolist() == list(range(9))
    np.testing.assert_allclose(run.loss, expected, rtol=1e-5)  # with the statistics of each file
    assert all(torch.equal(before[name], value) for name, value in fresh.state_dict().items())
    land = lv.landscape(run, k=2, resolution=(4, 3), n_anchors=None, progress=False)
    assert lv.fidelity(land).median < 1.02
    (tmp_path / "else").mkdir()
    run.save(tmp_path / "else" / "run.safetensors")
    again = lv.load_run(tmp_path / "else" / "run.safetensors", build(), loss_fn)
    require_same(run, again)
    assert isinstance(again.weights, np.ndarray)
    np.testing.assert_array_equal(again.weights, run.weights[:])
    np.testing.assert_array_equal(again.buffers, run.buffers[:])
    (tmp_path / "else" / "run.safetensors").unlink()
    (tmp_path / "else").rmdir()
    require_same(run, lv.load_run(tmp_path, build(), loss_fn))
    with pytest.raises(ValueError, match=r"0\.weight.*\(6, 1\).*\(7, 1\)"):
        lv.Run.from_checkpoints(build(7), loss_fn, tmp_path)


def test_frozen_parameters_must_equal_those_of_all_checkpoints_or_move_with_them(tmp_path):
    model = build()
    train(model, lambda step: torch.save(model.state_dict(), tmp_path / f"step_{step}.pt"))
    moved = lv.Run.from_checkpoints(build(), loss_fn, tmp_path)
    other = build()
    other[0].requires_grad_(False)
    run = lv.Run.from_checkpoints(other, loss_fn, tmp_path)
    assert "0.weight" in [entry.name for entry in run.objective.buffer_layout.entries]
    np.testing.assert_allclose(run.loss, moved.loss, rtol=1e-12)
    for path in tmp_path.iterdir():
        torch.save(torch.load(path) | {"0.weight": torch.ones_like(model[0].weight)}, path)
    with pytest.raises(ValueError, match=r"'0\.weight' is frozen in `model`.* other values"):
        lv.Run.from_checkpoints(other, loss_fn, tmp_path)


def test_a_checkpoint_that_is_not_finite_ends_the_run(tmp_path):
    model = build()

    def keep(step):
        state = {name: value.clone() for name, value in model.state_dict().items()}
        if step == 5:
            state["3.bias"] += float("nan")
        torch.save(state, tmp_path / f"step_{step}.pt")

    train(model, keep)
    run = lv.Run.from_checkpoints(build(), loss_fn, tmp_path)
    assert run.step.tolist() == [0, 1, 2, 3, 4]
    assert run.note == "The loss is nan at step 5; the run is kept up to step 4."


def test_one_checkpoint_is_a_run_of_one_row(tmp_path):
    model = build()
    torch.save(model.state_dict(), tmp_path / "final.pt")
    run = lv.Run.from_checkpoints(build(), loss_fn, tmp_path)
    assert len(run) == 1
    assert np.isclose(run.loss[0], loss_fn(model.eval()).item(), rtol=1e-5)
    assert lv.landscape(run, axes="hessian", resolution=3, progress=False).loss.shape == (3, 3)
