"""The worker: the latest request wins, and no thread is left behind."""

import threading
import time

import pytest

from loss_viz._progress import ProgressMeter
from loss_viz.panel.worker import Superseded, Worker


class BlockingWork:
    """Work that waits for `go`, and records how each request ended."""

    def __init__(self):
        self.started, self.go = threading.Event(), threading.Event()
        self.ended = []

    def work(self, request, check):
        if request == "bad":
            raise LookupError(request)
        self.started.set()
        assert self.go.wait(10)
        try:
            check()
        except Superseded:
            self.ended.append((request, "superseded"))
            raise
        self.ended.append((request, "done"))


def test_a_newer_request_supersedes_the_running_and_the_pending_one():
    blocking, failed = BlockingWork(), []
    worker = Worker(blocking.work, failed.append)
    worker.submit(1)
    assert blocking.started.wait(10)
    for request in (2, 3, 4):
        worker.submit(request)
    assert not worker.wait(0.05)
    blocking.go.set()
    assert worker.wait(10.0)
    assert blocking.ended == [(1, "superseded"), (4, "done")]
    assert failed == []


def test_the_worker_reports_an_error_and_continues():
    blocking, failed = BlockingWork(), []
    blocking.go.set()
    worker = Worker(blocking.work, failed.append)
    worker.submit("bad")
    assert worker.wait(10.0)
    assert [type(error) for error in failed] == [LookupError]
    worker.submit(1)
    assert worker.wait(10.0)
    assert blocking.ended == [(1, "done")]


def test_cancelled_work_is_superseded_and_a_closed_worker_accepts_none():
    blocking, failed = BlockingWork(), []
    worker = Worker(blocking.work, failed.append)
    worker.submit(1)
    assert blocking.started.wait(10)
    worker.cancel()
    blocking.go.set()
    assert worker.wait(10.0)
    worker.close()
    worker.submit(2)
    assert worker.wait(10.0)
    assert blocking.ended == [(1, "superseded")]
    assert not [thread for thread in threading.enumerate() if thread.name == "loss_viz"]


def test_the_meter_checks_at_every_update_and_reports_some():
    checks, reports = [], []
    meter = ProgressMeter(lambda: checks.append(1), reports.append)
    meter.total = 300
    for _ in range(30):
        meter.update(10)
        time.sleep(0.01)
    assert len(checks) == 30
    assert 1 <= len(reports) <= 4
    assert reports == sorted(reports)
    assert all(0 < share <= 1 for share in reports)

    def refuse():
        raise Superseded

    with pytest.raises(Superseded):
        ProgressMeter(refuse, reports.append).update(1)
