"""Mesh files, read by the rules of their formats and not by the code that writes them."""

import base64
import re
import struct
from collections import Counter
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import plotly.colors
import pytest

import loss_viz as lv
from loss_viz.figures.style import BOX


@pytest.fixture(scope="module")
def land(run):
    metrics = {"size & <sum>": lambda model: sum(weights.abs().sum() for weights in model.parameters())}
    return lv.landscape(run, resolution=(9, 7), metrics=metrics, progress=False)


@pytest.fixture(scope="module")
def holed(land):
    loss = land.loss.copy()
    loss[2:4, 3:5], loss[0, 8], loss[5, 7] = np.nan, np.inf, np.nan
    return replace(land, loss=loss)


def read_stl(path):
    """Return the corners of the triangles `(n, 3, 3)` and their normals."""
    data = path.read_bytes()
    (n,) = struct.unpack_from("<I", data, 80)
    assert len(data) == 84 + 50 * n
    numbers = [struct.unpack_from("<12f", data, 84 + 50 * i) for i in range(n)]
    return np.array(numbers)[:, 3:].reshape(n, 3, 3), np.array(numbers)[:, :3]


def read_ply(path):
    """Return the vertices as dictionaries, and the faces."""
    header, _, body = path.read_bytes().partition(b"end_header\n")
    assert header.startswith(b"ply\nformat binary_little_endian 1.0\n")
    n_vertices, n_faces = (int(re.search(rf"element {name} (\d+)".encode(), header)[1]) for name in ("vertex", "face"))
    properties = re.findall(r"^property (\w+) (\w+)$", header.decode(), re.MULTILINE)
    layout = "<" + "".join({"float": "f", "double": "d", "uchar": "B"}[kind] for kind, _ in properties)
    size, names = struct.calcsize(layout), [name for _, name in properties]
    vertices = [dict(zip(names, struct.unpack_from(layout, body, i * size), strict=True)) for i in range(n_vertices)]
    faces = [struct.unpack_from("<B3i", body, n_vertices * size + 13 * i) for i in range(n_faces)]
    assert len(body) == n_vertices * size + 13 * n_faces
    assert {face[0] for face in faces} == {3}
    return vertices, [face[1:] for face in faces]


def read_vtu(path):
    """Return the arrays by name."""
    root = ElementTree.parse(path).getroot()
    assert (root.get("type"), root.get("byte_order")) == ("UnstructuredGrid", "LittleEndian")
    arrays = {}
    for element in root.iter("DataArray"):
        data = base64.b64decode(element.text)
        assert struct.unpack_from("<I", data)[0] == len(data) - 4
        array = np.frombuffer(data[4:], {"Float64": "<f8", "Int64": "<i8"}[element.get("type")])
        arrays[element.get("Name")] = array.reshape(-1, int(element.get("NumberOfComponents"))).squeeze()
    [piece] = root.iter("Piece")
    assert int(piece.get("NumberOfPoints")) == len(arrays["points"])
    assert int(piece.get("NumberOfCells")) == len(arrays["offsets"]) == len(arrays["types"])
    return arrays


def open_triangles(land):
    """Count the triangles whose corners are all finite, in a loop over both halves of each cell."""
    known, n = np.isfinite(land.loss), 0
    for j in range(len(land.y) - 1):
        for i in range(len(land.x) - 1):
            n += bool(known[j, i] and known[j, i + 1] and known[j + 1, i + 1])
            n += bool(known[j, i] and known[j + 1, i + 1] and known[j + 1, i])
    return n


@pytest.mark.parametrize("name", ["land", "holed"])
def test_a_printed_solid_is_closed_and_has_the_proportions_of_the_picture(name, request, tmp_path):
    land = request.getfixturevalue(name)
    corners, normals = read_stl(land.to_mesh(tmp_path / "land.stl"))
    edges = Counter()
    for triangle in corners:
        points = [tuple(point) for point in triangle]
        for i in range(3):
            edges[points[i], points[(i + 1) % 3]] += 1
    assert set(edges.values()) == {1}  # each edge has one triangle on either side, in opposite directions
    assert all((b, a) in edges for a, b in edges)
    np.testing.assert_allclose(corners.min(axis=(0, 1)), 0)
    np.testing.assert_allclose(corners.max(axis=(0, 1)), [115, 115, 78], rtol=0.2)  # the run may be higher
    volume = sum(np.linalg.det(triangle) for triangle in corners) / 6
    top = corners[normals[:, 2] > 1e-6]
    assert len(top) == open_triangles(land)
    area = [np.linalg.det([[1, 1, 1], triangle[:, 0], triangle[:, 1]]) / 2 for triangle in top]
    assert volume == pytest.approx(np.dot(area, top[:, :, 2].mean(axis=1)), rel=1e-5)  # outside is outside
    finite = np.isfinite(land.loss)
    low = min(land.loss[finite].min(), land.path_loss.min())
    high = max(land.loss[finite].max(), land.path_loss.max())
    for point in top.reshape(-1, 3):
        i = np.abs(115 * (land.x - land.x[0]) / np.ptp(land.x) - point[0]).argmin()
        j = np.abs(115 * (land.y - land.y[0]) / np.ptp(land.y) - point[1]).argmin()
        assert point[2] == pytest.approx(3 + 75 * (land.loss[j, i] - low) / (high - low), abs=1e-3)


@pytest.mark.parametrize("log", [False, True])
def test_a_ply_holds_points_colors_and_losses(holed, tmp_path, log):
    vertices, faces = read_ply(holed.to_mesh(tmp_path / "land.PLY", log=log))
    finite = np.isfinite(holed.loss)
    both = np.concatenate([holed.loss[finite], holed.path_loss])
    low, high = (np.log10(end) if log else end for end in (both.min(), both.max()))
    assert len(vertices) == finite.sum()
    for vertex, (j, i) in zip(vertices, np.argwhere(finite), strict=True):
        drawn = np.log10(holed.loss[j, i]) if log else holed.loss[j, i]
        share = (drawn - low) / (high - low)
        assert vertex["loss"] == holed.loss[j, i]
        assert vertex["support"] == holed.support[j, i]
        assert vertex["x"] == pytest.approx(BOX["x"] * (holed.x[i] - holed.x[0]) / np.ptp(holed.x), abs=1e-6)
        assert vertex["y"] == pytest.approx(BOX["y"] * (holed.y[j] - holed.y[0]) / np.ptp(holed.y), abs=1e-6)
        assert vertex["z"] == pytest.approx(BOX["z"] * share, abs=1e-6)
        [color] = plotly.colors.sample_colorscale("Viridis", [share])
        shown = [vertex[name] for name in ("red", "green", "blue")]
        assert shown == pytest.approx([float(part) for part in re.findall(r"[\d.]+", color)], abs=1)
    assert len(faces) == open_triangles(holed)
    for face in faces:
        a, b, c = (np.array([vertices[corner]["x"], vertices[corner]["y"]]) for corner in face)
        assert np.linalg.det([b - a, c - a]) > 0  # counterclockwise from above


def test_a_vtu_holds_the_numbers_as_they_are_and_the_run_as_a_line(holed, tmp_path):
    arrays = read_vtu(holed.to_mesh(tmp_path / "land.vtu"))
    finite = np.isfinite(holed.loss)
    n, n_steps = finite.sum(), len(holed.path)
    x, y = np.meshgrid(holed.x, holed.y)
    assert np.array_equal(arrays["points"][:n], np.stack([x[finite], y[finite], holed.loss[finite]], axis=1))
    assert np.array_equal(arrays["points"][n:], np.column_stack([holed.path, holed.path_loss]))
    assert np.array_equal(arrays["loss"], np.append(holed.loss[finite], holed.path_loss))
    assert np.array_equal(arrays["support"][:n], holed.support[finite])
    metric = holed.metrics["size & <sum>"]
    assert np.array_equal(arrays["size & <sum>"], np.append(metric.surface[finite], metric.path))
    assert np.array_equal(arrays["step"], np.append(np.full(n, -1), holed.run.step))
    assert np.array_equal(arrays["run"], np.append(np.full(n, -1), np.zeros(n_steps)))
    cells = np.split(arrays["connectivity"], arrays["offsets"][:-1])
    assert [len(cell) for cell in cells] == [3] * open_triangles(holed) + [2] * (n_steps - 1)
    assert arrays["types"].tolist() == [5] * open_triangles(holed) + [3] * (n_steps - 1)
    assert [cell.tolist() for cell in cells[-n_steps + 1 :]] == [[n + t, n + t + 1] for t in range(n_steps - 1)]
    logarithmic = read_vtu(holed.to_mesh(tmp_path / "log.vtu", log=True))
    assert np.array_equal(logarithmic["points"][:, 2], np.log10(arrays["loss"]))
    assert np.array_equal(logarithmic["loss"], arrays["loss"])


def test_runs_are_not_joined_and_end_at_the_frame(tmp_path):
    runs = lv.compare("x^2", ["adam", "sgd"], steps=30, progress=False)
    whole = lv.landscape(runs, resolution=4, progress=False)
    (left, right), (bottom, top) = whole.x[[0, -1]], whole.y[[0, -1]]
    land = lv.landscape(runs, resolution=(5, 4), bounds=((left, (left + right) / 2), (bottom, top)), progress=False)
    for one in (whole, land):
        arrays = read_vtu(one.to_mesh(tmp_path / "land.vtu"))
        n = one.loss.size
        lines = np.split(arrays["connectivity"], arrays["offsets"][:-1])
        drawn = {tuple(cell - n) for cell in lines if len(cell) == 2}
        inside = (one.path[:, 0] >= one.x[0]) & (one.path[:, 0] <= one.x[-1])
        inside &= (one.path[:, 1] >= one.y[0]) & (one.path[:, 1] <= one.y[-1])
        assert drawn == {(t, t + 1) for t in range(61) if t != 30 and inside[t] and inside[t + 1]}
        assert arrays["run"][n:].tolist() == [0] * 31 + [1] * 31


@pytest.mark.parametrize("suffix", [".ply", ".vtu"])
def test_the_settings_in_a_mesh_reproduce_the_landscape(tmp_path, suffix):
    named = {"a -- b ---> <c>": lv.train("x^2", steps=30, progress=False)}
    land = lv.landscape(named, resolution=(5, 4), progress=False)
    again = lv.reproduce(land.to_mesh(tmp_path / f"land{suffix}"), progress=False)
    assert np.array_equal(again.loss, land.loss)
    assert again.run_set.names == land.run_set.names


def test_errors_state_cause_and_repair(land, tmp_path):
    with pytest.raises(ValueError, match=r"must end in \.stl or \.ply or \.vtu, got .*\.obj'\. Use \.stl to print it"):
        land.to_mesh(tmp_path / "land.obj")
    negative = replace(land, loss=land.loss - 1)
    with pytest.raises(ValueError, match=r"`log`=True needs losses above 0, the smallest is -.*\. Pass log=False"):
        negative.to_mesh(tmp_path / "land.stl", log=True)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing(land, tmp_path, monkeypatch):
    def fill_up(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("loss_viz._files.os.fsync", fill_up)
    for suffix in (".stl", ".ply", ".vtu"):
        with pytest.raises(OSError, match="No space left"):
            land.to_mesh(tmp_path / f"land{suffix}")
    assert not list(tmp_path.iterdir())
