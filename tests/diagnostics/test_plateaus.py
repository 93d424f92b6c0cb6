"""Plateaus of curves that are known, of the post's curves as a person marks them, and of the project's own runs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import loss_viz as lv

# Points (step loss) read off the loss figures of Liu's post "Seeing sticky plateau" (2026), thinned to those that
# carry the shape: straight lines between them, in log loss, are within 0.03 decades of all that was read off.
POST = {
    "x": """
        0 .378 1 .357 5 .256 7 .236 8 .217 10 .182 12 .165 13 .149 14 .134 15 .119 16 .106 19 .0807 20 .0694 21
        .059 22 .0498 24 .0415 25 .0342 26 .0278 28 .0182 31 .0121 32 .0102 33 .00905 34 .00844 36 .00827 37
        .00846 38 .00886 40 .00987 42 .0103 43 .0107 44 .0109 45 .011 47 .011 48 .0108 49 .0105 50 .0101 54
        .00871 56 .00789 58 .00755 59 .00727 60 .00703 61 .00687 62 .00673 64 .00664 67 .00654 71 .00649 74
        .00638 78 .0062 83 .00592 84 .00587 86 .00574 93 .0055 129 .00443 145 .00406 150 .00397 153 .00388 166
        .00364 170 .00356 194 .00317 197 .00315 201 .00308""",
    "x^2": """
        0 .168 1 .141 4 .105 7 .0964 10 .0997 13 .1 19 .0918 22 .0908 28 .0907 34 .0879 40 .0869 47 .0853 59
        .0812 65 .0784 71 .0742 74 .0716 77 .0684 80 .0648 83 .0603 86 .055 89 .049 92 .0424 96 .0353 99 .028
        102 .0209 105 .0143 108 .00887 111 .00474 114 .00218 117 .00102 120 .00084 123 .00116 126 .00153 129
        .00168 132 .00157 135 .00131 141 .000835 144 .000721 148 .000681 151 .00068 154 .000685 157 .000684 160
        .000669 169 .000593 175 .00056 184 .000526 206 .000451 230 .000383 255 .000331 270 .000305 291 .000275
        316 .000247 340 .000227 359 .000215 386 .000201 401 .000195 404 .000193 426 .000187 429 .000185 460
        .000178 501 .00017""",
    "x^3": """
        0 .171 3 .105 15 .0357 28 .028 40 .0273 52 .0262 88 .026 113 .0257 235 .0254 296 .0251 602 .0248 712
        .0246 858 .0245 944 .0244 968 .0243 980 .0242 1005 .0238 1017 .0234 1029 .0227 1041 .0212 1053 .0185
        1066 .0143 1078 .00916 1090 .00478 1102 .00258 1114 .00198 1127 .00169 1151 .00117 1176 .00083 1188
        .000708 1200 .000608 1212 .000528 1224 .000465 1237 .000413 1249 .000372 1261 .000338 1273 .000311 1286
        .00029 1298 .000272 1310 .000257 1322 .000245 1347 .000226 1359 .000219 1371 .000211 1395 .000201 1420
        .000192 1444 .000184 1469 .000177 1505 .000167 1530 .000162 1566 .000152 1591 .000147 1628 .000139 1640
        .000137 1652 .000134 1688 .000126 1713 .000122 1774 .00011 1823 .000101 1908 8.63e-05 1970 7.66e-05 2000
        7.19e-05""",
    "sin(3x)": """
        0 .582 3 .509 15 .318 27 .212 38 .188 50 .189 74 .183 157 .179 358 .172 418 .168 524 .157 607 .145 643
        .139 678 .129 702 .118 714 .111 726 .102 738 .0912 750 .0784 762 .064 773 .0494 785 .0363 797 .0253 809
        .0161 821 .00919 833 .00505 844 .00326 856 .00263 880 .00197 904 .00153 927 .00122 951 .001 987 .000774
        998 .000746 1010 .000674 1022 .000628 1058 .000532 1093 .000466 1141 .000411 1176 .000386 1188 .000403
        1200 .000377 1212 .000365 1247 .000347 1378 .000305 1390 .000311 1402 .00031 1413 .0003 1437 .00029 1567
        .000258 1579 .000259 1591 .000286 1603 .000258 1615 .000249 1804 .000207 1816 .000205 1828 .000272 1840
        .000211 1852 .000202 1876 .000193 2000 .00017""",
}
# Where a person puts the ends of the shelf, and its height: marked on plots of the curves above in log scale, before
# the finder was tuned. From the first dip to the elbow; the swing of x and the slow tails are no shelves.
MARKS = {"x": None, "x^2": (6, 77, 0.087), "x^3": (25, 1025, 0.0249), "sin(3x)": (36, 680, 0.173)}
# The losses of the best constant for x^2 and of the best lines, on the 100 points of the tasks.
LEVELS = {"x^2": 0.09249, "x^3": 0.02424, "sin(3x)": 0.17118}

always_the_same = settings(max_examples=40, deadline=None, derandomize=True)


@pytest.fixture(scope="session")
def with_loss(run):
    def make(loss, step=None):
        weights = np.resize(run.weights, (len(loss), run.weights.shape[1]))
        return lv.Run(weights, loss, np.arange(len(loss)) if step is None else step, run.objective)

    return make


@pytest.fixture(scope="session")
def plateaus_of(with_loss):
    return lambda loss, step=None: lv.find_plateaus(with_loss(loss, step))


def staircase(*pieces):
    return np.concatenate([np.geomspace(start, end, n, endpoint=False) for start, end, n in pieces])


def assert_found(found, marks, level=0.1):
    """As many as were marked, ends within a tenth of their length."""
    assert len(found) == len(marks)
    for plateau, (start, end, height) in zip(found, marks, strict=True):
        assert plateau.start == pytest.approx(start, abs=0.1 * (end - start))
        assert plateau.end == pytest.approx(end, abs=0.1 * (end - start))
        assert plateau.level == pytest.approx(height, rel=level)


@pytest.mark.parametrize("target", MARKS)
def test_the_curves_of_the_post_as_a_person_marks_them(target, plateaus_of):
    step, loss = np.array(POST[target].split(), dtype=float).reshape(-1, 2).T
    every = np.arange(step[-1] + 1)
    marks = [MARKS[target]] if MARKS[target] else []
    assert_found(plateaus_of(10 ** np.interp(every, step, np.log10(loss))), marks, level=0.03)
    assert_found(plateaus_of(loss, step.astype(int)), marks, level=0.03)


def test_the_runs_of_the_post(post_runs):
    """The ends are those of the dwell: from 1.25 to 0.7 times the loss of the best constant or line."""
    assert lv.find_plateaus(post_runs["x"]) == []
    for target, level in LEVELS.items():
        loss = post_runs[target].loss
        dwell = int(np.argmax(loss <= 1.25 * level)), int(np.argmax(loss < 0.7 * level))
        assert_found(lv.find_plateaus(post_runs[target]), [(*dwell, level)])


THINNED = {
    "every fifth step": np.arange(0, 2001, 5),
    "a hundred rows": np.arange(0, 2001, 20),
    "200 rows, the later the fewer": np.unique(np.geomspace(1, 2000, 200).astype(int)),
}


@pytest.mark.parametrize("steps", THINNED.values(), ids=THINNED)
def test_a_thinned_recording_shows_the_same(steps, post_runs, plateaus_of):
    for target in ("x", "x^3", "sin(3x)"):
        run = post_runs[target]
        rows = steps[steps < len(run)]
        marks = [(plateau.start, plateau.end, plateau.level) for plateau in lv.find_plateaus(run)]
        assert_found(plateaus_of(run.loss[rows], run.step[rows]), marks, level=0.01)


@pytest.mark.parametrize("seed", range(5))
def test_swings_of_adam_are_no_plateaus(seed):
    assert lv.find_plateaus(lv.train("x", seed=seed, progress=False)) == []


def test_a_long_swing_around_a_level_is_none(plateaus_of):
    loss = staircase((1, 0.1, 100), (0.1, 0.1, 300), (0.1, 1e-3, 100))
    swing = np.sin(np.arange(300) * np.pi / 60)
    for height, n in ((0.05, 1), (0.4, 0)):
        swinging = loss.copy()
        swinging[100:400] *= 10 ** (height * swing)
        assert len(plateaus_of(swinging)) == n


def test_two_steps_of_a_staircase_and_not_its_floor(plateaus_of):
    loss = staircase((1, 0.1, 100), (0.1, 0.099, 300), (0.099, 0.01, 100), (0.01, 0.0099, 200), (0.0099, 1e-4, 100))
    loss = np.append(loss, np.full(200, 1e-4))
    spiky = loss.copy()
    spiky[[150, 250, 600]] *= 30
    for curve in (loss, spiky):
        assert_found(plateaus_of(curve), [(100, 400, 0.0995), (500, 700, 0.00995)], level=0.01)


def test_sudden_drops_are_placed_to_the_step(plateaus_of):
    found = plateaus_of(np.repeat([1, 0.1, 0.001], [300, 400, 301]))
    assert [(plateau.start, plateau.end) for plateau in found] == [(0, 299), (300, 699)]
    assert [plateau.level for plateau in found] == pytest.approx([1, 0.1])


def test_two_shelves_are_two_if_they_differ_by_more_than_their_noise(plateaus_of):
    loss = np.repeat([1, 0.85, 0.001], [300, 400, 301])
    assert_found(plateaus_of(loss), [(0, 299, 1), (300, 699, 0.85)], level=1e-9)
    random = np.random.default_rng(0)
    assert_found(plateaus_of(loss * np.exp(random.normal(0, 0.02, 1001))), [(0, 299, 1), (300, 699, 0.85)], level=0.01)
    assert_found(plateaus_of(loss * np.exp(random.normal(0, 0.15, 1001))), [(0, 699, 0.9)])
    small = np.repeat([1, 0.995, 0.001], [300, 400, 301])
    assert_found(plateaus_of(small), [(0, 699, 0.995)], level=1e-9)


LIU = [0, 250, 500, 1000, 1500, 2000, 3000], [10, 4.83, 4.78, 3.71, 3.69, 1.02, 1.005]  # steps and perplexities


@pytest.mark.parametrize("noise", [0, 0.01, 0.02])
def test_the_two_plateaus_of_an_attention_layer(noise, plateaus_of):
    """Liu, "Sparse attention 1" (2026): half the vocabulary of ten, then 3.7. The fall between is as long as both."""
    steps = np.arange(3001)
    loss = np.interp(steps, LIU[0], np.log(LIU[1])) * np.exp(np.random.default_rng(1).normal(0, noise, 3001))
    found = plateaus_of(loss)
    ends = [end for plateau in found for end in (plateau.start, plateau.end)]
    np.testing.assert_allclose(ends, [250, 500, 1000, 1500], atol=60)
    np.testing.assert_allclose([plateau.level for plateau in found], np.log([4.8, 3.7]), rtol=0.02)


@pytest.mark.parametrize("steps", [2_000, 4_000, 8_000, 16_000])
def test_an_early_plateau_is_found_however_long_the_run_goes_on(steps, post_runs, plateaus_of):
    run = post_runs["x^3"]
    [expected] = lv.find_plateaus(run)
    tail = run.loss[-1] * (np.arange(2001, steps + 1) / 2000) ** -1.0
    assert_found(plateaus_of(np.append(run.loss, tail)), [(expected.start, expected.end, expected.level)], level=0.01)


@pytest.mark.slow
def test_the_plateau_of_a_run_of_8_000_steps(post_runs):
    [expected] = lv.find_plateaus(post_runs["x^3"])
    found, *later = lv.find_plateaus(lv.train("x^3", steps=8_000, progress=False))
    assert_found([found], [(expected.start, expected.end, expected.level)], level=0.01)
    assert all(one.level < expected.level / 50 for one in later)  # near the end, rounding decides whether it waits


@pytest.mark.parametrize("target", ["x^3", "sin(3x)"])
def test_a_plateau_that_lasts_to_the_end_is_one(target, post_runs, plateaus_of):
    run = post_runs[target]
    [whole] = lv.find_plateaus(run)
    [cut] = plateaus_of(run.loss[: (whole.start + whole.end) // 2])
    assert cut.start == pytest.approx(whole.start, abs=0.1 * (whole.end - whole.start))
    assert cut.end == (whole.start + whole.end) // 2 - 1
    assert cut.level == pytest.approx(whole.level, rel=0.05)


def test_a_plateau_that_is_never_left_lasts_for_half_of_the_run(plateaus_of):
    loss = staircase((1, 0.01, 100), (0.01, 0.0099, 150))
    assert_found(plateaus_of(loss), [(100, 249, 0.00995)])
    noisy = loss * np.exp(np.random.default_rng(0).normal(0, 0.01, 250))
    assert_found(plateaus_of(noisy), [(100, 249, 0.00995)])
    assert plateaus_of(staircase((1, 0.01, 200), (0.01, 0.0099, 150))) == []
    assert_found(plateaus_of(np.full(100, 3.0)), [(0, 99, 3)])


@pytest.mark.parametrize("noise", [0, 0.02, 0.05, 0.15])
@pytest.mark.parametrize("power", [0.1, 0.2, 0.5, 1, 2])
def test_a_slow_tail_is_no_plateau(power, noise, plateaus_of):
    """Power laws t^-a from a = 0.1, which falls by 7 % while the time doubles."""
    steps = np.arange(2001)
    for seed in range(10 if noise else 1):
        factor = np.exp(np.random.default_rng(seed).normal(0, noise, 2001))
        assert plateaus_of((1 + steps / 20) ** -power * factor) == []


def test_a_tail_that_hardly_falls_cannot_be_told_from_a_plateau(plateaus_of):
    """As documented: t^-0.03 falls by 2 % while the time doubles."""
    [plateau] = plateaus_of((1 + np.arange(2001) / 20) ** -0.03)
    assert plateau.end == 2000


def test_a_steady_fall_a_tail_and_a_short_run_have_none(plateaus_of):
    assert plateaus_of(np.geomspace(1, 1e-4, 1000)) == []
    tail = np.append(np.geomspace(1, 1e-3, 200), np.geomspace(1e-3, 8e-4, 800))
    assert plateaus_of(tail) == []
    short = staircase((1, 0.1, 6), (0.1, 0.1, 7), (0.1, 0.001, 6))
    assert plateaus_of(short, step=np.arange(19) * 100) == []
    assert plateaus_of(np.linspace(1, -1, 500)) == []


def test_a_shelf_that_is_left_too_slowly_is_none(plateaus_of):
    assert plateaus_of(staircase((1, 0.1, 100), (0.1, 0.1, 200), (0.1, 0.01, 7000))) == []
    for height in (0.06, 0.04):
        found = plateaus_of(staircase((1, 0.1, 100), (0.1, 0.1, 300), (0.1, height, 20), (height, height, 500)))
        assert_found(found, [(100, 400, 0.1), (420, 919, height)])


def test_steps_are_training_steps(plateaus_of):
    loss = staircase((1, 0.1, 100), (0.1, 0.099, 300), (0.099, 0.001, 100))
    assert_found(plateaus_of(loss, step=np.arange(500) * 7), [(700, 2800, 0.0995)])
    late = plateaus_of(loss, step=np.arange(500) + 10_000)
    assert_found(late, [(10_100, 10_400, 0.0995)])


def test_a_short_swing_is_none_however_it_is_recorded(plateaus_of):
    loss = staircase((1, 0.1, 10), (0.1, 0.099, 18), (0.099, 1e-3, 12))
    assert plateaus_of(loss) == []
    assert len(plateaus_of(loss, step=np.arange(40) * 2)) == 1


@st.composite
def noisy(draw, corners, decades, n_steps, most):
    """A loss through the corners of a line in log scale, with noise on every step and a few spikes."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    loss = 10 ** np.interp(np.arange(n_steps + 1), corners, decades)
    loss *= np.exp(random.normal(0, draw(st.floats(0, most)), n_steps + 1))
    loss[random.choice(n_steps + 1, draw(st.integers(0, 5)), replace=False)] *= draw(st.floats(2, 30))
    return loss


@st.composite
def shelves(draw, most_noise=0.15):
    """A loss and its marks: up to three shelves, each a tenth of the run or longer, left by 0.4 decades or more.

    A fall takes a fifth of its shelf at most, so that the shelf has an end to speak of. After the last one the loss
    keeps falling, slowly.
    """
    n_steps, n = draw(st.integers(500, 3000)), draw(st.integers(1, 3))
    shelf = [draw(st.floats(0.1, max(0.2, 0.6 / n))) for _ in range(n)]
    fall = [draw(st.floats(0.02, 0.2)) * width for width in shelf]
    lead = draw(st.sampled_from([0, 0.02, 0.1])) * shelf[0]
    corners = np.cumsum([lead, *(width for pair in zip(shelf, fall, strict=True) for width in pair)]) * n_steps
    drop = [draw(st.floats(*limits)) for _ in range(n) for limits in ((0, 0.03), (0.4, 2))]
    decades = -np.cumsum([0, *drop])
    marks = [(*corners[i : i + 2], 10 ** decades[i : i + 2].mean()) for i in range(0, 2 * n, 2)]
    ends = [0, *corners, n_steps + 1], [draw(st.floats(0.5, 2)), *decades, decades[-1] - draw(st.floats(0.1, 0.3))]
    return draw(noisy(*ends, n_steps, most_noise)), marks


@always_the_same
@given(shelves())
def test_shelves_are_found_in_number_and_place(plateaus_of, case):
    loss, marks = case
    assert_found(plateaus_of(loss), marks)


@st.composite
def steady_falls(draw):
    """From half a decade to eight, along a straight line in log scale or ever more slowly."""
    n_steps, share = draw(st.integers(1000, 3000)), np.linspace(0, 1, 100)
    decades = -draw(st.floats(0.5, 8)) * share ** draw(st.floats(0.2, 1))
    return draw(noisy(share * n_steps, decades, n_steps, 0.2))


@always_the_same
@given(steady_falls())
def test_a_steady_fall_has_none(plateaus_of, loss):
    assert plateaus_of(loss) == []


@always_the_same
@given(shelves(), st.floats(-6, 6), st.integers(1, 50))
def test_the_units_of_loss_and_step_do_not_matter(plateaus_of, case, exponent, every):
    """But for plateaus that are short in a long run: those of less than 25 steps do not count."""
    loss, _ = case
    n_steps = len(loss) - 1

    def long_ones(loss, step):
        return [p for p in plateaus_of(loss, step) if p.end - p.start >= np.ptp(step) / 15]

    steps = np.arange(n_steps + 1)
    expected = [(every * p.start, every * p.end, 10**exponent * p.level) for p in long_ones(loss, steps)]
    assert expected
    for plateau, (start, end, level) in zip(long_ones(10**exponent * loss, every * steps), expected, strict=True):
        assert abs(plateau.start - start) <= every
        assert abs(plateau.end - end) <= every
        assert plateau.level == pytest.approx(level, rel=1e-6)


@always_the_same
@given(shelves(most_noise=0.05), st.floats(0.1, 0.5), st.integers(2, 5))
def test_rows_left_out_do_not_matter(plateaus_of, case, share, every):
    """Every step is recorded up to some moment, and then every second to fifth only."""
    loss, marks = case
    dense = round(share * len(loss))
    step = np.append(np.arange(dense), np.arange(dense, len(loss), every))
    assert_found(plateaus_of(loss[step], step), marks)


positive = st.floats(5e-324, 1e300) | st.floats(0.5, 1)
anything = positive | st.sampled_from([0.0, -1.0])


@always_the_same
@given(st.lists(positive, min_size=1, max_size=60) | st.lists(anything, min_size=1, max_size=60), st.data())
def test_any_loss_is_read_without_complaint(plateaus_of, loss, data):
    gaps = data.draw(st.lists(st.integers(1, 10**6), min_size=len(loss), max_size=len(loss)))
    found = plateaus_of(np.array(loss), np.cumsum(gaps))
    assert found == [] or min(loss) > 0


@always_the_same
@given(st.lists(st.floats(-0.2, 0.1), min_size=20, max_size=300), st.integers(1, 30))
def test_plateaus_are_in_order_and_apart_and_above_what_follows(plateaus_of, changes, every):
    """Unless they last to the end."""
    decades, step = np.repeat(np.cumsum(changes), 5), every * np.arange(5 * len(changes))
    found = plateaus_of(10**decades, step)
    ends = [end for plateau in found for end in (plateau.start, plateau.end)]
    assert ends == sorted(ends)
    for plateau in found:
        assert plateau.end - plateau.start >= 25 - 1
        assert plateau.end == step[-1] or 10 ** decades[step > plateau.end].min() < plateau.level


def test_levels_of_the_users_own_are_matched_before_polynomials(post_runs):
    run = post_runs["x^3"]
    levels = {"far": 0.03, "near": 0.0244, "nearer": 0.02464, "half": 0.012}
    [plateau] = lv.find_plateaus(run, levels)
    assert (plateau.fit.name, plateau.fit.loss) == ("nearer", 0.02464)
    assert lv.find_plateaus(run, {"far": 0.03})[0].fit.degree == 1
    assert lv.find_plateaus(run, levels) == lv.find_plateaus(run)  # the same plateaus
    with pytest.raises(ValueError, match=r"`levels` must be losses above 0, 'none' is 0\. Pass losses by name"):
        lv.find_plateaus(run, {"none": 0})


def test_levels_name_the_plateaus_of_an_attention_layer(plateaus_of, with_loss):
    run = with_loss(np.interp(np.arange(3001), LIU[0], np.log(LIU[1])))
    names = [p.fit and p.fit.name for p in lv.find_plateaus(run, {"half the vocabulary": np.log(5)})]
    assert names == ["half the vocabulary", None]  # 3.7 is 19 % below
