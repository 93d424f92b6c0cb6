from itertools import pairwise

import loss_viz.rasterizer
import numpy as np
import pytest

from loss_viz.export.rasterizer import Rasterizer

WIDTH, HEIGHT = 23, 17


def random_triangles(seed, n=12):
    rng = np.random.default_rng(seed)
    points = rng.uniform([-6, -6, 0], [WIDTH + 6, HEIGHT + 6, 9], size=(3 * n, 3))
    return points, rng.uniform(0, 255, size=(3 * n, 3)), rng.permutation(3 * n).reshape(n, 3)


def look_through(points, color, corners, column, row):
    """The nearest triangle at the middle of a pixel, one by one: its depth and colour."""
    nearest, seen = np.inf, np.zeros(3)
    for triangle in corners:
        a, b, c = points[triangle]
        sides = np.column_stack([b[:2] - a[:2], c[:2] - a[:2]])
        u, v = np.linalg.solve(sides, np.array([column + 0.5, row + 0.5]) - a[:2])
        if min(u, v, 1 - u - v) >= 0:
            share = np.array([1 - u - v, u, v])
            if (depth := share @ points[triangle, 2]) < nearest:
                nearest, seen = depth, share @ color[triangle]
    return nearest, seen


@pytest.mark.parametrize("seed", range(4))
def test_every_pixel_shows_the_nearest_triangle(seed):
    points, color, corners = random_triangles(seed)
    rasterizer = Rasterizer(WIDTH, HEIGHT)
    rasterizer.fill(points, color, corners)
    n_drawn = 0
    for row in range(HEIGHT):
        for column in range(WIDTH):
            depth, seen = look_through(points, color, corners, column, row)
            assert rasterizer.depth[row, column] == pytest.approx(depth)
            assert rasterizer.color[row, column, 3] == (255 if np.isfinite(depth) else 0)
            if np.isfinite(depth):
                n_drawn += 1
                np.testing.assert_allclose(rasterizer.color[row, column, :3], seen, atol=0.51)
    assert 50 < n_drawn < WIDTH * HEIGHT


def test_order_and_blocks_do_not_matter(monkeypatch):
    points, color, corners = random_triangles(7, n=40)
    stroke = np.random.default_rng(3).uniform([0, 0, 0], [WIDTH, HEIGHT, 9], size=(9, 3))
    red = np.tile([255.0, 0, 0], (9, 1))
    pictures = []
    for block, order in ((2**21, slice(None)), (2**21, slice(None, None, -1)), (50, slice(None)), (1, slice(None))):
        monkeypatch.setattr(loss_viz.rasterizer, "BLOCK", block)
        rasterizer = Rasterizer(WIDTH, HEIGHT)
        if order.step:
            rasterizer.stroke(stroke, red, radius=1.5)
        rasterizer.fill(points, color, corners[order])
        if not order.step:
            rasterizer.stroke(stroke, red, radius=1.5)
        pictures.append((rasterizer.color, rasterizer.depth))
    for other, depth in pictures[1:]:
        assert np.array_equal(other, pictures[0][0])
        assert np.array_equal(depth, pictures[0][1])


def test_triangles_that_are_lines_or_beside_the_picture_are_not_seen():
    points = np.array([[1.5, 1.5, 1], [5.5, 5.5, 1], [9.5, 9.5, 1], [-9, -9, 1], [-2, -9, 1], [-2, -2, 1.0]])
    rasterizer = Rasterizer(WIDTH, HEIGHT)
    rasterizer.fill(points, np.full((6, 3), 9.0), np.array([[0, 1, 2], [3, 4, 5], [0, 0, 1]]))
    assert not rasterizer.color.any()


def test_a_neighbour_begins_where_a_triangle_ends():
    """The middle of each pixel of a square of two triangles is covered, that on the seam too."""
    points = np.array([[2.5, 2.5, 1], [12.5, 2.5, 1], [12.5, 12.5, 1], [2.5, 12.5, 1.0]])
    rasterizer = Rasterizer(WIDTH, HEIGHT)
    rasterizer.fill(points, np.full((4, 3), 9.0), np.array([[0, 1, 2], [0, 2, 3]]))
    assert (rasterizer.color[..., 3] > 0).sum() == 11 * 11


def distance_to_line(place, points):
    nearest = np.inf
    for a, b in pairwise(points):
        share = np.clip(np.dot(place - a, b - a) / max(np.dot(b - a, b - a), 1e-12), 0, 1)
        nearest = min(nearest, float(np.linalg.norm(a + share * (b - a) - place)))
    return nearest


def test_a_line_is_as_wide_as_it_is_said_to_be():
    points = np.array([[3.0, 4.0, 1.0], [15.0, 6.5, 2.0], [15.0, 6.5, 2.0], [9.0, 13.0, 3.0]])
    rasterizer = Rasterizer(WIDTH, HEIGHT)
    rasterizer.stroke(points, np.array([[0, 0, 0], [100, 0, 0], [100, 0, 0], [200, 0, 0.0]]), radius=2.0)
    for row in range(HEIGHT):
        for column in range(WIDTH):
            distance = distance_to_line(np.array([column + 0.5, row + 0.5]), points[:, :2])
            if abs(distance - 2) > 0.35:  # it is drawn as discs a pixel apart, which may miss the point of a bend
                assert (rasterizer.color[row, column, 3] > 0) == (distance < 2)
    middle = rasterizer.color[5, 9]
    assert 30 < middle[0] < 55  # of the tip that is nearest, within its radius
    assert rasterizer.depth[5, 9] == pytest.approx(1.5, abs=0.2)


def test_a_line_breaks_where_it_is_not_known():
    points = np.array([[2.5, 2.5, 1], [6.5, 2.5, 1], [np.nan] * 3, [12.5, 2.5, 1], [16.5, 2.5, 1]])
    rasterizer = Rasterizer(WIDTH, HEIGHT)
    rasterizer.stroke(points, np.full((5, 3), 9.0), radius=0.6)
    assert np.flatnonzero(rasterizer.color[2, :, 3]).tolist() == [2, 3, 4, 5, 6, 12, 13, 14, 15, 16]
    empty = Rasterizer(WIDTH, HEIGHT)
    for none in (np.empty((0, 3)), np.full((3, 3), np.nan)):
        empty.stroke(none, none, radius=2.0)
    assert not empty.color.any()


def test_flat_paint_hides_nothing_and_is_hidden():
    wall = np.array([[10.0, 0, 1], [23, 0, 1], [23, 17, 1], [10, 17, 1]])
    line = np.array([[2.5, 8.5, 2], [20.5, 8.5, 2.0]])
    rasterizer = Rasterizer(WIDTH, HEIGHT)
    rasterizer.fill(wall, np.full((4, 3), 50.0), np.array([[0, 1, 2], [0, 2, 3]]))
    rasterizer.stroke(line, np.full((2, 3), 100.0), radius=3.0, flat=True)
    rasterizer.stroke(line + np.array([0, 0, 5]), np.full((2, 3), 200.0), radius=0.6)  # farther, and drawn later
    assert rasterizer.color[8, 5, 0] == 200
    assert rasterizer.color[10, 5, 0] == 100
    assert rasterizer.color[8, 15, 0] == 50


def test_a_ball_is_round_in_depth_and_tells_how_much_of_it_is_seen():
    middle, grey = np.array([11.5, 8.5, 4.0]), np.full(3, 100.0)

    def light(normal, color):
        np.testing.assert_allclose(np.linalg.norm(normal, axis=1), 1)
        return 100 + 100 * normal

    rasterizer = Rasterizer(WIDTH, HEIGHT)
    assert rasterizer.ball(middle, grey, radius=5.0, bulge=2.0, light=light) == 1
    assert rasterizer.depth[8, 11] == pytest.approx(2)
    assert rasterizer.depth[8, 14] == pytest.approx(4 - 2 * np.sqrt(1 - 9 / 25))
    assert rasterizer.color[8, 11].tolist() == [100, 100, 200, 255]
    assert rasterizer.color[8, 14, :2].tolist() == [160, 100]  # looks to the right
    assert rasterizer.color[5, 11, :2].tolist() == [100, 160]  # looks upwards
    behind = np.array([13.5, 8.5, 3.0])
    assert 0 < rasterizer.ball(behind, grey, radius=5.0, bulge=2.0, light=light) < 1
    assert rasterizer.ball(np.array([11.5, 8.5, 9.0]), grey, radius=3.0, bulge=1.0, light=light) == 0


def test_a_copy_is_drawn_on_alone():
    rasterizer = Rasterizer(WIDTH, HEIGHT)
    rasterizer.stroke(np.array([[2.5, 2.5, 1.0]]), np.full((1, 3), 9.0), radius=1.0)
    before = rasterizer.color.copy(), rasterizer.depth.copy()
    other = rasterizer.copy()
    other.stroke(np.array([[2.5, 2.5, 0.5]]), np.full((1, 3), 90.0), radius=4.0)
    assert np.array_equal(rasterizer.color, before[0])
    assert np.array_equal(rasterizer.depth, before[1])
    assert other.color[2, 2, 0] == 90
