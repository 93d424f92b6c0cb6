"""Ends that nobody planned: what was complete before is still there, and nothing half-written is taken for whole."""

import os
import subprocess
import sys
import textwrap
from importlib.util import find_spec

import pytest
import torch
from child_process import ONE_THREAD, run_driver

import loss_viz as lv

AS_ANYBODY = (
    "setpriv",
    "--bounding-set=-all",
    "--inh-caps=-all",
)  # root may write anywhere; without its rights it may not
JOBS = {"saving": 9, "recording": 9, "sweeping": 9, "exporting": 7, "stopping": 10}  # and how often each is ended
if find_spec("matplotlib"):
    JOBS["filming"] = 7

pytestmark = [
    pytest.mark.fuzz,
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked"),
]


@pytest.mark.parametrize("job", JOBS)
def test_a_job_that_is_ended_at_a_random_moment_leaves_what_was_complete(job, tmp_path, record_property):
    """By kills and by interrupts; LOSS_VIZ_SEED for other moments, LOSS_VIZ_FUZZ=10 for ten times as many."""
    seed = os.environ.get("LOSS_VIZ_SEED", "0")
    *_, counts = run_driver("killed_jobs.py", job, tmp_path, seed, timeout=5000)
    record_property("cases", sum(counts.values()))
    assert sum(counts.values()) == JOBS[job] * int(os.environ.get("LOSS_VIZ_FUZZ", "1"))
    assert counts["killed"] + counts["interrupted"] >= 4, counts


def run_script(script, *arguments, command=()):
    command = [*command, sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    environment = os.environ | ONE_THREAD
    process = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment, check=False)
    assert process.returncode == 0, process.stderr[-3000:]
    return process.stdout.splitlines()


BEGIN = """
    import sys, warnings
    from pathlib import Path

    import numpy as np, torch
    import loss_viz as lv

    folder = Path(sys.argv[1])

    def tell(work):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                work()
            except Exception as error:
                print(type(error).__name__, "|", *str(error).split())
                return
        print(*[f"{one.category.__name__} | {one.message}" for one in caught] or ["fine"])

    run = lv.train("x^2", steps=120, progress=False)
    short = lv.train("x", steps=10, progress=False)
    short.save(folder / "run.safetensors")

    def record(folder):
        model = torch.nn.Sequential(torch.nn.Linear(20, 100), torch.nn.Tanh(), torch.nn.Linear(100, 1))
        x = torch.rand(30, 20)
        recorder = lv.Recorder(model, lambda m: m(x).square().mean(), folder=folder)
        for _ in range(5):
            with torch.no_grad():
                for weight in model.parameters():
                    weight.mul_(0.9)
            recorder.record()
        print("the training has ended")
        return recorder
"""


def test_a_full_disk_takes_nothing_that_was_there(tmp_path):
    """The operating system refuses to write more than so many bytes to a file."""
    script = f"""{BEGIN}
    import resource
    recorder = record(folder / "snapshots")
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    tell(lambda: run.save(folder / "run.safetensors"))
    assert np.array_equal(lv.load_run(folder / "run.safetensors").weights, short.weights)
    tell(recorder.record)
    tell(lambda: record(folder / "others"))
    kept = recorder.run(progress=False)
    print(len(kept), sorted(path.suffix for path in folder.iterdir()))
    whole = lv.landscape(run, resolution=(25, 19), progress=False)
    lands = []
    tell(lambda: lands.append(lv.landscape(run, resolution=(25, 19), cache=folder / "losses", progress=False)))
    assert np.array_equal(lands[0].loss, whole.loss) and np.array_equal(lands[0].path_height, whole.path_height)
    """
    lines = run_script(script, tmp_path)
    assert lines[0] == "the training has ended"
    assert lines[1].startswith("OSError | [Errno 27] File too large")
    assert "could not go on at step 6" in lines[2]
    assert "RuntimeWarning" in lines[2]
    assert lines[3].startswith("OSError | [Errno 27]")  # nothing at all can be recorded: said before the training
    assert lines[4] == "6 ['', '', '.safetensors']"
    assert lines[5].startswith("RuntimeWarning | Losses are no longer written to ")


def test_a_folder_that_cannot_be_written_to_is_said_in_words(tmp_path):
    script = f"""{BEGIN}
    record(folder / "earlier")
    folder.chmod(0o555)
    tell(lambda: run.save(folder / "run.safetensors"))
    tell(lambda: run.save(folder / "missing" / "run.safetensors"))
    tell(lambda: record(folder / "snapshots"))
    tell(lambda: lv.landscape(run, resolution=5, cache=folder / "losses", progress=False))
    assert np.array_equal(lv.load_run(folder / "run.safetensors").weights, short.weights)
    """
    lines = run_script(script, tmp_path, command=() if os.geteuid() else AS_ANYBODY)[1:]
    assert lines[0].startswith("PermissionError | `path` must be in a writable folder")
    assert lines[1].startswith("FileNotFoundError | `path` must be in a folder")
    assert lines[2].startswith("PermissionError | [Errno 13]")
    assert lines[3].startswith("ValueError | `cache` must be a folder to keep losses in")
    tmp_path.chmod(0o755)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_gpu_that_is_missing_is_said_in_words():
    model = torch.nn.Linear(2, 1)
    for start in (lv.Recorder, lv.Objective):
        with pytest.raises(ValueError, match="`device` must be available to PyTorch, got 'cuda'"):
            start(model, lambda m: m.weight.square().mean(), device="cuda")
