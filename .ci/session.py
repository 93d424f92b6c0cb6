"""Measure the memory of a session on Binder: JupyterLab's server, and a kernel in which the panel is used.

    python session.py MEGABYTES

Fails if the peaks of the two exceed that limit together.
"""

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient

EXPLORER = Path(__file__).parent.parent / "notebooks/02_explore.ipynb"
MOVES = """
MOVED = {"k": 20, "sigma": 0.06, "axes": "hessian", "plane": "local", "beside": "flat", "target": "sin(3x)"}
for setting, value in MOVED.items():
    setattr(explorer, setting, value)
    assert explorer.wait(120), explorer.state
import os
os.getpid()
"""


def peak(pid: int) -> int:
    """Return the peak resident memory of a process in megabytes."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) // 1000


def measure_kernel() -> int:
    """Return the peak of a kernel that runs the notebook of the panel and then moves its controls."""
    book = nbformat.read(EXPLORER, as_version=4)
    book.cells.append(nbformat.v4.new_code_cell(MOVES))
    client = NotebookClient(book, timeout=600, kernel_name="python3")
    with client.setup_kernel():
        for index, cell in enumerate(book.cells):
            client.execute_cell(cell, index)
        [result] = (output for output in book.cells[-1].outputs if output.output_type == "execute_result")
        return peak(int(result.data["text/plain"]))


def measure_server() -> int:
    """Return the peak of JupyterLab's server when it first responds."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with TemporaryDirectory() as home:
        options = ["--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}", "--IdentityProvider.token="]
        folders = {f"JUPYTER_{name}_DIR": home for name in ("CONFIG", "DATA", "RUNTIME")}
        command = [sys.executable, "-m", "jupyterlab", *options, f"--ServerApp.root_dir={home}"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        server = subprocess.Popen(command, env=os.environ | folders, **quiet)
        try:
            for _ in range(120):
                time.sleep(0.5)
                try:
                    direct.open(f"http://127.0.0.1:{port}/lab", timeout=5).read()
                    return peak(server.pid)
                except OSError:
                    continue
            raise TimeoutError("JupyterLab did not respond within a minute")
        finally:
            server.terminate()
            server.wait(30)


if __name__ == "__main__":
    limit = int(sys.argv[1])
    kernel, server = measure_kernel(), measure_server()
    print(f"memory of a session: kernel {kernel} MB + server {server} MB = {kernel + server} MB (at most {limit} MB)")
    sys.exit(kernel + server > limit)
