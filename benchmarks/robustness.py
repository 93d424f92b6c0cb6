"""What was tried to break loss_viz, how often, and what held: `python -m benchmarks.robustness`.

Runs the suites that try, counts their cases, and writes the table into `.docs/robustness.md`. With LOSS_VIZ_FUZZ=10
there are ten times as many cases, other ones at random. `--soak "2,000, all held"` adds the row of the long walk
through the panel, from the figures with which `LOSS_VIZ_SOAK=2000 pytest -s tests/panel/test_soak.py` ends.
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

from .readme import insert
from .report import table

PAGE = Path(".docs/robustness.md")
MARKS = "<!-- robustness: written by python -m benchmarks.robustness -->\n", "<!-- end of robustness -->\n"
SOAK = "random actions in the panel, in a real browser, for up to a quarter of an hour"
SOAK_HOLDS = "no error; memory, threads and observers do not grow; as fast at the end; same picture as a fresh panel"


class Part(NamedTuple):
    """One row: what is tried, where, and what must hold."""

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
    """How many cases there were, and the tests in which one did not hold."""

    cases: int
    failed: tuple[str, ...]


def run_suite(part: Part, report: Path) -> Count:
    """Run a suite in a process of its own, and count."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-o",
        "junit_family=xunit1",
        f"--junitxml={report}",
        f"tests/{part.suite}",
    ]
    ended = subprocess.run([*command, *(["-k", part.only] if part.only else [])], check=False)
    if ended.returncode not in (0, 1):
        raise RuntimeError(f"`{part.suite}` could not be run, pytest ended with {ended.returncode}.")
    return count_cases(report)


def count_cases(report: Path) -> Count:
    """The cases in a report of pytest: examples of Hypothesis, what a test says of itself, or else one each."""
    root = ElementTree.parse(report).getroot()
    examples = dict(map(_read_examples, root.iterfind(".//testsuite/properties/property")))
    n_cases, failed = 0, []
    for test in root.iter("testcase"):
        if test.find("skipped") is not None:
            continue
        if test.find("failure") is not None or test.find("error") is not None:
            failed.append(test.get("name", ""))
        told = [int(one.get("value", 0)) for one in test.iter("property") if one.get("name") == "cases"]
        n_cases += sum(told) or examples.get(test.get("name", "")) or 1
    return Count(n_cases, tuple(failed))


def _read_examples(told: ElementTree.Element) -> tuple[str, int]:
    """The name of a test, and how many examples Hypothesis ran in it; the plug-in tells so in its own words."""
    test = told.get("name", "").split("::")[-1]
    words = base64.b64decode(told.get("value", "")).decode() if "hypothesis" in told.get("name", "") else ""
    return test, sum(map(int, re.findall(r"(\d+) (?:passing|failing)", words)))


def write_rows(parts: Sequence[Part], counts: Sequence[Count], soak: str) -> str:
    """The table: what, how many, what must hold, and whether it did."""
    rows = [
        [part.what, f"{count.cases:,}", part.holds, "all held" if not count.failed else f"not in {count.failed[0]}"]
        for part, count in zip(parts, counts, strict=True)
    ]
    tried, _, held = soak.partition(", ")
    rows.append([SOAK, tried or "–", SOAK_HOLDS, held or "not run here"])
    return table(["what was tried", "how many", "what must hold", ""], rows) + "\n"


def main() -> None:
    """Run, count and write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.robustness",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--soak", default="", metavar="WORDS", help="how many actions, a comma, and what held")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts = [run_suite(part, Path(folder) / f"{i}.xml") for i, part in enumerate(PARTS)]
    text = write_rows(PARTS, counts, chosen.soak)
    print(text)
    insert(text, PAGE, MARKS)


if __name__ == "__main__":
    main()
