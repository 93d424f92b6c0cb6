"""A landscape as a mesh: triangles, level lines, and files: STL for printers, PLY for Blender, VTU for ParaView."""

import base64
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from jaxtyping import Float, Int, UInt8

from loss_viz._files import atomic_write
from loss_viz._validation import argument_error

BOX = 1.15, 1.15, 0.75  # proportions of the picture
MILLIMETERS, BASE = 100.0, 3.0  # in a unit of the box; thickness of a printed solid at its lowest point
VIRIDIS = "440154 482878 3e4989 31688e 26828e 1f9e89 35b779 6ece58 b5de2b fde725"  # the colors of the picture
TRIANGLE, LINE = 5, 3  # cell types of VTK


def write_mesh(landscape: Any, path: Path, *, log: bool) -> None:
    """Write a `Landscape` in the format that the suffix of `path` says; `log` draws log10 of the loss.

    Raises:
        ValueError: with `log=True` if a finite loss is not positive.
    """
    surface, along = landscape.loss.ravel(), landscape.path_loss
    known = np.isfinite(surface)
    lowest = float(np.concatenate([surface[known], along]).min())
    if log and lowest <= 0:
        raise argument_error("log", f"`log`=True needs losses above 0, the smallest is {lowest:.4g}. Pass log=False.")
    x, y = np.meshgrid(landscape.x, landscape.y)
    triangles = triangulate(*landscape.loss.shape)
    triangles = (np.cumsum(known) - 1)[triangles[known[triangles].all(axis=1)]]
    first, last = (np.array([landscape.x[end], landscape.y[end]]) for end in (0, -1))
    inside = ((first <= landscape.path) & (landscape.path <= last)).all(axis=1)
    values = {name: np.append(one.surface.ravel()[known], one.path) for name, one in landscape.metrics.items()}
    values["loss"] = np.append(surface[known], along)
    values["support"] = np.append(landscape.support.ravel()[known], np.ones(len(along)))
    runs = np.concatenate([np.full(len(run), i) for i, run in enumerate(landscape.runs)])
    n = int(known.sum())
    values |= {"run": np.append(np.full(n, -1), runs), "step": np.append(np.full(n, -1), landscape.run_set.step)}
    start = np.flatnonzero(inside[:-1] & inside[1:] & (runs[:-1] == runs[1:])) + n
    lines = np.column_stack([start, start + 1])
    height = np.log10(values["loss"]) if log else values["loss"]
    plane = np.concatenate([np.column_stack([x.ravel(), y.ravel()])[known], landscape.path])
    points = np.column_stack([plane, height])
    low = np.append(first, height.min())
    span = np.append(last, height.max()) - low
    box = (points - low) / np.where(span > 0, span, 1) * BOX
    suffix, settings = path.suffix.lower(), landscape.to_json()
    if suffix == ".stl":
        content = _write_stl(*close_solid(MILLIMETERS * box[:n], triangles))
    elif suffix == ".ply":
        content = _write_ply(box[:n], triangles, values["loss"], values["support"], settings)
    else:
        content = _write_vtu(points, triangles, lines, values, settings)
    with atomic_write(path) as part:
        part.write_bytes(content)


def triangulate(n_rows: int, n_columns: int) -> Int[np.ndarray, "n_triangles 3"]:
    """Return the triangles between the points of a grid, counterclockwise as seen from above."""
    index = np.arange(n_rows * n_columns, dtype=np.int32).reshape(n_rows, n_columns)
    corners = index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1]
    a, b, c, d = (corner.ravel() for corner in corners)
    return np.concatenate([np.stack([a, b, c], axis=1), np.stack([a, c, d], axis=1)])


def trace_level(
    points: Float[np.ndarray, "n 3"], triangles: Int[np.ndarray, "n_triangles 3"], level: float
) -> list[tuple[Int[np.ndarray, "m 2"], Float[np.ndarray, " m"]]]:
    """Return the lines at which the triangles of a mesh have a height, as edges of the mesh and places on these.

    A place is a share of the way from the first end of an edge to the second. A closed line ends where it begins.
    """
    above = points[triangles, 2] >= level
    sides = np.stack([triangles, np.roll(triangles, -1, axis=1)], axis=-1)  # (n_triangles, 3, 2)
    pairs = np.sort(sides[above != np.roll(above, -1, axis=1)], axis=-1)  # two for each triangle with a line
    edges, which = np.unique(pairs, axis=0, return_inverse=True)
    neighbors: list[list[int]] = [[] for _ in edges]
    for one, other in which.reshape(-1, 2).tolist():
        neighbors[one].append(other)
        neighbors[other].append(one)
    start, stop = points[edges, 2].T
    place = (level - start) / (stop - start)
    ends = sorted(range(len(edges)), key=lambda edge: len(neighbors[edge]))  # those of open lines first
    lines, seen = [], set[int]()
    for first in ends:
        chain, here = [], first
        while here not in seen:
            seen.add(here)
            chain.append(here)
            here = next((edge for edge in neighbors[here] if edge not in seen), first)
        if chain:
            closed = [first] if len(chain) > 2 and first in neighbors[chain[-1]] else []
            lines.append((edges[chain + closed], place[chain + closed]))
    return lines


def close_solid(
    points: Float[np.ndarray, "n 3"], triangles: Int[np.ndarray, "n_triangles 3"]
) -> tuple[Float[np.ndarray, "m 3"], Int[np.ndarray, "m_triangles 3"]]:
    """Return a surface as a solid on a flat base: with walls along its edges and around its holes."""
    n = len(points)
    edges = np.concatenate([triangles[:, [i, (i + 1) % 3]] for i in range(3)])
    lone = ~np.isin(edges[:, 0] * n + edges[:, 1], edges[:, 1] * n + edges[:, 0])  # no triangle on the other side
    a, b = edges[lone].T
    walls = np.concatenate([np.column_stack([b, a, a + n]), np.column_stack([b, a + n, b + n])])
    top = points + np.array([0.0, 0.0, BASE])
    return np.concatenate([top, top * [1, 1, 0]]), np.concatenate([triangles, triangles[:, ::-1] + n, walls])


def pick_colors(share: Float[np.ndarray, " n"]) -> UInt8[np.ndarray, "n 3"]:
    """Return red, green and blue of heights from 0 to 1."""
    table = np.array([list(bytes.fromhex(color)) for color in VIRIDIS.split()])
    at = np.linspace(0, 1, len(table))
    return np.rint(np.stack([np.interp(share, at, column) for column in table.T], axis=1)).astype(np.uint8)


def _write_stl(points: Float[np.ndarray, "n 3"], triangles: Int[np.ndarray, "n_triangles 3"]) -> bytes:
    facets = np.zeros(len(triangles), [("normal", "<3f4"), ("corners", "<9f4"), ("attribute", "<u2")])
    corners = points[triangles]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    facets["normal"] = normals / np.linalg.norm(normals, axis=1, keepdims=True)
    facets["corners"] = corners.reshape(-1, 9)
    return b"loss_viz, in millimeters".ljust(80) + np.uint32(len(facets)).tobytes() + facets.tobytes()


def _write_ply(
    points: Float[np.ndarray, "n 3"],
    triangles: Int[np.ndarray, "n_triangles 3"],
    loss: Float[np.ndarray, " m"],
    support: Float[np.ndarray, " m"],
    settings: str,
) -> bytes:
    kinds = dict.fromkeys("xyz", "<f4") | dict.fromkeys(("red", "green", "blue"), "u1")
    kinds |= {"loss": "<f8", "support": "<f8"}
    vertices = np.zeros(len(points), list(kinds.items()))
    columns = *points.T, *pick_colors(points[:, 2] / BOX[2]).T, loss[: len(points)], support[: len(points)]
    for name, column in zip(kinds, columns, strict=True):
        vertices[name] = column
    faces = np.zeros(len(triangles), [("n", "u1"), ("corners", "<3i4")])
    faces["n"], faces["corners"] = 3, triangles
    header = ["ply", "format binary_little_endian 1.0", f"comment {settings}", f"element vertex {len(vertices)}"]
    words = {"<f4": "float", "<f8": "double", "u1": "uchar"}
    header += [f"property {words[kind]} {name}" for name, kind in kinds.items()]
    header += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header", ""]
    return "\n".join(header).encode("ascii") + vertices.tobytes() + faces.tobytes()


def _write_vtu(points: np.ndarray, triangles: np.ndarray, lines: np.ndarray, values: Any, settings: str) -> bytes:
    root = ElementTree.Element("VTKFile", type="UnstructuredGrid", version="1.0", byte_order="LittleEndian")
    root.append(ElementTree.Comment(settings.replace("--", r"-\u002d")))
    sizes = np.repeat([3, 2], [len(triangles), len(lines)])
    piece = ElementTree.SubElement(
        ElementTree.SubElement(root, "UnstructuredGrid"),
        "Piece",
        NumberOfPoints=str(len(points)),
        NumberOfCells=str(len(sizes)),
    )
    _add_arrays(piece, "PointData", values)
    _add_arrays(piece, "Points", {"points": points})
    cells = {"connectivity": np.append(triangles, lines), "offsets": np.cumsum(sizes)}
    _add_arrays(piece, "Cells", cells | {"types": np.where(sizes == 3, TRIANGLE, LINE)})
    return b'<?xml version="1.0"?>\n' + ElementTree.tostring(root)


def _add_arrays(piece: Any, title: str, arrays: Any) -> None:
    group = ElementTree.SubElement(piece, title)
    for name, array in arrays.items():
        kind, dtype = ("Float64", "<f8") if array.dtype.kind == "f" else ("Int64", "<i8")
        data = array.astype(dtype).tobytes()
        element = ElementTree.SubElement(group, "DataArray", type=kind, Name=name, format="binary")
        element.set("NumberOfComponents", str(array.shape[1] if array.ndim == 2 else 1))
        element.text = base64.b64encode(np.uint32(len(data)).tobytes() + data).decode("ascii")
