"""Heights of numbered points, in memory and in a file that a crash may have cut short."""

import subprocess
import sys
import textwrap

import numpy as np
import pytest

from loss_viz.landscapes import loss_cache
from loss_viz.landscapes.loss_cache import HeightTable

RECORD_BYTES = 8 * (1 + 2 + 1)  # number, two heights, check


def draw(rng, n):
    heights = rng.normal(size=(n, 2))
    special = rng.random((n, 2)) < 0.1
    heights[special] = rng.choice([np.nan, np.inf, -np.inf, -0.0, 5e-324], size=special.sum())
    return heights


def assert_same(table, kept):
    assert np.flatnonzero(table.known).tolist() == sorted(kept)
    for point, heights in kept.items():
        np.testing.assert_array_equal(table.heights[point], heights)
    assert np.isnan(table.heights[~table.known]).all()


@pytest.mark.parametrize("on_disk", [False, True])
def test_a_table_is_a_dictionary(tmp_path, on_disk):
    path, rng = tmp_path / "some.losses" if on_disk else None, np.random.default_rng(0)
    table, kept, n_added = HeightTable(400, 2, path), {}, 0
    for _ in range(30):
        points = rng.permutation(400)[: rng.integers(0, 30)]
        heights = draw(rng, len(points))
        table.add(points, heights)
        kept.update(zip(points.tolist(), heights, strict=True))
        n_added += len(points)
        assert_same(table, kept)
    table.flush()
    if on_disk:
        assert_same(HeightTable(400, 2, path), kept)  # the later one of two heights of a point
        assert path.stat().st_size == n_added * RECORD_BYTES


def fill_file(path, n):
    rng = np.random.default_rng(2)
    points, heights = rng.permutation(400)[:n], draw(rng, n)
    table = HeightTable(400, 2, path)
    table.add(points, heights)
    table.flush()
    return points, heights


def test_an_empty_table_writes_no_file(tmp_path):
    path = tmp_path / "some.losses"
    HeightTable(400, 2, path).flush()
    table = HeightTable(400, 2, path)
    table.add(np.empty(0, dtype=np.int64), np.empty((0, 2)))
    table.flush()
    assert not path.exists() or not path.stat().st_size
    path.touch()
    assert not HeightTable(400, 2, path).known.any()


DAMAGES = {
    **{f"cut to {n} bytes": (8, lambda whole, n=n: whole[: 8 * RECORD_BYTES + n]) for n in range(0, RECORD_BYTES, 5)},
    **{f"{n} zeros": (9, lambda whole, n=n: whole + bytes(n)) for n in (1, RECORD_BYTES, 4096)},
    **{
        f"bit {bit}": (
            6,
            lambda whole, bit=bit: b"".join(
                bytes([byte ^ (1 << bit % 8)]) if i == 6 * RECORD_BYTES + bit // 8 else bytes([byte])
                for i, byte in enumerate(whole)
            ),
        )
        for bit in range(0, 8 * RECORD_BYTES, 7)
    },
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_records_before_a_damage_are_kept_and_the_others_written_again(tmp_path, damage):
    path = tmp_path / "some.losses"
    points, heights = fill_file(path, 9)
    n_kept, change = DAMAGES[damage]
    whole = path.read_bytes()
    path.write_bytes(change(whole))
    table = HeightTable(400, 2, path)
    assert path.read_bytes() == whole[: n_kept * RECORD_BYTES]
    assert_same(table, dict(zip(points[:n_kept].tolist(), heights[:n_kept], strict=True)))
    table.add(points[n_kept:], heights[n_kept:])
    table.flush()
    assert path.read_bytes() == whole


def test_points_beyond_the_table_are_not_read(tmp_path):
    path = tmp_path / "some.losses"
    points, _ = fill_file(path, 50)
    small = HeightTable(200, 2, path)
    assert small.known.sum() == np.argmax(points >= 200)


def test_the_file_grows_during_the_work(tmp_path, monkeypatch):
    """A killed process leaves all but the last half second."""
    now, path, lost = 0.0, tmp_path / "some.losses", []
    monkeypatch.setattr(loss_cache.time, "monotonic", lambda: now)
    table = HeightTable(40, 2, path)
    for i in range(20):
        now += 0.2
        table.add(np.array([2 * i, 2 * i + 1]), np.full((2, 2), 0.1 * i))
        lost.append(2 * (i + 1) - HeightTable(40, 2, path).known.sum())
    assert max(lost) == 2 * 2
    table.flush()
    again = HeightTable(40, 2, path)
    assert again.known.all()
    np.testing.assert_array_equal(again.heights, np.repeat(0.1 * np.arange(20), 4).reshape(40, 2))


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of this kind")
def test_a_full_disk_does_not_stop_the_work(tmp_path):
    """The operating system limits the size of a file, in a child process."""
    script = """
        import resource, sys, warnings
        import numpy as np
        from pathlib import Path
        from loss_viz.landscapes.loss_cache import HeightTable

        path, limit = Path(sys.argv[1]), 100 * 24 + 7
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        table, heights = HeightTable(150, 1, path), np.arange(150)[:, None] / 2
        table.add(np.arange(60), heights[:60])
        table.flush()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for part in (slice(60, 120), slice(120, 150)):
                table.add(np.arange(150)[part], heights[part])
                table.flush()
        print(len(caught), caught[0].category.__name__, caught[0].message)
        print((table.heights == heights).all())
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        again = HeightTable(150, 1, path)
        print(again.known.sum(), (again.heights[:100] == heights[:100]).all())
    """
    arguments = [sys.executable, "-c", textwrap.dedent(script), str(tmp_path / "some.losses")]
    out = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=True).stdout.splitlines()
    assert out[0].startswith("1 RuntimeWarning Losses are no longer written to ")
    assert "File too large" in out[0]
    assert out[1:] == ["True", "100 True"]
