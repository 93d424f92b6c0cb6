"""The worker: the latest request wins, and nothing else is left behind."""

import threading
import time

import pytest

from loss_viz._progress import ProgressMeter
from loss_viz.panel.worker import Superseded, Worker


class Recorder:
    """Work that can be held up, and that notes how each request ended."""

    def __init__(self):
        self.begun, self.go = threading.Event(), threading.Event()
        self.ended = []

    def work(self, request, check):
        if request == "bad":
            raise LookupError(request)
        self.begun.set()
        assert self.go.wait(10)
        try:
            check()
        except Superseded:
            self.ended.append((request, "stale"))
            raise
        self.ended.append((request, "done"))


def test_what_was_overtaken_is_stale_and_what_lies_between_never_begins():
    recorder, failed = Recorder(), []
    worker = Worker(recorder.work, failed.append)
    worker.submit(1)
    assert recorder.begun.wait(10)
    for request in (2, 3, 4):
        worker.submit(request)
    assert not worker.wait(0.05)
    recorder.go.set()
    assert worker.wait(10.0)
    assert recorder.ended == [(1, "stale"), (4, "done")]
    assert failed == []


def test_a_failure_is_told_and_the_worker_goes_on():
    recorder, failed = Recorder(), []
    recorder.go.set()
    worker = Worker(recorder.work, failed.append)
    worker.submit("bad")
    assert worker.wait(10.0)
    assert [type(error) for error in failed] == [LookupError]
    worker.submit(1)
    assert worker.wait(10.0)
    assert recorder.ended == [(1, "done")]


def test_cancelled_work_is_stale_and_a_closed_worker_takes_none():
    recorder, failed = Recorder(), []
    worker = Worker(recorder.work, failed.append)
    worker.submit(1)
    assert recorder.begun.wait(10)
    worker.cancel()
    recorder.go.set()
    assert worker.wait(10.0)
    worker.close()
    worker.submit(2)
    assert worker.wait(10.0)
    assert recorder.ended == [(1, "stale")]
    assert not [thread for thread in threading.enumerate() if thread.name == "loss_viz"]


def test_the_meter_reports_now_and_then_and_checks_always():
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
