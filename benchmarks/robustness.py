"""Robustness tests, their numbers of cases and their results: `python -m benchmarks.robustness`.

Runs the suites, counts their cases, and writes the table to `.docs/robustness.md`. With LOSS_VIZ_FUZZ=10 there are ten
times as many cases, drawn from another seed. `--soak "2,000, all held"` adds the row of the soak test of the panel,
with the numbers that `LOSS_VIZ_SOAK=2000 pytest -s tests/panel/test_soak.py` prints at its end.
"""

import argparse
import base64
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from .report import insert, table

PAGE = Path(".docs/robustness.md")
MARKS = "<!-- robustness: written by python -m benchmarks.robustness -->\n", "<!-- end of robustness -->\n"
SOAK = "random actions in the panel, in a real browser, for up to a quarter of an hour"
SOAK_HOLDS = "no error; memory, threads and observers do not grow; as fast at the end; same picture as a fresh panel"


class Part(NamedTuple):
    """One row: what is tried, in which suite, and what must hold."""

    what: str
    suite: str
    holds: str
    only: str = ""


WRONG = "test_every_wrong_argument_is_refused_in_words"
PARTS = [
    Part(
        "runs, losses, grids and kernels of any kind",
        "robustness/test_properties.py",
        "every number equals that of slow, obvious code, or is within the stated error",
        f"not {WRONG}",
    ),
    Part(
        "wrong arguments to every public function",
        "robustness/test_properties.py",
        "rejected with the name of the argument and the fix",
        WRONG,
    ),
    Part(
        "hostile formulas",
        "robustness/test_hostile_formulas.py",
        "rejected with a message within 50 ms, or finite; nothing is executed, imported or opened",
    ),
    Part(
        "damaged and hostile runs, checkpoints and exported files",
        "robustness/test_damaged_files.py",
        "read correctly or rejected with a message; no code runs, no crash, at most twice the file's size in memory",
    ),
    Part(
        "trainings that go wrong, in every view of a run",
        "robustness/test_failed_trainings.py",
        "a picture, or a message that says why there is none",
    ),
    Part(
        "jobs killed or interrupted at random moments; a full disk; a read-only folder",
        "robustness/test_killed_jobs.py",
        "every file is the old or the new one, complete; finished work is resumed",
    ),
    Part(
        "user callables that raise",
        "robustness/test_failing_callables.py",
        "their own error is raised; nothing half-done is kept",
    ),
]


class Count(NamedTuple):
    """Number of cases, and the tests that failed."""

    cases: int
    failed: tuple[str, ...]


def run_suite(part: Part, report: Path) -> Count:
    """Run a suite in a separate process and count its cases, those of slow tests included."""
    pytest = [sys.executable, "-m", "pytest", "-q", "-m", "", "-o", "junit_family=xunit1", f"--junitxml={report}"]
    pytest += ["-n", "0"]  # processes of pytest-xdist lose the numbers of Hypothesis
    selected = ["-k", part.only] if part.only else []
    ended = subprocess.run([*pytest, f"tests/{part.suite}", *selected], check=False)
    if ended.returncode not in (0, 1):
        raise RuntimeError(f"`{part.suite}` could not be run: pytest exited with {ended.returncode}.")
    return count_cases(report)


def count_cases(report: Path) -> Count:
    """Count the cases in a JUnit report: the property "cases" of a test, its Hypothesis examples, or one."""
    root = ElementTree.parse(report).getroot()
    examples = dict(map(_read_examples, root.iterfind(".//testsuite/properties/property")))
    n_cases, failed = 0, []
    for test in root.iter("testcase"):
        if test.find("skipped") is not None:
            continue
        if test.find("failure") is not None or test.find("error") is not None:
            failed.append(test.get("name", ""))
        recorded = [int(one.get("value", 0)) for one in test.iter("property") if one.get("name") == "cases"]
        n_cases += sum(recorded) or examples.get(test.get("name", "")) or 1
    return Count(n_cases, tuple(failed))


def _read_examples(entry: ElementTree.Element) -> tuple[str, int]:
    """Return the name of a test and its number of Hypothesis examples, read from the plug-in's statistics."""
    name = entry.get("name", "")
    statistics = base64.b64decode(entry.get("value", "")).decode() if "hypothesis" in name else ""
    return name.split("::")[-1], sum(map(int, re.findall(r"(\d+) (?:passing|failing)", statistics)))


def write_rows(parts: Sequence[Part], counts: Sequence[Count], soak: str) -> str:
    """Return the table: what was tried, how often, what must hold, and whether it did."""
    rows = [
        [part.what, f"{count.cases:,}", part.holds, "all held" if not count.failed else f"not in {count.failed[0]}"]
        for part, count in zip(parts, counts, strict=True)
    ]
    n_actions, _, result = soak.partition(", ")
    rows.append([SOAK, n_actions or "–", SOAK_HOLDS, result or "not run here"])
    return table(["what was tried", "how many", "what must hold", ""], rows) + "\n"


def main() -> None:
    """Run, count and write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.robustness",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--soak", default="", metavar="TEXT", help="number of actions, a comma, and the result")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts = [run_suite(part, Path(folder) / f"{i}.xml") for i, part in enumerate(PARTS)]
    text = write_rows(PARTS, counts, options.soak)
    print(text)
    insert(text, PAGE, MARKS)


if __name__ == "__main__":
    main()
