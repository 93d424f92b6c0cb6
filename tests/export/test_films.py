import builtins
import json
import re
import subprocess
import sys
from dataclasses import replace
from xml.etree import ElementTree

import imageio_ffmpeg
import matplotlib as mpl
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.interpolate import LinearNDInterpolator
from tqdm.auto import tqdm as progress_bar

import loss_viz as lv
from loss_viz.export.page import Page
from loss_viz.export.plots import TICK_STEPS, linear_ticks, set_log_ticks
from loss_viz.export.scene import SUPERSAMPLING, Scene, read_color
from loss_viz.figures import camera, traces
from loss_viz.figures.camera import aim
from loss_viz.figures.loss_axis import BALL_RADIUS, LINE_LIFT, fit_scale
from loss_viz.figures.style import BALL_COLOR, BOX, PATH_COLOR, pick_colors
from loss_viz.landscapes.provenance import read_settings

SIZE = 400, 300
SMALL = {"width": 400, "height": 300}
WHITE = (255, 255, 255)


@pytest.fixture(scope="module")
def land(run):
    return lv.landscape(run, resolution=(13, 9), progress=False)


@pytest.fixture(scope="module")
def no_plateau():
    """Return a landscape without a plateau, whose band may cover a part of the ball."""
    run = lv.train("x^2", steps=60, dtype=torch.float64, progress=False)
    assert not lv.find_plateaus(run)
    return lv.landscape(run, resolution=(13, 9), progress=False)


@pytest.fixture(scope="module")
def race():
    runs = lv.compare("x^3", ["adam", "sgd"], steps=80, progress=False)
    return lv.landscape(runs, resolution=(9, 7), progress=False)


def build_page(land, size=SIZE, **look):
    """Return the page of a film with frames of `size` pixels."""
    dpi = 100 * max(0.6, min(size[0] / 800, size[1] / 600))
    return Page(land, size=(size[0] / dpi, size[1] / dpi), dpi=dpi, **look)


class Pinhole:
    """A pinhole camera: where points of the box appear, up to scale and position, and what hides them."""

    def __init__(self, land, *, log=False, rotate=0.0):
        self.land, self.scale = land, fit_scale([land.loss, land.path_loss], log=log)
        eye = np.array(list(aim(land, self.scale, distance=1.0)["eye"].values()))
        cos, sin = np.cos(np.radians(rotate)), np.sin(np.radians(rotate))
        self.eye = np.array([cos * eye[0] - sin * eye[1], sin * eye[0] + cos * eye[1], eye[2]])
        self.page = build_page(land, log=log, rotations=[rotate])
        self.page._scene.visible()  # reads where the axes are
        x, y = np.meshgrid(land.x, land.y)
        corners = self.to_box(np.column_stack([x.ravel(), y.ravel(), land.loss.ravel()]))
        self.surface = LinearNDInterpolator(corners[:, :2], corners[:, 2])

    def to_box(self, points):
        """Return points (x, y, loss) in units of Plotly's box, centered at 0."""
        drawn = np.column_stack([points[:, :2], self.scale.draw(points[:, 2])])
        room = BALL_RADIUS * (self.scale.high - self.scale.low)
        low = np.array([self.land.x[0], self.land.y[0], self.scale.low - room])
        high = np.array([self.land.x[-1], self.land.y[-1], self.scale.high + 2 * room])
        return ((drawn - low) / (high - low) - 0.5) * list(BOX.values())

    def see(self, points):
        """Return places, to the right and down, and distances along the line of sight to the center of the box."""
        ahead = -self.eye / np.linalg.norm(self.eye)
        right = np.cross(ahead, [0, 0, 1])
        right /= np.linalg.norm(right)
        from_eye = self.to_box(points) - self.eye
        distance = from_eye @ ahead
        down = -np.cross(right, ahead)
        return np.column_stack([from_eye @ right, from_eye @ down]) / distance[:, None], distance

    def hides(self, point, margin=0.03):
        """Return whether the surface is between the eye and a point, apart from the last `margin` before the point."""
        place = self.to_box(point[None])[0]
        way = self.eye - place
        along = np.linspace(margin / np.linalg.norm(way), 1, 400)[:, None] * way + place
        with np.errstate(invalid="ignore"):
            return bool((self.surface(along[:, :2]) > along[:, 2]).any())

    def find(self, points):
        """Return pixels and depth as the scene projects the points."""
        scene = self.page._scene
        found = scene._project(np.column_stack([points[:, :2], self.scale.draw(points[:, 2])]))
        left, top = scene._corner
        return found / [SUPERSAMPLING, SUPERSAMPLING, 1] + [left, SIZE[1] - top, 0]


def ball_center(land, scale, row, lift=0.0):
    return np.append(land.path[row], scale.lift(land.path_loss[row : row + 1], lift))


@pytest.mark.parametrize("rotate", [0.0, 37.0, -120.0])
@pytest.mark.parametrize("log", [False, True])
def test_points_appear_where_the_eye_of_the_interactive_figure_sees_them(land, rotate, log):
    view = Pinhole(land, log=log, rotate=rotate)
    rng = np.random.default_rng(0)
    points = rng.uniform([land.x[0], land.y[0], land.loss.min()], [land.x[-1], land.y[-1], land.loss.max()], (40, 3))
    seen, distance = view.see(points)
    found = view.find(points)
    size = np.ptp(found[:, 0]) / np.ptp(seen[:, 0])
    np.testing.assert_allclose(found[:, :2] - found[0, :2], size * (seen - seen[0]), atol=0.05)
    assert np.array_equal(np.argsort(found[:, 2]), np.argsort(distance))


@pytest.mark.parametrize(
    ("size", "rotations"),
    [((400, 300), [0.0]), *((size, [0.0, 45.0, 135.0]) for size in ((800, 600), (320, 700), (1200, 400)))],
)
def test_the_whole_box_is_visible_between_the_words(land, size, rotations):
    page = build_page(land, size, rotations=rotations)
    scene = page._scene
    ends = np.array([scene.axes.get_xlim(), scene.axes.get_ylim(), scene.axes.get_zlim()])
    corners = np.array(np.meshgrid(*ends)).reshape(3, -1).T
    above, notes = page._caption, page._figure.texts[-1]
    assert "of the variance" in notes.get_text()
    for rotate in rotations:
        assert page.render(60, rotate).size == size
        columns, rows = (scene._project(corners)[:, :2] / SUPERSAMPLING + scene._corner * [1, -1]).T
        assert (columns > 0).all()
        assert (columns < size[0] - 30).all()  # left of the color bar
        assert (-rows < above.get_window_extent().y0).all()
        assert (-rows > notes.get_window_extent().y1).all()


def pixels_around(image, place, reach=1):
    """Return the pixels around a place, one (red, green, blue) per row."""
    column, row = np.floor(place).astype(int)
    pixels = np.asarray(image.convert("RGB")).astype(float)
    return pixels[row - reach : row + reach + 1, column - reach : column + reach + 1].reshape(-1, 3)


def has_hue_of(pixel, color, atol=0.12):
    """Return whether a pixel is a color in more or less light."""
    wanted = read_color(color) / np.linalg.norm(read_color(color))
    return np.abs(pixel / np.linalg.norm(pixel) - wanted).max() < atol


@pytest.fixture
def low_camera(monkeypatch):
    """Aim from 20 degrees above the plane, which from behind hides a part of the run; higher up all of it is seen."""
    monkeypatch.setattr(camera, "ELEVATIONS", np.radians([20]))


@pytest.mark.parametrize("rotate", [0.0, 60.0, 180.0])
def test_the_ball_is_at_the_true_loss_unless_hidden(no_plateau, low_camera, rotate):
    land = no_plateau
    scene = build_page(land, rotations=(rotate,))
    view = Pinhole(land, rotate=rotate)
    n_seen = n_hidden = 0
    for row in range(0, 61, 6):
        still = scene.render(int(land.run.step[row]), rotate)
        middle = ball_center(land, view.scale, row, lift=BALL_RADIUS)
        place = view.find(middle[None])[0, :2]
        orange = [has_hue_of(pixel, BALL_COLOR) for pixel in pixels_around(still, place)]
        if view.hides(middle, margin=0.15):
            n_hidden += 1
            assert not any(orange)
        elif not view.hides(middle, margin=0.0):
            n_seen += 1
            assert np.mean(orange) > 0.6
    assert n_seen >= 4 if rotate < 180 else n_hidden >= 2


@pytest.mark.parametrize("rotate", [0.0, 180.0])
def test_the_line_is_visible_where_it_should_be_and_not_through_the_surface(run, low_camera, rotate):
    land = lv.landscape(run, resolution=(41, 31), progress=False)
    view = Pinhole(land, rotate=rotate)
    still = build_page(land, rotations=(rotate,)).render(60, rotate)
    points = np.array([ball_center(land, view.scale, row, LINE_LIFT) for row in range(61)])
    places = view.find(points)[:, :2]
    in_view = np.array([not view.hides(point) for point in points])
    hidden = np.array([view.hides(point, margin=0.1) for point in points])
    apart = np.linalg.norm(places[:, None] - places, axis=2)
    ball = np.linalg.norm(places - view.find(ball_center(land, view.scale, 60, BALL_RADIUS)[None])[0, :2], axis=1) < 12
    red = [any(has_hue_of(pixel, PATH_COLOR) for pixel in pixels_around(still, place)) for place in places]
    red = np.array(red)
    lonely = hidden & ~(apart[:, ~hidden] < 8).any(axis=1)
    if rotate:
        assert (lonely & ~ball).sum() > 5
        assert not red[lonely & ~ball].any()
    else:
        assert (in_view & ~ball).sum() > 20
        assert red[in_view & ~ball].mean() > 0.9


@pytest.mark.parametrize("log", [False, True])
def test_the_surface_stands_at_the_heights_of_the_landscape(land, log):
    """Each grid point that nothing hides is the nearest point at its pixel."""
    view = Pinhole(land, log=log)
    scene = view.page._scene
    mesh = lv.surface_figure(land, log=log).data[0]
    corners = np.stack([mesh.i, mesh.j, mesh.k], axis=1)
    middles = np.column_stack([mesh.x, mesh.y, view.scale.draw(mesh.z)])[corners].mean(axis=1)
    column, row = np.floor(scene._project(middles)[:, :2]).astype(int).T
    assert (scene._background.color[row, column, 3] == 255).mean() > 0.98  # cells seen edge-on cover no pixel
    n_seen = 0
    for j in range(1, len(land.y) - 1):
        for i in range(1, len(land.x) - 1):
            point = np.array([land.x[i], land.y[j], land.loss[j, i]])
            place = scene._project(np.append(point[:2], view.scale.draw(point[2:]))[None])[0]
            column, row = np.floor(place[:2]).astype(int)
            near = scene._background.depth[row - 1 : row + 2, column - 1 : column + 2]
            if not view.hides(point, margin=0.02) and land.support[j, i] < 0.1 and np.isfinite(near).all():  # inside
                n_seen += 1
                assert near.min() - 1e-3 < place[2] < near.max() + 1e-3
    assert n_seen > 20


def test_the_surface_has_the_colors_of_the_interactive_figure(land):
    """The hues agree at each grid point; the light may differ."""
    view = Pinhole(land)
    still = view.page.render(60)
    mesh = lv.surface_figure(land).data[0]
    alike = []
    for vertex, color in enumerate(mesh.vertexcolor):
        j, i = divmod(vertex, len(land.x))
        point = np.array([mesh.x[vertex], mesh.y[vertex], mesh.z[vertex]])
        inner = 0 < i < len(land.x) - 1 and 0 < j < len(land.y) - 1
        if inner and not view.hides(point, margin=0.02) and land.support[j, i] < 0.1:
            pixel = np.median(pixels_around(still, view.find(point[None])[0, :2]), axis=0)
            alike.append(has_hue_of(pixel, color, atol=0.05))
    assert len(alike) > 20
    assert np.mean(alike) > 0.9


def changed_pixels(page, scene, step, **fields):
    """Return (column, row) of the pixels that differ when fields of the scene do."""
    with_all = np.asarray(page.render(step, page._degrees)).astype(int)
    kept = {name: getattr(scene, name) for name in fields}
    vars(scene).update(fields)
    without = np.asarray(page.render(step, page._degrees)).astype(int)
    vars(scene).update(kept)
    rows, columns = np.nonzero(np.abs(with_all - without).sum(axis=2) > 12)
    return np.column_stack([columns, rows]) + 0.5


NO_NAMES = {"x": np.empty(0), "y": np.empty(0), "z": np.empty(0), "text": []}


@pytest.mark.parametrize("log", [False, True])
def test_level_lines_cross_the_edges_of_the_grid_where_the_loss_is_their_level(run, log):
    land = lv.landscape(run, resolution=(33, 25), progress=False)
    view = Pinhole(land, log=log)
    scene = view.page._scene
    scene._names = NO_NAMES
    nowhere = scene._levels | {"x": np.full(len(scene._levels["x"]), np.nan)}
    pixels = changed_pixels(view.page, scene, 60, _levels=nowhere)
    drawn, crossings = view.scale.draw(land.loss), []
    for level in view.scale.draw(view.scale.levels()):
        for j in range(len(land.y)):
            for i in range(len(land.x)):
                for to_j, to_i in ((j, i + 1), (j + 1, i)):
                    if to_j < len(land.y) and to_i < len(land.x):
                        low, high = drawn[j, i], drawn[to_j, to_i]
                        if (low - level) * (high - level) < 0:
                            t = (level - low) / (high - low)
                            x = land.x[i] + t * (land.x[to_i] - land.x[i])
                            y = land.y[j] + t * (land.y[to_j] - land.y[j])
                            crossings.append([x, y, 10**level if log else level])
    crossings = np.array(crossings)
    places = view.find(crossings)[:, :2]
    assert np.linalg.norm(pixels[:, None] - places, axis=2).min(axis=1).max() < 12  # the size of a cell
    run_there = view.find(np.column_stack([land.path, land.path_loss]))[:, :2]
    clear = np.linalg.norm(places[:, None] - run_there, axis=2).min(axis=1) > 6
    clear &= [not view.hides(point, margin=0.02) for point in crossings]
    clear &= scene._side(crossings[:, 1::-1]) > 0.95
    assert clear.sum() > 20
    nearest = np.linalg.norm(places[clear][:, None] - pixels, axis=2).min(axis=1)
    assert np.mean(nearest < 1.5) > 0.95


def test_names_of_levels_are_written_unless_hidden(run, low_camera):
    land = lv.landscape(run, resolution=(33, 25), progress=False)
    written = []
    for rotate in (0.0, 60.0, 120.0, 240.0, 300.0):
        view = Pinhole(land, log=True, rotate=rotate)
        scene = view.page._scene
        scene._names = Pinhole(land, log=True).page._scene._names  # as in a film that rotates
        names = scene._names
        points = np.column_stack([names["x"], names["y"], names["z"]])
        pixels = changed_pixels(view.page, scene, 60, _names=NO_NAMES)
        for point, place in zip(points, view.find(points)[:, :2], strict=True):
            above = np.abs(pixels - place - [0, -5]).max(axis=1) < 6
            if view.hides(point, margin=0.02) == view.hides(point, margin=0.06):  # in doubt neither is checked
                assert above.any() != view.hides(point, margin=0.02)
                written.append(above.any())
    assert any(written)
    assert not all(written)


def test_a_ball_casts_a_shadow_where_it_touches_the_surface(no_plateau, monkeypatch):
    view = Pinhole(no_plateau)
    page, scene = view.page, view.page._scene
    rows = np.abs(view.scale.fraction(no_plateau.path_loss) - view.scale.fraction(no_plateau.path_height))
    touching = int(rows[20:].argmin()) + 20
    far = replace(no_plateau, path_height=no_plateau.path_loss + 3 * BALL_RADIUS * (view.scale.high - view.scale.low))
    with_shadow = np.asarray(page.render(touching)).astype(int)
    with monkeypatch.context() as patch:
        patch.setattr(traces, "SHADOW_DEPTH", 0.0)
        without = np.asarray(page.render(touching)).astype(int)
    changed = np.argwhere(with_shadow != without)
    assert len(changed) > 30
    assert (with_shadow <= without + 1).all()
    assert (with_shadow - without).min() < -20
    center = view.find(ball_center(no_plateau, view.scale, touching)[None])[0, :2]
    radius = scene._place_ball(touching)[1] / SUPERSAMPLING
    assert np.linalg.norm(changed[:, 1::-1] + 0.5 - center, axis=1).max() < 2 * radius + 2
    scene._landscape = far
    far_above = np.asarray(page.render(touching))
    monkeypatch.setattr(traces, "SHADOW_DEPTH", 0.0)
    np.testing.assert_array_equal(np.asarray(page.render(touching)), far_above)


def draw_alone(land, **look):
    """Return which rasterized pixels the surface covers."""
    scene = build_page(land, **look)._scene
    scene.visible()
    return scene._background.color[..., 3] > 0


def test_the_surface_is_open_where_the_loss_is_not_finite(land):
    """From above, so that nothing else is behind the holes: 12 and one points, and the triangles around them."""
    loss = land.loss.copy()
    loss[2:5, 3:7] = np.nan
    loss[6, 9] = np.inf
    page = build_page(replace(land, loss=loss))
    scene = page._scene
    scene.axes.view_init(elev=89.9, azim=-90)
    scene.visible()
    covered = scene._background.color[..., 3] > 0
    n_open = 0
    for j in range(len(land.y) - 1):
        for i in range(len(land.x) - 1):
            for corners in ([(j, i), (j, i + 1), (j + 1, i + 1)], [(j, i), (j + 1, i + 1), (j + 1, i)]):
                heights = [loss[corner] for corner in corners]
                closed = bool(np.isfinite(heights).all())
                middle = np.mean([[land.x[i], land.y[j]] for j, i in corners], axis=0)
                height = np.mean([land.loss[corner] for corner in corners])
                column, row = np.floor(scene._project(np.append(middle, height)[None])[0, :2]).astype(int)
                assert covered[row, column] == closed
                n_open += not closed
    assert n_open > 30
    assert page.render(30).size == SIZE


def test_min_support_opens_the_surface(land):
    full, cut = (draw_alone(land, min_support=least).sum() for least in (0.0, 0.3))
    assert 0 < cut < 0.6 * full


def frame_steps(land, n_frames):
    return [int(frame.name) for frame in lv.animate(land, n_frames=n_frames).frames]


def read_gif(path):
    with Image.open(path) as film:
        frames, durations = [], []
        for i in range(film.n_frames):
            film.seek(i)
            frames.append(film.convert("RGB"))
            durations.append(film.info["duration"])
        return frames, durations, film.info


N_FRAMES = 9


@pytest.fixture(scope="module")
def gif(land, tmp_path_factory):
    """Return the frames of a film of 9 steps, their durations, and what else the file states."""
    path = tmp_path_factory.mktemp("gif") / "film.gif"
    return read_gif(lv.export_gif(land, path, n_frames=N_FRAMES, **SMALL, duration=80, last_frame=900))


@pytest.fixture(scope="module")
def stills(land):
    """Return the pictures of these steps, drawn one after another."""
    scene = build_page(land)
    return np.stack([np.asarray(scene.render(step)) for step in frame_steps(land, N_FRAMES)])


def test_a_gif_contains_the_still_of_each_chosen_step(gif, stills):
    frames, durations, info = gif
    assert len(frames) == len(stills) == 9
    assert durations == [80] * 8 + [900]
    assert info["loop"] == 0
    for frame, still in zip(frames, stills, strict=True):
        assert frame.size == SIZE
        difference = np.abs(np.asarray(frame).astype(int) - still)
        assert difference.mean() < 2.5
        assert np.percentile(difference, 99.5) < 40
        assert frame.getpixel((2, 150)) == WHITE


def test_what_does_not_move_does_not_flicker(gif, stills):
    frames, _, _ = gif
    pixels = np.stack([np.asarray(frame) for frame in frames])
    still = (stills == stills[0]).all(axis=(0, 3))
    assert 0.9 < still.mean() < 0.999
    assert (pixels == pixels[0]).all(axis=(0, 3))[still].all()


def test_the_ball_keeps_its_color_in_a_gif(land, gif):
    frames, _, _ = gif
    view = Pinhole(land)
    n_seen = 0
    for frame, step in zip(frames, frame_steps(land, N_FRAMES), strict=True):
        middle = ball_center(land, view.scale, step, BALL_RADIUS)
        if not view.hides(middle, margin=0.0):
            n_seen += 1
            pixels = pixels_around(frame, view.find(middle[None])[0, :2])
            assert np.mean([has_hue_of(pixel, BALL_COLOR, atol=0.15) for pixel in pixels]) > 0.5
    assert n_seen > 5


def test_several_runs_have_balls_in_their_own_colors(race, tmp_path):
    frames, _, _ = read_gif(lv.export_gif(race, tmp_path / "race.gif", n_frames=7, **SMALL))
    view = Pinhole(race)
    steps = frame_steps(race, 7)
    assert len(frames) == len(steps)
    n_seen = 0
    for frame, step in zip(frames, steps, strict=True):
        middles = np.array([ball_center(race, view.scale, row, BALL_RADIUS) for row in race.run_set.nearest_rows(step)])
        places = view.find(middles)[:, :2]
        if np.linalg.norm(places[0] - places[1]) > 12:  # neither ball hides the other
            for middle, place, color in zip(middles, places, pick_colors(2), strict=True):
                if not view.hides(middle, margin=0.0):
                    n_seen += 1
                    hues = [has_hue_of(pixel, color, atol=0.2) for pixel in pixels_around(frame, place)]
                    assert np.mean(hues) > 0.5
    assert n_seen >= 5


def test_a_film_may_rotate(land, tmp_path):
    path = lv.export_gif(land, tmp_path / "film.gif", n_frames=3, **SMALL, rotate=90.0)
    frames, _, _ = read_gif(path)
    scene = build_page(land, rotations=[0.0, 45.0, 90.0])
    for i, (frame, step) in enumerate(zip(frames, frame_steps(land, 3), strict=True)):
        difference = np.abs(np.asarray(frame).astype(int) - np.asarray(scene.render(step, 45.0 * i)))
        assert difference.mean() < 3


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # imageio leaves its pipe open
def test_a_video_contains_the_same_stills(land, stills, tmp_path):
    path = lv.export_mp4(land, tmp_path / "film.mp4", n_frames=N_FRAMES, **SMALL, duration=100, last_frame=500)
    reader = imageio_ffmpeg.read_frames(str(path))
    about = next(reader)
    frames = [np.frombuffer(frame, np.uint8).reshape(300, 400, 3) for frame in reader]
    assert about["size"] == SIZE
    assert about["codec"] == "h264"
    assert about["fps"] == pytest.approx(10)
    assert len(frames) == 9 + 4
    for frame, still in zip(frames, [*stills, *[stills[-1]] * 4], strict=True):
        assert np.abs(frame.astype(int) - still).mean() < 4


def test_the_caption_states_step_loss_and_surface(land):
    page = build_page(land)
    page.render(13)
    factor = lv.fidelity(land).factor[13]
    caption = page._caption.get_text().replace("\n", " ")
    assert caption == (
        f"step 13, true loss {land.path_loss[13]:.4g}, surface {land.path_height[13]:.4g} (×{factor:.2f})"
    )


def test_the_caption_of_several_runs_states_their_losses(race):
    page = build_page(race)
    page.render(40)
    adam, sgd = (run.loss[40] for run in race.runs)
    caption = page._caption.get_text().replace("\n", " ").replace(" (hidden)", "")
    assert caption == f"step 40, true loss: Adam {adam:.4g}, SGD + momentum {sgd:.4g}"


def test_the_caption_says_that_the_ball_is_hidden(run):
    sunk = lv.landscape(run, resolution=(13, 9), progress=False)
    page = build_page(replace(sunk, loss=sunk.loss + 0.5 * np.ptp(sunk.loss)))
    page.render(30)
    assert page._caption.get_text().replace("\n", " ").endswith("; the ball is hidden")


def test_the_height_has_its_name():
    run = lv.train("x^2", steps=40, progress=False)
    metrics = {"first weight": lambda model: next(model.parameters())[0, 0]}
    land = lv.landscape(run, resolution=(6, 5), metrics=metrics, progress=False).metric("first weight")
    page = build_page(land)
    assert page._scene.axes.get_zlabel() == "first weight"
    assert "true first weight" in page._caption.get_text().replace("\n", " ")


def test_names_are_shown_verbatim(race, tmp_path):
    names = {"<b>$x^2_a$ & σ": race.runs[0], "cost $5, é": race.runs[1]}
    named = lv.landscape(names, resolution=(5, 4), progress=False)
    assert lv.export_gif(named, tmp_path / "names.gif", **SMALL, n_frames=2).is_file()
    settings = read_settings(tmp_path / "names.gif")
    assert [run["name"] for run in settings["runs"]] == list(names)
    [legend] = build_page(named)._figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(names)


@pytest.mark.parametrize(("low", "high"), [(-7, 2), (-0.9, 0.3), (-0.62, -0.55), (-30, 31), (0, 1)])
def test_logarithmic_axes_have_ticks_at_round_losses(low, high):
    axis = mpl.figure.Figure().add_subplot().yaxis
    set_log_ticks(axis, float(low), float(high), n=5)
    places = [place for place in axis.get_major_locator().tick_values(low, high) if low <= place <= high]
    assert 2 <= len(places) <= 8
    labels = [axis.get_major_formatter()(place, 0) for place in places]
    np.testing.assert_allclose([float(label) for label in labels], 10.0 ** np.array(places), rtol=0.01)
    if high - low > 0.5:
        assert all(len(label.replace(".", "").strip("0").split("e")[0]) == 1 for label in labels)


@pytest.mark.parametrize(
    ("low", "high"), [(-0.3, 7.7), (1e-30, 4e-30), (1e4, 1e4 + 1e-3), (-2.9e303, 1.31e308), (1e306, 1.79e308)]
)
def test_axes_have_ticks_at_round_numbers_of_any_size(low, high):
    places = np.array(linear_ticks(low, high, n=5))
    assert 3 <= len(places) <= 7
    assert low <= places[0] < places[-1] <= high
    steps = np.diff(places)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)
    digits = float(f"{steps[0]:e}".split("e")[0])
    assert np.abs(digits - np.array(TICK_STEPS)).min() < 1e-6


def test_the_users_matplotlib_style_is_neither_used_nor_changed(land):
    plain = build_page(land).render(20)
    with mpl.rc_context():
        mpl.style.use("dark_background")
        mpl.rcParams["font.size"] = 30
        before = dict(mpl.rcParams)
        dark = build_page(land).render(20)
        assert dict(mpl.rcParams) == before
    assert plain.tobytes() == dark.tobytes()


EXPORTS = {"film.gif": lv.export_gif, "film.mp4": lv.export_mp4}
EXPORTS |= {f"figure.{kind}": lv.export_image for kind in ("png", "pdf", "svg")}
FEW = {name: SMALL | ({"dpi": 60} if "figure" in name else {"n_frames": 4}) for name in EXPORTS}


@pytest.mark.parametrize("name", EXPORTS)
def test_the_settings_in_a_file_reproduce_the_file(name, tmp_path):
    run = lv.train("x^2", steps=40, seed=3, progress=False)
    land = lv.landscape(run, k=3, sigma=0.08, resolution=(6, 5), progress=False)
    export = EXPORTS[name]
    more = {"step": 17, "kind": "both", "notes": True, "width": "120mm"} if "figure" in name else {"duration": 90}
    chosen = FEW[name] | more | {"rotate": 20.0}
    path = export(land, tmp_path / name, **chosen, log=True, min_support=0.01)
    settings = read_settings(path)
    assert {key: settings[key] for key in land.settings} == land.settings
    assert settings["export"] == EXPORTS[name].__name__
    assert chosen.items() <= settings["view"].items()
    again = lv.reproduce(path, progress=False)
    for array in ("x", "y", "loss", "path_height", "path_loss"):
        assert np.array_equal(getattr(again, array), getattr(land, array))
    other = getattr(lv, settings["export"])(again, tmp_path / f"again-{name}", **settings["view"])
    assert other.read_bytes() == path.read_bytes()


def test_settings_are_where_other_tools_look_for_them(land, tmp_path):
    gif, mp4, png, pdf, svg = (EXPORTS[name](land, tmp_path / name, **FEW[name]) for name in EXPORTS)
    assert b"/Keywords (" in pdf.read_bytes()
    [keywords] = ElementTree.parse(svg).iter("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}li")
    assert json.loads(keywords.text) == read_settings(svg)
    with Image.open(gif) as image:
        assert json.loads(image.info["comment"]) == read_settings(gif)
    with Image.open(png) as image:
        assert json.loads(image.text["loss_viz"]) == read_settings(png)
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(mp4), "-f", "ffmetadata", "-"]
    metadata = subprocess.run(ffmpeg, capture_output=True, text=True, check=True).stdout
    [comment] = re.findall(r"^comment=(.*)$", metadata, re.MULTILINE)
    assert json.loads(re.sub(r"\\([=;#\\])", r"\1", comment)) == read_settings(mp4)


def test_reproduce_takes_runs_that_train_cannot_make(tmp_path):
    run = lv.train(lambda x: x.sin() + x, steps=30, progress=False)
    land = lv.landscape(run, resolution=4, progress=False)
    path = lv.export_image(land, tmp_path / "figure.pdf", dpi=50)
    with pytest.raises(ValueError, match=r"`train` cannot make the run .* again") as error:
        lv.reproduce(path)
    assert "runs=load_run(...)" in str(error.value)
    assert np.array_equal(lv.reproduce(path, runs=run, progress=False).loss, land.loss)


def test_reproduce_warns_if_the_result_differs(land):
    settings = json.loads(land.to_json())
    settings["runs"][0]["train"]["seed"] += 1
    with pytest.warns(RuntimeWarning, match=re.escape(f"was {land.path_loss[0]:.4g} to")):
        lv.reproduce(settings, progress=False)
    settings = json.loads(land.to_json()) | {"complete": False}
    with pytest.warns(RuntimeWarning, match="was interrupted"):
        lv.reproduce(settings, progress=False)


def test_files_without_settings_are_refused(land, tmp_path):
    path = tmp_path / "other.gif"
    Image.new("P", (5, 5)).save(path, comment=b"hello")
    with pytest.raises(ValueError, match="holds no settings of loss_viz"):
        read_settings(path)
    text = land.to_json()
    (tmp_path / "half.json").write_text(text[: len(text) // 2])
    with pytest.raises(ValueError, match="or only a part of them"):
        read_settings(tmp_path / "half.json")
    (tmp_path / "later.json").write_text(text.replace('"version": 2', '"version": 3'))
    with pytest.raises(ValueError, match="version 3, this is version 2"):
        read_settings(tmp_path / "later.json")
    with pytest.raises(FileNotFoundError, match="There is no file"):
        read_settings(tmp_path / "none.png")


@pytest.mark.parametrize("name", EXPORTS)
def test_an_interruption_leaves_the_folder_as_it_was(land, tmp_path, monkeypatch, name):
    draw, drawn = Scene.draw, []

    def interrupt(scene, renderer):
        drawn.append(renderer)
        if len(drawn) == {"film.gif": 7, "film.mp4": 3}.get(name, 1):  # a GIF renders 4 samples first
            raise error
        draw(scene, renderer)

    monkeypatch.setattr(Scene, "draw", interrupt)
    for error, before in ((OSError, []), (KeyboardInterrupt, [b"what was there"])):
        drawn.clear()
        for content in before:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(error):
            EXPORTS[name](land, tmp_path / name, **FEW[name])
        assert [file.read_bytes() for file in tmp_path.iterdir()] == before


def test_a_full_disk_leaves_nothing(land, tmp_path, monkeypatch):
    def fill_up(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("loss_viz._files.os.fsync", fill_up)
    for name, export in EXPORTS.items():
        with pytest.raises(OSError, match="No space left"):
            export(land, tmp_path / name, **FEW[name] | ({"n_frames": 2} if "film" in name else {}))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "chosen", "cause", "repair"),
    [
        ("film.webp", {}, "`path` must end in .gif, got '", "A still is written by export_image"),
        ("film.gif", {"n_frames": 1}, "`n_frames` must be a whole number from 2 to 10000, got 1", "Use 60"),
        ("film.gif", {"width": 100}, "`width` must be a whole number from 320 to 4096, got 100", "use 800 x 600"),
        ("film.gif", {"height": 5000}, "`height` must be a whole number from 240 to 4096, got 5000", "use 800 x 600"),
        ("film.gif", {"duration": 5}, "`duration` must be a whole number from 20 to 10000, got 5", "use 60"),
        ("film.gif", {"last_frame": -1}, "`last_frame` must be a whole number from 0 to 60000, got -1", "use 1500"),
        ("film.mp4", {"width": 401}, "even `width` and `height`, got 401 x 300", "Add a pixel"),
    ],
)
def test_errors_state_cause_and_repair(land, tmp_path, name, chosen, cause, repair):
    export = EXPORTS.get(name, lv.export_gif)
    with pytest.raises(ValueError, match=re.escape(cause)) as error:
        export(land, tmp_path / name, **SMALL | chosen)
    assert repair in str(error.value)
    assert not list(tmp_path.iterdir())


def test_paths_that_cannot_be_written_are_refused_before_any_rendering(land, tmp_path, monkeypatch):
    monkeypatch.setattr(Page, "__init__", lambda *_, **__: pytest.fail("rendering has begun"))
    (tmp_path / "folder.gif").mkdir()
    with pytest.raises(IsADirectoryError, match=r"is a folder\. Add a file name"):
        lv.export_gif(land, tmp_path / "folder.gif")
    with pytest.raises(FileNotFoundError, match=r"must be in a folder, .*missing' is not one\. Create it"):
        lv.export_mp4(land, tmp_path / "missing" / "film.mp4")
    monkeypatch.setattr("loss_viz._files.os.access", lambda *_: False)
    with pytest.raises(PermissionError, match=r"must be in a writable folder, .* Choose another"):
        lv.export_image(land, tmp_path / "figure.pdf")


@pytest.mark.parametrize(
    ("name", "missing"), [("film.gif", "matplotlib"), ("film.mp4", "imageio_ffmpeg"), ("figure.pdf", "matplotlib")]
)
def test_missing_packages_are_named_with_the_command_that_installs_them(land, tmp_path, monkeypatch, name, missing):
    own = [
        module for module in sys.modules if module.startswith(("loss_viz.export.p", "loss_viz.export.scene", missing))
    ]
    for module in own:
        monkeypatch.delitem(sys.modules, module)
    import_all = builtins.__import__

    def import_less(asked, *args, **more):
        if asked.split(".")[0] == missing:
            raise ModuleNotFoundError(f"No module named {missing!r}")
        return import_all(asked, *args, **more)

    monkeypatch.setattr(builtins, "__import__", import_less)
    with pytest.raises(ImportError, match=re.escape(f"No module named {missing!r}")) as error:
        EXPORTS[name](land, tmp_path / name)
    assert str(error.value).endswith('Install it with: pip install "loss_viz[film]"')


def test_a_film_without_notes_says_what_the_run_does(post_runs, race):
    run = post_runs["x^3"].cut(slice(None, None, 20))
    land = lv.landscape(run, resolution=5, plane="flat", progress=False)
    page = build_page(land, notes=False, headline=True)
    width = page._figure.bbox.width
    for step, said in (
        (560, "Step 560 of 2,000: stuck. All it has learned is the best straight line."),
        (2000, "learned"),
    ):
        page.render(step)
        assert said in page._headline.get_text()
        assert page._caption.get_text().startswith(f"true loss {land.path_loss[step // 20]:.4g}, surface")
        assert page._headline.get_window_extent().width < width
    page = build_page(race, notes=False, headline=True)
    page.render(40)
    assert page._headline.get_text() == "Step 40 of 80"


def test_progress_bars_can_be_turned_off(land, tmp_path, monkeypatch):
    bars = []

    class Bar(progress_bar):
        def __init__(self, **options):
            super().__init__(**options)
            bars.append((options["desc"], options["total"], options["disable"]))

    monkeypatch.setattr("loss_viz.export.films.progress_bar", Bar)
    lv.export_gif(land, tmp_path / "film.gif", **SMALL, n_frames=5)
    lv.export_mp4(land, tmp_path / "film.mp4", **SMALL, n_frames=5, progress=False)
    assert bars == [("film.gif", 10, False), ("film.mp4", 5, True)]
