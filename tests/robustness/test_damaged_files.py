"""Files from strangers: each is read as it is, or refused in words; none runs code, crashes or fills the memory.

`damaged_files.py` lists what is done to them; LOSS_VIZ_FUZZ=10 for ten times as many places at which files are damaged.
"""

import os
from collections import Counter
from pathlib import Path

import pytest
from child_process import run_driver

pytestmark = [
    pytest.mark.fuzz,
    pytest.mark.slow,
    pytest.mark.skipif(
        not (hasattr(os, "fork") and Path("/proc/self/clear_refs").exists()),
        reason="children are forked, and Linux tells what memory they take",
    ),
]

ROOM = 16 * 2**20  # beside twice the file: what Python and PyTorch take for names and for their work


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return run_driver("damaged_files.py", tmp_path_factory.mktemp("damaged"))


def test_every_file_is_read_or_refused_in_words(cases, record_property):
    record_property("cases", len(cases))
    assert len(cases) >= 600
    assert [case for case in cases if case["end"] not in ("loaded", "refused")] == []
    ends = Counter((case["kind"], case["end"]) for case in cases)
    for kind in {case["kind"] for case in cases}:  # of each kind some are harmless, and some are not
        assert ends[kind, "loaded"] >= 4, kind
        assert ends[kind, "refused"] >= 10, kind


def test_what_is_said_names_the_file_and_how_to_repair_it(cases):
    for case in cases:
        if case["end"] == "refused" and not case["said"].startswith("OSError"):
            head, _, repair = case["said"].partition(": ")[2].partition(". ")
            assert head, case
            assert repair or "; build" in case["said"], case


def test_no_file_runs_code(cases):
    assert [case for case in cases if case["ran"]] == []


def test_no_file_takes_more_memory_than_twice_its_size(cases):
    read = [case for case in cases if case["kind"] != "again"]  # which trains and draws
    assert [case for case in read if case["grown"] > 2 * case["size"] + ROOM] == []
