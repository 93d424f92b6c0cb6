"""The table of what was tried counts what was run, and says what did not hold."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from benchmarks.robustness import MARKS, PAGE, PARTS, SOAK, Count, count_cases, write_rows

ROOT = Path(__file__).parents[2]
SUITE = """
import pytest
from hypothesis import given, settings, strategies

@settings(max_examples=7, derandomize=True, database=None)
@given(strategies.integers())
def test_of_seven(number):
    assert number == number

def test_of_five(record_property):
    record_property("cases", 5)

def test_of_one():
    assert False

@pytest.mark.skip
def test_of_none():
    pass
"""


def test_cases_are_counted_as_they_were_run(tmp_path):
    (tmp_path / "test_suite.py").write_text(SUITE, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "junit_family=xunit1"]
    subprocess.run([*command, "--junitxml=report.xml", "test_suite.py"], cwd=tmp_path, capture_output=True, check=False)
    assert count_cases(tmp_path / "report.xml") == Count(13, ("test_of_one",))


def test_the_table_stands_on_its_page():
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    between = text.partition(MARKS[0])[2].partition(MARKS[1])[0]
    for what in [*(part.what for part in PARTS), SOAK]:
        assert f"| {what} |" in between, what
    for part in PARTS:
        assert (ROOT / "tests" / part.suite).exists()


def test_what_did_not_hold_is_named():
    counts = [Count(1000, ())] * (len(PARTS) - 1) + [Count(3, ("test_it", "test_other"))]
    text = write_rows(PARTS, counts, "2,000, nothing grew")
    assert text.count("| 1,000 |") == len(PARTS) - 1
    assert "not in test_it" in text
    assert "nothing grew" in text


@pytest.mark.parametrize("name", ["robustness", "scaling"])
def test_tables_are_written_between_their_marks(name, tmp_path):
    module = import_module(f"benchmarks.{name}")
    start, end = module.MARKS
    page = tmp_path / "page.md"
    page.write_text(f"before\n{start}old\n{end}after\n", encoding="utf-8")
    module.insert("new\n", page, module.MARKS)
    assert page.read_text(encoding="utf-8") == f"before\n{start}new\n{end}after\n"
    with pytest.raises(ValueError, match="must contain the lines"):
        module.insert("new\n", ROOT / "LICENSE", module.MARKS)
