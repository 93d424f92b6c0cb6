"""Jobs that are ended at random moments, and what must hold afterwards; `test_killed_jobs.py` starts it.

    python killed_jobs.py JOB FOLDER SEED

One process imports everything once and forks a child for each moment. The child is killed, or interrupted as by Ctrl-C,
some time after it has begun; then what it has left is looked at. The parent never trains: autograd does not outlive a
fork. The last line of the output counts what was done.
"""

import itertools
import json
import os
import random
import select
import shutil
import signal
import sys
import threading
import time
import warnings
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pkgutil import iter_modules

import numpy as np
import torch
from torch import nn

import loss_viz as lv
import loss_viz.export
from loss_viz.landscapes.loss_cache import HeightTable
from loss_viz.landscapes.provenance import read_settings

N_KILLS, N_INTERRUPTS = 5, 4
MORE = int(os.environ.get("LOSS_VIZ_FUZZ", "1"))
PATIENCE = 60.0  # seconds within which a child must begin, and end


def make_net():
    torch.manual_seed(0)
    x = torch.rand(64, 2)
    return nn.Sequential(
        nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1)
    ), lambda m: (m(x) - x[:, :1] * x[:, 1:]).pow(2).mean()


class Saving:
    """A run is saved over another one, again and again."""

    longest = 0.5

    def prepare(self, folder):
        for name, target in (("a", "x"), ("b", "x^2")):
            lv.train(target, steps=400, progress=False).save(folder / name)

    def work(self, folder, say):
        runs = [lv.load_run(folder / name) for name in "ab"]
        for run in itertools.cycle(runs):
            run.save(folder / "run.safetensors")
            say()

    def check(self, folder, n_said):
        path = folder / "run.safetensors"
        if path.exists():
            weights = lv.load_run(path).weights
            assert any(np.array_equal(weights, lv.load_run(folder / name).weights) for name in "ab")
        else:
            assert n_said == 0
        assert not [
            other
            for other in folder.glob("*")
            if other.name not in ("a", "b", "run.safetensors") and not other.name.startswith(".run.")
        ]


class Recording:
    """A training is recorded into a folder."""

    longest = 0.4
    n_steps = 400

    def train(self, folder, say):
        model, loss_fn = make_net()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        recorder = lv.Recorder(model, loss_fn, folder=folder)
        say()
        for _ in range(self.n_steps):
            optimizer.zero_grad()
            loss_fn(model).backward()
            optimizer.step()
            recorder.record()
            say()
        return recorder

    def prepare(self, folder):
        np.save(folder / "weights.npy", self.train(None, lambda: None).run(progress=False).weights)

    def work(self, folder, say):
        self.train(folder / str(time.time_ns()), say)

    def check(self, folder, n_said):
        newest = max((path for path in folder.iterdir() if path.is_dir()), default=None)
        if newest is None or n_said < 2:
            return
        run = lv.Run.from_checkpoints(*make_net(), newest, progress=False)
        assert len(run) in (n_said, n_said + 1), (len(run), n_said)
        assert np.array_equal(run.weights[:], np.load(folder / "weights.npy")[run.step])
        assert run.step.tolist() == list(range(len(run)))


class Sweeping:
    """A landscape keeps its losses in a folder, and is taken up again after each end; a whole one is begun anew."""

    longest = 1.5

    def draw(self, folder, cache):
        run = lv.load_run(folder / "run")
        return lv.landscape(run, resolution=(31, 27), n_anchors=50, cache=cache, progress=False)

    def prepare(self, folder):
        run = lv.train("sin(3x)", width=64, depth=2, n_points=256, steps=150, lr=1e-3, progress=False)
        run.save(folder / "run")
        np.save(folder / "loss.npy", self.draw(folder, folder / "reference").loss)

    def work(self, folder, say):
        expected = np.load(folder / "loss.npy")
        say()
        while (loss := self.draw(folder, folder / "cache").loss).shape == expected.shape:
            assert np.allclose(loss, expected, rtol=1e-5)
            shutil.rmtree(folder / "cache")
        raise KeyboardInterrupt  # was heard: the grid is a coarser one

    def check(self, folder, n_said):
        for path in sorted((folder / "cache").glob("*.losses")):
            n = 151 if path.stem.endswith("path") else 31 * 27
            mine, reference = (HeightTable(n, 1, place) for place in (path, folder / "reference" / path.name))
            assert reference.known.all()
            assert np.allclose(mine.heights[mine.known], reference.heights[mine.known], rtol=1e-5)


class Exporting:
    """A page is exported over another one, again and again."""

    longest = 1.0
    n_kills, n_interrupts = 4, 3
    name = "page.html"

    def export(self, land, path, step):
        lv.export_html(land, path, k=[3], sigma=["auto"], step=step, progress=False)

    def draw(self, folder):
        return lv.landscape(lv.load_run(folder / "run"), k=3, resolution=4, n_anchors=5, progress=False)

    def prepare(self, folder):
        lv.train("x", steps=30, progress=False).save(folder / "run")
        for step in (0, 30):
            self.export(self.draw(folder), folder / f"{step}-{self.name}", step)

    def work(self, folder, say):
        land = self.draw(folder)
        for step in itertools.cycle((0, 30)):
            self.export(land, folder / self.name, step)
            say()

    def check(self, folder, n_said):
        whole = [(folder / f"{step}-{self.name}").read_bytes() for step in (0, 30)]
        path = folder / self.name
        assert path.read_bytes() in whole if path.exists() else n_said == 0
        for other in folder.iterdir():
            mine = other.name == self.name or other.name in ("run", f"0-{self.name}", f"30-{self.name}")
            assert mine or other.name.startswith(f".{path.stem}."), other


class Filming(Exporting):
    """The same with a film, whose ball rolls from one end or rests at the other."""

    name = "film.gif"

    def export(self, land, path, step):
        lv.export_gif(land, path, n_frames=2, width=320, height=320, rotate=float(step), progress=False)


class Stopping:
    """What takes long is interrupted: it hands over what it has, or ends as an interrupt does, and nothing stays."""

    longest = 2.0
    n_kills, n_interrupts = 0, 10

    def prepare(self, folder):
        lv.train("x^2", steps=60, progress=False).save(folder / "run")
        self.export(folder)
        np.save(folder / "costs.npy", self.measure(self.draw(folder, 5)))

    def measure(self, land):
        return lv.sigma_curve(land, [0.03, 0.1], progress=False).error

    def export(self, folder):
        land = self.draw(folder, 5)
        lv.export_html(land, folder / "page.html", k=[1, 5], sigma=["auto", 0.1], progress=False)
        if find_spec("matplotlib"):
            lv.export_gif(land, folder / "film.gif", n_frames=6, width=320, height=320, progress=False)

    def train(self):
        run = lv.train("x^3", steps=400, width=32, progress=False)
        assert run.note or len(run) == 401
        assert np.allclose(run.objective(run.weights[[0, -1]]), run.loss[[0, -1]], rtol=1e-3)

    def draw(self, folder, size):
        run = lv.load_run(folder / "run")
        land = lv.landscape(run, k=5, resolution=(size, size + 2), n_anchors=size, progress=False)
        assert np.isfinite(land.loss).all()
        assert land.loss.shape == (len(land.y), len(land.x))
        return land

    def work(self, folder, say):
        rung = []

        def ring(*_):
            rung.append(time.monotonic())
            raise KeyboardInterrupt

        land, costs = self.draw(folder, 5), np.load(folder / "costs.npy")
        signal.signal(signal.SIGINT, ring)
        threads = set(threading.enumerate())
        calls = [
            self.train,
            lambda: self.draw(folder, 61),
            lambda: lv.fidelity(land, held_out=True, progress=False),
            lambda: self.export(folder),
            lambda: np.testing.assert_allclose(self.measure(land), costs),
        ]
        say()
        for call in itertools.cycle(calls):
            with suppress(KeyboardInterrupt), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                call()
            if rung:  # tqdm watches its bars in a thread of its own
                left = [thread for thread in threading.enumerate() if thread not in threads]
                assert all(thread.name == "tqdm_monitor" for thread in left), left
                raise KeyboardInterrupt

    def check(self, folder, n_said):
        assert {path.name for path in folder.iterdir()} <= {"run", "costs.npy", "page.html", "film.gif"}
        read_settings(folder / "page.html")
        assert (folder / "page.html").read_text("utf-8").rstrip().endswith("</html>")
        assert not (folder / "film.gif").exists() or (folder / "film.gif").read_bytes().endswith(b";")


JOBS = {"saving": Saving, "recording": Recording, "sweeping": Sweeping, "exporting": Exporting, "stopping": Stopping}
if find_spec("matplotlib"):
    JOBS["filming"] = Filming


def start(work, folder):
    """A child at work, and the pipe through which it says each step that it has completed."""
    listen, speak = os.pipe()
    child = os.fork()
    if child:
        os.close(speak)
        return child, listen
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            work(folder, lambda: os.write(speak, b"."))
        code = 0
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def wait(child, how=0):
    """How a child ended. One that goes on is interrupted again: Python drops what is raised in a destructor."""
    half, end = time.monotonic() + PATIENCE / 2, time.monotonic() + PATIENCE
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if how == signal.SIGINT and time.monotonic() > half:
            os.kill(child, how)
            half = end
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    raise AssertionError("a child did not end")


def end(job, folder, moment, how):
    """Let a child begin, end it at a moment, and count what it has said."""
    child, listen = start(job.work, folder)
    begun, *_ = select.select([listen], [], [], PATIENCE)
    assert begun, "a child did not begin"
    time.sleep(moment)
    with suppress(ProcessLookupError):
        os.kill(child, how)
    code = wait(child, how)
    assert code in (-how, 0, 130), code
    n_said = 0
    while part := os.read(listen, 65536):
        n_said += len(part)
    os.close(listen)
    return code, n_said


def main(name, folder, seed):
    for module in iter_modules(loss_viz.export.__path__):
        with suppress(ImportError):  # of matplotlib
            import_module(f"loss_viz.export.{module.name}")
    import_module("torch._dynamo")  # which torch imports when first needed, and whose own C++ aborts on a Ctrl-C then
    job, folder, rng = JOBS[name](), Path(folder), random.Random(int(seed))
    child, _ = start(lambda folder, _: job.prepare(folder), folder)
    assert wait(child) == 0
    counts = {"killed": 0, "interrupted": 0, "ended before": 0}
    n_kills, n_interrupts = getattr(job, "n_kills", N_KILLS), getattr(job, "n_interrupts", N_INTERRUPTS)
    for how in MORE * ([signal.SIGKILL] * n_kills + [signal.SIGINT] * n_interrupts):
        code, n_said = end(job, folder, rng.uniform(0, job.longest), how)
        job.check(folder, n_said)
        counts["ended before" if code == 0 else "killed" if how == signal.SIGKILL else "interrupted"] += 1
    print(json.dumps(counts))


if __name__ == "__main__":
    main(*sys.argv[1:])
