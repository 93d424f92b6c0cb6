"""Memory of snapshots: reused while nobody else holds them, and never there twice."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import loss_viz as lv
from loss_viz.runs.row_memory import RowMemory

PEAK = """
from pathlib import Path
import torch
from torch import nn
import loss_viz as lv

def peak():
    status = Path("/proc/self/status").read_text()  # unlike ru_maxrss without what the parent process had
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])

torch.set_num_threads(1)
model = nn.Linear(500_000, 1)
x = torch.ones(1, 500_000)
optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)
lv.Run, lv.Recorder(model, lambda m: m(x).square().mean()).run_of
before = peak()
with lv.Recorder(model, lambda m: m(x).square().mean(), max_snapshots=200).attach(optimizer) as recorder:
    for _ in range(150):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
run = recorder.run(progress=False)
print((peak() - before) / run.weights.nbytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_snapshots_are_in_memory_once():
    """300 MB of snapshots cost 1.3 times their size at the peak; a second copy would make it twice."""
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    assert 0.7 < float(done.stdout) < 1.5  # memory that was free before is used first


def test_rows_are_reused_unless_they_are_lent():
    memory = RowMemory(3, torch.float32, n_rows=2)
    rows = [memory.keep() for _ in range(5)]
    memory.restart()
    assert all(np.shares_memory(memory.keep(), row) for row in rows)
    memory.lend()
    assert not any(np.shares_memory(memory.keep(), row) for row in rows)  # the rest of the last block
    memory.restart()
    assert not any(np.shares_memory(memory.keep(), row) for row in rows)


@pytest.mark.parametrize("n_before", [2, 7, 8, 15, 16, 40])
def test_a_run_stays_as_it_is_while_recording_goes_on(n_before):
    """Thinning moves the rows of the recorder, not those of runs and looks that were taken before."""
    model = nn.Linear(1, 1)
    recorder = lv.Recorder(model, lambda m: m(torch.ones(1, 1)).square().mean(), max_snapshots=8)

    def record(n):
        for _ in range(n):
            with torch.no_grad():
                model.weight.fill_(recorder.step + 1.0)
            recorder.record()

    record(n_before)
    run, look = recorder.run(progress=False), recorder.look()
    record(100)
    for step, weight in [*zip(run.step, run.weights[:, 0], strict=True)][1:]:
        assert weight == step
    for step, kept in [*look.snapshots.items()][1:]:
        assert kept.weights[0] == step
    last = recorder.run(progress=False)
    assert (last.weights[1:, 0] == last.step[1:]).all()
    assert last.step[-1] == n_before + 100
