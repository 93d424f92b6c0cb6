from itertools import pairwise

import numpy as np
import pytest

from loss_viz.export.rasterizer import Rasterizer

WIDTH, HEIGHT = 23, 17


def random_triangles(seed, n=12):
    rng = np.random.default_rng(seed)
    points = rng.uniform([-6, -6, 0], [WIDTH + 6, HEIGHT + 6, 9], size=(3 * n, 3))
    return points, rng.uniform(0, 255, size=(3 * n, 3)), rng.permutation(3 * n).reshape(n, 3)


def nearest_triangle(points, color, corners, column, row):
    """Return depth and color of the nearest triangle at the center of a pixel, in a loop."""
    nearest, seen = np.inf, np.zeros(3)
    for triangle in corners:
        a, b, c = points[triangle]
        sides = np.column_stack([b[:2] - a[:2], c[:2] - a[:2]])
        u, v = np.linalg.solve(sides, np.array([column + 0.5, row + 0.5]) - a[:2])
        if min(u, v, 1 - u - v) >= 0:
            weights = np.array([1 - u - v, u, v])
            if (depth := weights @ points[triangle, 2]) < nearest:
                nearest, seen = depth, weights @ color[triangle]
    return nearest, seen


@pytest.mark.parametrize("seed", range(4))
def test_every_pixel_shows_the_nearest_triangle(seed):
    points, color, corners = random_triangles(seed)
    rasterizer = Rasterizer(WIDTH, HEIGHT)
    rasterizer.triangles(points, color, corners)
    n_drawn = 0
    for row in range(HEIGHT):
        for column in range(WIDTH):
            depth, seen = nearest_triangle(points, color, corners, column, row)
            assert rasterizer.depth[row, column] == pytest.approx(depth)
            assert rasterizer.color[row, column, 3] == (255 if np.isfinite(depth) else 0)
            if np.isfinite(depth):
                n_drawn += 1
                np.testing.assert_allclose(rasterizer.color[row, column, :3], seen, atol=0.51)
    assert 50 < n_drawn < WIDTH * HEIGHT


def test_order_and_block_size_do_not_matter(monkeypatch):
    points, color, corners = random_triangles(7, n=40)
    images = []
    for block, order in ((2**21, slice(None)), (2**21, slice(None, None, -1)), (50, slice(None)), (1, slice(None))):
        monkeypatch.setattr("loss_viz.export.rasterizer.BLOCK", block)
        rasterizer = Rasterizer(WIDTH, HEIGHT)
        rasterizer.triangles(points, color, corners[order])
        images.append((rasterizer.color, rasterizer.depth))
    for other, depth in images[1:]:
        assert np.array_equal(other, images[0][0])
        assert np.array_equal(depth, images[0][1])


def test_degenerate_triangles_and_those_outside_the_image_are_not_drawn():
    points = np.array([[1.5, 1.5, 1], [5.5, 5.5, 1], [9.5, 9.5, 1], [-9, -9, 1], [-2, -9, 1], [-2, -2, 1.0]])
    rasterizer = Rasterizer(WIDTH, HEIGHT)
    rasterizer.triangles(points, np.full((6, 3), 9.0), np.array([[0, 1, 2], [3, 4, 5], [0, 0, 1]]))
    assert not rasterizer.color.any()


def test_adjacent_triangles_leave_no_gap():
    """Two triangles cover each pixel center of a square, also on their common edge."""
    points = np.array([[2.5, 2.5, 1], [12.5, 2.5, 1], [12.5, 12.5, 1], [2.5, 12.5, 1.0]])
    rasterizer = Rasterizer(WIDTH, HEIGHT)
    rasterizer.triangles(points, np.full((4, 3), 9.0), np.array([[0, 1, 2], [0, 2, 3]]))
    assert (rasterizer.color[..., 3] > 0).sum() == 11 * 11


def distance_to_line(place, points):
    nearest = np.inf
    for a, b in pairwise(points):
        share = np.clip(np.dot(place - a, b - a) / max(np.dot(b - a, b - a), 1e-12), 0, 1)
        nearest = min(nearest, float(np.linalg.norm(a + share * (b - a) - place)))
    return nearest


def test_points_are_shown_unless_something_is_nearer_or_they_are_outside():
    points, color, corners = random_triangles(5)
    rasterizer = Rasterizer(WIDTH, HEIGHT)
    rasterizer.triangles(points, color, corners)
    some = np.random.default_rng(1).uniform([-3, -3, 0], [WIDTH + 3, HEIGHT + 3, 9], size=(400, 3))
    shown = []
    for column, row, depth in some:
        inside = 0 <= column < WIDTH and 0 <= row < HEIGHT
        nearest, _ = nearest_triangle(points, color, corners, int(column), int(row))
        shown.append(inside and depth <= nearest)
    assert 100 < sum(shown) < 300
    assert rasterizer.shows(some).tolist() == shown


def test_a_sphere_is_round_in_depth_and_reports_its_visible_fraction():
    center, gray = np.array([11.5, 8.5, 4.0]), np.full(3, 100.0)

    def light(normal, color):
        np.testing.assert_allclose(np.linalg.norm(normal, axis=1), 1)
        return 100 + 100 * normal

    rasterizer = Rasterizer(WIDTH, HEIGHT)
    assert rasterizer.sphere(center, gray, radius=5.0, bulge=2.0, light=light) == 1
    assert rasterizer.depth[8, 11] == pytest.approx(2)
    assert rasterizer.depth[8, 14] == pytest.approx(4 - 2 * np.sqrt(1 - 9 / 25))
    assert rasterizer.color[8, 11].tolist() == [100, 100, 200, 255]
    assert rasterizer.color[8, 14, :2].tolist() == [160, 100]  # faces right
    assert rasterizer.color[5, 11, :2].tolist() == [100, 160]  # faces up
    behind = np.array([13.5, 8.5, 3.0])
    assert 0 < rasterizer.sphere(behind, gray, radius=5.0, bulge=2.0, light=light) < 1
    assert rasterizer.sphere(np.array([11.5, 8.5, 9.0]), gray, radius=3.0, bulge=1.0, light=light) == 0


def test_a_copy_is_independent():
    rasterizer = Rasterizer(WIDTH, HEIGHT)
    square = np.array([[0.0, 0, 1], [0, 9, 1], [9, 0, 1]])
    rasterizer.triangles(square, np.full((3, 3), 9.0), np.array([[0, 1, 2]]))
    before = rasterizer.color.copy(), rasterizer.depth.copy()
    other = rasterizer.copy()
    other.triangles(square - [0, 0, 0.5], np.full((3, 3), 90.0), np.array([[0, 1, 2]]))
    assert np.array_equal(rasterizer.color, before[0])
    assert np.array_equal(rasterizer.depth, before[1])
    assert other.color[2, 2, 0] == 90
