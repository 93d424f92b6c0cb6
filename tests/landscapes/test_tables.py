"""Landscapes as CSV tables and as xarray data sets."""

import csv
import io
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import xarray

import loss_viz as lv
from loss_viz.landscapes.provenance import read_settings


@pytest.fixture(scope="module")
def land(run):
    return lv.landscape(run, resolution=(7, 5), progress=False)


@pytest.fixture(scope="module")
def race():
    runs = lv.compare("x^2", ["adam", "sgd"], steps=30, progress=False)
    return lv.landscape({"Adam, σ": runs[0], 'the "other" #2': runs[1]}, resolution=(4, 3), progress=False)


def read_table(path):
    """Return the comment and the columns by name, read without a library for tables."""
    comment, rest = path.read_text(encoding="utf-8").split("\n", 1)
    rows = list(csv.DictReader(io.StringIO(rest)))
    return comment, {name: [row[name] for row in rows] for name in rows[0]}


def as_numbers(column):
    return np.array([float(cell) for cell in column])


def test_tables_hold_every_number_exactly(land, tmp_path):
    surface, path = land.to_csv(tmp_path / "tables")
    assert [file.name for file in sorted((tmp_path / "tables").iterdir())] == ["path.csv", "surface.csv"]
    _, cells = read_table(surface)
    assert list(cells) == ["x", "y", "loss", "support"]
    rows = [[float(cell) for cell in row] for row in zip(*cells.values(), strict=True)]
    assert rows == [[land.x[i], land.y[j], land.loss[j, i], land.support[j, i]] for j in range(5) for i in range(7)]
    _, cells = read_table(path)
    assert list(cells) == ["run", "step", "x", "y", "loss", "height", "off_plane"]
    assert [int(cell) for cell in cells["step"]] == land.run.step.tolist()
    assert set(cells["run"]) == {"x^3"}
    columns = {"x": land.path[:, 0], "y": land.path[:, 1], "loss": land.path_loss, "height": land.path_height}
    for name, column in (columns | {"off_plane": land.off_plane}).items():
        assert np.array_equal(as_numbers(cells[name]), column)


def test_tables_name_the_run_of_each_row(race, tmp_path):
    _, path = race.to_csv(tmp_path)
    _, cells = read_table(path)
    assert cells["run"] == ["Adam, σ"] * 31 + ['the "other" #2'] * 31
    assert np.array_equal(as_numbers(cells["loss"]), race.path_loss)
    assert [int(cell) for cell in cells["step"]] == [*range(31), *range(31)]


def test_infinities_and_nan_are_kept(land, tmp_path):
    loss = land.loss.copy()
    loss[1, 2:5] = np.nan, np.inf, -np.inf
    surface, _ = replace(land, loss=loss).to_csv(tmp_path)
    assert np.array_equal(as_numbers(read_table(surface)[1]["loss"]), loss.ravel(), equal_nan=True)
    assert np.array_equal(replace(land, loss=loss).to_xarray().loss, loss, equal_nan=True)


def test_other_programs_read_the_tables(race, tmp_path):
    pandas = pytest.importorskip("pandas")  # xarray brings it
    surface, path = race.to_csv(tmp_path)
    table = pandas.read_csv(path, skiprows=1)
    np.testing.assert_allclose(table.loss, race.path_loss, rtol=1e-15)  # some versions of pandas round
    assert table.run.unique().tolist() == list(race.run_set.names)
    assert np.array_equal(np.genfromtxt(surface, delimiter=",", names=True, skip_header=1)["loss"], race.loss.ravel())


def test_a_landscape_is_reproduced_from_its_tables(land, race, tmp_path):
    for one in (land, race):
        for file in one.to_csv(tmp_path):
            comment, _ = read_table(file)
            assert json.loads(comment.removeprefix("# ")) == read_settings(file) == one.settings
            again = lv.reproduce(file, progress=False)
            assert np.array_equal(again.loss, one.loss)
            assert np.array_equal(again.path_height, one.path_height)
            assert again.run_set.names == one.run_set.names


def test_a_data_set_holds_every_number(land):
    data = land.to_xarray()
    assert dict(data.sizes) == {"y": 5, "x": 7, "step": 61, "anchor": len(land.anchors)}
    for i, j in ((0, 0), (6, 4), (2, 3)):
        assert float(data.loss.sel(x=land.x[i], y=land.y[j])) == land.loss[j, i]
        assert float(data.support.isel(x=i, y=j)) == land.support[j, i]
    for step in (0, 17, 60):
        here = data.sel(step=step)
        assert [float(here.path_x), float(here.path_y)] == land.path[step].tolist()
        assert float(here.path_loss) == land.path_loss[step]
        assert float(here.path_height) == land.path_height[step]
        assert float(here.off_plane) == land.off_plane[step]
    assert np.array_equal(data.anchor, land.anchors)
    assert np.array_equal(data.sigma, land.sigma_absolute)
    assert np.array_equal(data.attrs["explained_variance_ratio"], land.explained_variance_ratio)
    assert json.loads(data.attrs["settings"]) == land.settings
    assert data.x.attrs == {
        "long_name": f"PC1 ({land.explained_variance_ratio[0]:.1%} of the variance)",
        "units": "weights",
    }
    assert data.off_plane.attrs["units"] == "weights"


def test_a_data_set_names_the_run_of_each_step(race):
    data = race.to_xarray()
    for name, rows in zip(race.run_set.names, race.run_set.rows, strict=True):
        mine = data.where(data.run == name, drop=True)
        assert np.array_equal(mine.path_loss, race.path_loss[rows])
        assert mine.step.values.tolist() == list(range(31))


@pytest.mark.parametrize("view", [{"center": "mean"}, {"center": "last"}, {"axes": "random"}], ids=str)
def test_flat_planes_have_data_sets_too(run, view, tmp_path):
    land = lv.landscape(run, plane="flat", resolution=(4, 3), progress=False, **view)
    data = land.to_xarray()
    assert np.array_equal(data.loss, land.loss)
    assert ("anchor" in data.sizes) == (len(land.anchors) > 0) == (view != {"center": "mean"})
    assert data.x.attrs["units"] == ("filter norms" if "axes" in view else "weights")
    data.to_netcdf(tmp_path / "land.nc", engine="scipy")


def test_a_netcdf_file_keeps_everything(land, race, tmp_path):
    for one in (land, race):
        path = tmp_path / "land.nc"
        data = one.to_xarray()
        data.to_netcdf(path, engine="scipy")
        with xarray.open_dataset(path, engine="scipy") as opened:
            again = opened.load()
        for name in data.variables:
            assert np.array_equal(again[name], data[name]), name
            assert again[name].attrs == data[name].attrs
        assert {key: str(value) for key, value in again.attrs.items()} == {
            key: str(value) for key, value in data.attrs.items()
        }
        assert read_settings(path) == one.settings
        assert np.array_equal(lv.reproduce(path, progress=False).loss, one.loss)


def test_a_failed_write_leaves_the_old_tables(land, tmp_path, monkeypatch):
    before = {file: file.read_bytes() for file in land.to_csv(tmp_path)}

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("loss_viz._files.os.fsync", fail)
        with pytest.raises(OSError, match="No space left"):
            replace(land, loss=land.loss + 1).to_csv(tmp_path)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before
    with pytest.raises(OSError, match="exists"):
        land.to_csv(tmp_path / "path.csv")


def test_without_xarray_the_error_says_how_to_install_it(land, monkeypatch):
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(ImportError, match=r'Install it with: pip install "loss_viz\[xarray\]"$'):
        land.to_xarray()
