"""Run a driver of bad input in a process of its own, where no shape checks of the tests come first."""

import json
import os
import subprocess
import sys
from pathlib import Path

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def run_driver(name, *arguments, timeout=3000):
    """Return what `name`, a script in this folder, reports: one JSON value for each line that it prints."""
    command = [sys.executable, str(Path(__file__).with_name(name)), *map(str, arguments)]
    environment = os.environ | ONE_THREAD
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]
