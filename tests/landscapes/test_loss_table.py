"""Losses by key, in memory and in a file that a crash may have cut short."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest

from loss_viz.landscapes import loss_cache
from loss_viz.landscapes.loss_cache import RECORD, LossTable


class Stop(Exception):
    pass


def cut(values, rng):
    """Return the values in parts of random lengths, some of them empty."""
    places = np.sort(rng.integers(0, len(values) + 1, size=rng.integers(0, 5)))
    return np.split(values, places)


def draw_new(kept, rng, n_most=30):
    """Return new keys in random order, with a loss each."""
    drawn = rng.permutation(np.unique(rng.integers(0, 400, size=rng.integers(0, n_most))))
    new = np.array([key for key in drawn.tolist() if key not in kept], dtype=np.int64)
    losses = rng.normal(size=len(new))
    losses[rng.random(len(new)) < 0.1] = rng.choice([np.nan, np.inf, -np.inf, -0.0, 5e-324])
    return new, losses


def assert_same(loss_table, kept, rng):
    asked = rng.permutation(420)
    expected = np.array([key in kept for key in asked.tolist()])
    assert len(loss_table) == len(kept)
    np.testing.assert_array_equal(loss_table.contains(asked), expected)
    np.testing.assert_array_equal(loss_table.missing(asked), asked[~expected])
    there = asked[expected]
    np.testing.assert_array_equal(loss_table.get(there), [kept[key] for key in there.tolist()])
    twice = np.repeat(there[:3], 2)
    np.testing.assert_array_equal(loss_table.get(twice), [kept[key] for key in twice.tolist()])


@pytest.fixture(params=["memory", "file"])
def path(request, tmp_path):
    return tmp_path / "some.losses" if request.param == "file" else None


def test_a_table_is_a_dictionary(path):
    rng = np.random.default_rng(0)
    loss_table, kept = LossTable(path), {}
    assert_same(loss_table, kept, rng)
    for _ in range(30):
        keys, losses = draw_new(kept, rng)
        loss_table.add(keys, cut(losses, rng))
        kept.update(zip(keys.tolist(), losses.tolist(), strict=True))
        assert_same(loss_table, kept, rng)
    assert len(kept) > 200
    if path is not None:
        assert_same(LossTable(path), kept, rng)
        assert path.stat().st_size == len(kept) * RECORD.itemsize


def test_losses_before_an_error_are_kept(path):
    rng = np.random.default_rng(1)
    loss_table, kept = LossTable(path), {}
    for error in (Stop, KeyboardInterrupt, ValueError):
        keys, losses = draw_new(kept, rng, n_most=60)
        done = len(losses) // 2

        def parts(losses=losses, done=done, error=error):
            yield from cut(losses[:done], rng)
            raise error

        with pytest.raises(error):
            loss_table.add(keys, parts())
        assert done > 0
        kept.update(zip(keys[:done].tolist(), losses[:done].tolist(), strict=True))
        assert_same(loss_table, kept, rng)
        rest = loss_table.missing(keys)
        np.testing.assert_array_equal(rest, keys[done:])
        loss_table.add(rest, [losses[done:]])
        kept.update(zip(keys.tolist(), losses.tolist(), strict=True))
        assert_same(loss_table, kept, rng)
    if path is not None:
        assert_same(LossTable(path), kept, rng)


def test_an_empty_table_writes_no_file(tmp_path):
    path = tmp_path / "some.losses"
    LossTable(path).add(np.empty(0, dtype=np.int64), [])
    LossTable(path).add(np.empty(0, dtype=np.int64), [np.empty(0)])
    assert not path.exists()
    path.touch()
    assert len(LossTable(path)) == 0


def fill_file(path, n, seed=2):
    rng = np.random.default_rng(seed)
    keys, losses = rng.permutation(400)[:n], rng.normal(size=n)
    LossTable(path).add(keys, [losses])
    return keys, losses


def test_another_table_reads_the_same_file(tmp_path):
    path = tmp_path / "some.losses"
    keys, losses = fill_file(path, 50)
    second = LossTable(path)
    np.testing.assert_array_equal(second.get(keys), losses)
    second.add(np.array([500, 401]), [np.array([5.0]), np.array([4.0])])
    third = LossTable(path)
    assert len(third) == 52
    np.testing.assert_array_equal(third.get(np.append(keys, [401, 500])), np.append(losses, [4.0, 5.0]))


@pytest.mark.parametrize("n_bytes", range(RECORD.itemsize))
def test_an_incomplete_record_is_cut_off_and_written_again(tmp_path, n_bytes):
    path = tmp_path / "some.losses"
    keys, losses = fill_file(path, 9)
    whole = path.read_bytes()
    path.write_bytes(whole[: 8 * RECORD.itemsize + n_bytes])
    loss_table = LossTable(path)
    assert path.read_bytes() == whole[: 8 * RECORD.itemsize]
    np.testing.assert_array_equal(loss_table.missing(keys), keys[8:])
    np.testing.assert_array_equal(loss_table.get(keys[:8]), losses[:8])
    loss_table.add(keys[8:], [losses[8:]])
    assert path.read_bytes() == whole
    np.testing.assert_array_equal(LossTable(path).get(keys), losses)


@pytest.mark.parametrize("n_zeros", [1, RECORD.itemsize, 4096])
def test_trailing_zeros_are_not_losses(tmp_path, n_zeros):
    path = tmp_path / "some.losses"
    keys, _ = fill_file(path, 9)
    whole = path.read_bytes()
    path.write_bytes(whole + bytes(n_zeros))
    loss_table = LossTable(path)
    assert len(loss_table) == len(keys)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("bit", range(0, 8 * RECORD.itemsize, 7))
def test_a_record_with_a_flipped_bit_is_dropped(tmp_path, bit):
    path = tmp_path / "some.losses"
    keys, losses = fill_file(path, 9)
    whole = bytearray(path.read_bytes())
    whole[6 * RECORD.itemsize + bit // 8] ^= 1 << bit % 8
    path.write_bytes(whole)
    loss_table = LossTable(path)
    np.testing.assert_array_equal(loss_table.missing(keys), keys[6:])
    loss_table.add(keys[6:], [losses[6:]])
    np.testing.assert_array_equal(LossTable(path).get(keys), losses)


def test_keys_written_twice_are_harmless(tmp_path):
    path = tmp_path / "some.losses"
    first, second = LossTable(path), LossTable(path)
    first.add(np.array([3, 1, 7]), [np.array([0.3, 0.1, 0.7])])
    second.add(np.array([7, 1, 5]), [np.array([0.7, 0.1, 0.5])])
    first.add(np.array([5, 2]), [np.array([0.5, 0.2])])
    assert path.stat().st_size == 8 * RECORD.itemsize
    both = LossTable(path)
    assert len(both) == 5
    np.testing.assert_array_equal(both.get(np.array([1, 2, 3, 5, 7])), [0.1, 0.2, 0.3, 0.5, 0.7])
    both.add(np.array([4]), [np.array([0.4])])
    np.testing.assert_array_equal(LossTable(path).get(np.array([3, 4, 5])), [0.3, 0.4, 0.5])


def test_the_file_grows_during_the_work(tmp_path, monkeypatch):
    """A killed process leaves all but the last half second."""
    now = 0.0
    monkeypatch.setattr(loss_cache.time, "monotonic", lambda: now)
    path = tmp_path / "some.losses"
    loss_table, seen = LossTable(path), []

    def parts():
        nonlocal now
        for i in range(20):
            seen.append(len(LossTable(path)))
            now += 0.2
            yield np.array([0.1 * i, 0.1 * i + 0.05])

    loss_table.add(np.arange(40), parts())
    assert max(2 * i - n for i, n in enumerate(seen)) == 2 * 2
    assert len(set(seen)) == 1 + 19 // 3
    assert path.stat().st_size == 40 * RECORD.itemsize
    np.testing.assert_allclose(LossTable(path).get(np.arange(40)), np.arange(40) * 0.05)


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of this kind")
def test_a_full_disk_does_not_stop_the_work(tmp_path):
    """The operating system limits the size of a file, in a child process."""
    script = """
        import resource, sys, warnings
        import numpy as np
        from pathlib import Path
        from loss_viz.landscapes.loss_cache import LossTable, RECORD

        path, limit = Path(sys.argv[1]), 100 * RECORD.itemsize + 7
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        table = LossTable(path)
        table.add(np.arange(60), [np.arange(60) / 2])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            table.add(np.arange(60, 120), [np.arange(60, 120) / 2])
            table.add(np.arange(120, 150), [np.arange(120, 150) / 2])
        print(len(caught), caught[0].category.__name__, caught[0].message)
        print(table.get(np.arange(150)).tolist() == (np.arange(150) / 2).tolist())
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        again = LossTable(path)
        print(len(again), again.get(np.arange(100)).tolist() == (np.arange(100) / 2).tolist())
    """
    arguments = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "some.losses")]
    out = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()
    assert out[0].startswith("1 RuntimeWarning Losses are no longer written to ")
    assert "File too large" in out[0]
    assert out[1:] == ["True", "100 True"]
