"""Formulas typed by strangers, as a panel that Voila shows to all takes them: nothing is carried out but arithmetic.

`hostile_formulas.py` lists what is typed; LOSS_VIZ_FUZZ=10 for ten times as many texts that are thrown together.
"""

import re
from collections import Counter

import numpy as np
import pytest
from child_process import run_driver
from hostile_formulas import list_cases

import loss_viz as lv
from loss_viz.tasks.formula import FUNCTIONS

MILLISECONDS = 50  # of work, on a slow machine, too: far more than is needed, and far less than a person notices


@pytest.fixture(scope="module")
def cases():
    """How each on the list ended, in a process of its own: here the shape checks of the tests would speak first."""
    heard, *found = run_driver("hostile_formulas.py", timeout=300)
    assert {"compile", "exec"} <= set(heard)  # who listens would have heard it
    return found


def test_every_target_is_refused_in_words_or_is_a_task_of_finite_numbers(cases, record_property):
    record_property("cases", len(cases))
    assert len(cases) >= 800
    assert min(Counter(case["kind"] for case in cases).values()) >= 8
    ends = {end["end"] for case in cases for end in case["ends"]}
    assert ends == {"refused", "taken"}, [
        case for case in cases if {end["end"] for end in case["ends"]} - {"refused", "taken"}
    ]
    for case in cases:
        _, built, trained = case["ends"]
        assert case["good"] in (None, built["end"] == "taken"), case
        assert built["end"] == trained["end"], case


def test_what_is_said_tells_how_to_repair_it_in_letters_that_can_be_seen(cases):
    for case in cases:
        for end in case["ends"]:
            if end["end"] == "refused":
                assert re.search(r"Type one|Pass one|Choose a formula", end["said"]), case
                assert end["said"].isprintable(), case


def test_none_takes_longer_than_a_blink(cases):
    slow = [case for case in cases if any(end["ms"] > MILLISECONDS for end in case["ends"])]
    assert slow == []


def test_nothing_is_imported_opened_or_run_and_only_arithmetic_is_parsed(cases):
    names = "|".join(["x", "group", *FUNCTIONS])
    words = re.compile(rf"{names}|[0-9.]+(?:[eE][+-]?[0-9]+)?|[-+/(),]|[*]{{1,2}}|")
    for case in cases:
        for event in case["events"]:
            kind, _, source = event.partition(" ")
            assert kind == "parse", case
            assert all(words.fullmatch(word) for word in source.split(" ")), case


def test_a_panel_keeps_its_picture_and_says_what_is_wrong_with_a_target(record_property):
    explorer = lv.Explorer("x^2", steps=3, resolution=4, k=1)
    assert explorer.wait(60.0)
    land, surface, target = explorer.landscape, explorer.surface_surface, explorer.target
    typed = [text for _, text, good in list_cases() if good is False and isinstance(text, str)]
    record_property("cases", len(typed))
    for text in typed:
        explorer.errors = {}
        explorer._on_message(None, {"kind": "set", "name": "target", "value": text}, [])
        message = explorer.errors["target"]
        assert re.search(r"The target .* must be finite|is not a formula in x", message), message
        assert explorer.target == target
    assert explorer.wait(60.0)
    assert explorer.landscape is land
    assert explorer.surface_surface is surface
    explorer.close()


@pytest.mark.slow
def test_a_panel_draws_every_target_that_it_takes_or_says_why_not(record_property):
    explorer = lv.Explorer("x^2", steps=3, resolution=4, k=1)
    assert explorer.wait(60.0)
    taken = sorted({text for kind, text, good in list_cases() if good and kind in ("powers", "undefined values")})
    record_property("cases", len(taken))
    for text in taken:
        explorer._on_message(None, {"kind": "set", "name": "target", "value": text}, [])
        assert explorer.target == text
        drawn = explorer.wait(60.0)
        if drawn:
            assert explorer.run.task.name == text
            assert np.isfinite(explorer.run.loss).all()
        else:
            message = explorer.errors["target"]
            assert "The loss on `target` must be finite before training" in message, (text, explorer.work)
    explorer.close()
