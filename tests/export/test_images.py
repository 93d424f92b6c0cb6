"""Figures for papers. PDF and SVG files are read by the plain rules of their formats."""

import base64
import io
import re
import zlib
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

import loss_viz as lv
from loss_viz.export.images import read_length
from loss_viz.export.page import Page
from loss_viz.export.plots import choose_levels, round_logs
from loss_viz.landscapes.provenance import read_settings

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def land(run):
    return lv.landscape(run, resolution=(13, 9), progress=False)


@pytest.fixture(scope="module")
def race():
    runs = lv.compare("x^3", ["adam", "sgd"], steps=80, progress=False)
    return lv.landscape(runs, resolution=(9, 7), progress=False)


def read_svg(path):
    """Return the root, the texts with their sizes in pixels, and the number of images."""
    root = ElementTree.parse(path).getroot()
    texts = [("".join(text.itertext()), text.get("style", "")) for text in root.iter(f"{SVG}text")]
    sizes = {words: float(re.search(r"([\d.]+)px", style)[1]) for words, style in texts}
    return root, sizes, len(list(root.iter(f"{SVG}image")))


def read_pdf(path):
    """Return the size of the page in points, its drawing commands, and the whole file."""
    data = path.read_bytes()
    box = re.search(rb"/MediaBox \[([^]]*)\]", data)[1].split()
    commands = zlib.decompressobj().decompress(re.search(rb"stream\r?\n(.*?)endstream", data, re.DOTALL)[1])
    return [float(edge) for edge in box[2:]], commands, data


@pytest.mark.parametrize(
    ("width", "inches"),
    [
        ("85mm", 85 / 25.4),
        ("3.35in", 3.35),
        ("8.5 cm", 8.5 / 2.54),
        ("240pt", 240 / 72),
        (480, 5.0),
        ("double", 180 / 25.4),
    ],
)
def test_lengths_are_in_inches(width, inches):
    assert read_length("width", width) == pytest.approx(inches)


@pytest.mark.parametrize(("width", "inches"), [(480, 5.0), ("double", 180 / 25.4)])
def test_a_figure_is_as_wide_as_asked(land, tmp_path, width, inches):
    path = lv.export_image(land, tmp_path / "figure.pdf", kind="contour", width=width, height="60mm")
    size, _, _ = read_pdf(path)
    assert size == pytest.approx([72 * inches, 60 / 25.4 * 72], abs=0.01)


def test_a_png_has_the_resolution_asked_for(land, tmp_path):
    path = lv.export_image(land, tmp_path / "figure.PNG", width="3in", height="2in", dpi=120)
    with Image.open(path) as image:
        assert image.size == (360, 240)
        assert image.info["dpi"] == pytest.approx((120, 120), rel=0.01)


@pytest.mark.parametrize(("kind", "log"), [("surface", True), ("contour", True), ("both", False)])
def test_text_and_lines_are_vectors(land, tmp_path, kind, log):
    path = lv.export_image(land, tmp_path / "figure.svg", kind=kind, log=log, dpi=60, font_size=9.0)
    root, sizes, n_images = read_svg(path)
    assert n_images == {"surface": 1, "contour": 1, "both": 2}[kind]
    assert any(words.startswith("PC1 (") for words in sizes)
    assert ("loss" in sizes) == (kind != "contour")
    assert min(sizes.values()) == pytest.approx(0.85 * 9)  # the numbers on the axes
    assert max(sizes.values()) == pytest.approx(9)
    red = [path for path in root.iter(f"{SVG}path") if "#e8112d" in path.get("style", "")]
    assert sum(path.get("d").count("L") for path in red) > 20  # the run
    _, commands, data = read_pdf(lv.export_image(land, tmp_path / "figure.pdf", kind=kind, log=log, dpi=60))
    assert b"/Type /Font" in data
    assert b"/FontFile2" in data  # TrueType, as journals want it
    assert b"/Type3" not in data
    assert commands.count(b"BT") > 5  # blocks of text


def test_texts_do_not_overlap_at_column_width(land, race):
    for one, logs in ((land, {"surface": True, "contour": False}), (race, {"surface": False, "contour": True})):
        for kind, log in (logs | {"both": one is land}).items():
            width = 180 if kind == "both" else 85
            size = width / 25.4, width / 25.4 * (0.42 if kind == "both" else 0.76)
            page = Page(one, kind=kind, size=size, dpi=100.0, log=log, notes=False, font_size=8.0, line_width=1.2)
            page.render(40)
            assert_apart(page._figure)


def assert_apart(figure):
    """Check that all texts lie on the page, and that none covers a part of another, turned as they are."""
    beyond = set()  # ticks beyond the ends of an axis, which are not drawn
    for axis in figure.findobj(mpl.axis.Axis):
        low, high = sorted(axis.get_view_interval())
        beyond |= {tick.label1 for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high}
    texts = {text for text in figure.findobj(mpl.text.Text) if text.get_visible() and text.get_text().strip()}
    renderer, boxes = figure.canvas.get_renderer(), []
    for text in texts - beyond:
        box, angle = text.get_window_extent(renderer), np.radians(text.get_rotation())
        if figure.bbox.overlaps(box):
            assert (box.min > -1).all(), text
            assert (box.max < figure.bbox.max + 1).all(), text
            width, height, _ = renderer.get_text_width_height_descent(text.get_text(), text.get_fontproperties(), False)
            turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
            boxes.append((text.get_text(), box.get_points().mean(axis=0), np.array([width, height]) / 2, turn))
    grid = 0.9 * np.stack(np.meshgrid(np.linspace(-1, 1, 9), np.linspace(-1, 1, 3)), axis=-1).reshape(-1, 2)
    for words, center, half, turn in boxes:
        for other_words, other_center, other_half, other_turn in boxes:
            points = (grid * other_half) @ other_turn + other_center  # of the other text
            covered = (np.abs((points - center) @ turn.T) < 0.8 * half).all(axis=1)
            assert center is other_center or not covered.any(), (words, other_words)


def test_level_lines_lie_where_the_loss_is_their_level(land):
    """A vertex of a level line is on an edge of the grid, where linear interpolation gives its level."""
    for log in (False, True):
        axes = lv.plot_landscape(land, Figure().add_subplot(), log=log)
        drawn = np.log10(land.loss) if log else land.loss
        [lines] = [one for one in axes.collections if hasattr(one, "levels")]
        n_vertices = 0
        for level, path in zip(lines.levels, lines.get_paths(), strict=True):
            for x, y in path.vertices[:: max(1, len(path.vertices) // 20)]:
                i = min(np.searchsorted(land.x, x, side="right") - 1, len(land.x) - 2)
                j = min(np.searchsorted(land.y, y, side="right") - 1, len(land.y) - 2)
                u = (x - land.x[i]) / (land.x[i + 1] - land.x[i])
                v = (y - land.y[j]) / (land.y[j + 1] - land.y[j])
                if min(u, 1 - u, v, 1 - v) < 1e-6:  # ends beside a label are inside a cell
                    height = (1 - v) * ((1 - u) * drawn[j, i] + u * drawn[j, i + 1])
                    height += v * ((1 - u) * drawn[j + 1, i] + u * drawn[j + 1, i + 1])
                    assert height == pytest.approx(level, abs=1e-6 * np.ptp(drawn))
                    n_vertices += 1
        assert n_vertices > 20
        labels = [float(text.get_text()) for text in axes.texts]
        levels = 10.0**lines.levels if log else lines.levels
        assert labels
        assert all(np.isclose(levels, label, rtol=0.01).any() for label in labels)


def test_levels_are_round_and_inside():
    assert choose_levels(0.03, 0.58, log=False) == pytest.approx(np.arange(0.05, 0.56, 0.05))
    assert 10 ** np.array(choose_levels(-2.1, 0.4, log=True)) == pytest.approx([0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2])
    assert round_logs(-30.0, 31.0, n=5) == [-24.0, -16.0, -8.0, 0.0, 8.0, 16.0, 24.0]


def test_contours_show_run_ball_and_axes(land):
    axes = lv.plot_landscape(land, Figure().add_subplot(), step=17)
    assert axes.get_xlim() == pytest.approx(land.x[[0, -1]])
    assert axes.get_ylim() == pytest.approx(land.y[[0, -1]])
    assert axes.get_ylabel().startswith("PC2 (")
    *lines, ball = axes.lines
    assert np.column_stack(ball.get_data()) == pytest.approx(land.path[[17]])
    drawn = np.concatenate([np.column_stack(line.get_data()) for line in lines])
    drawn = drawn[np.isfinite(drawn).all(axis=1)]
    apart = np.linalg.norm(land.path[:, None] - drawn, axis=2)
    assert apart.min(axis=1).max() < 1e-12  # every step is drawn
    assert apart.min(axis=0).max() < 1e-12  # and nothing else


def test_min_support_leaves_contours_out(land):
    n_lines = []
    for least in (0.0, 0.5):
        axes = lv.plot_landscape(land, Figure().add_subplot(), min_support=least)
        [lines] = [one for one in axes.collections if hasattr(one, "levels")]
        n_lines.append(sum(len(path.vertices) for path in lines.get_paths()))
    assert 0 <= n_lines[1] < 0.6 * n_lines[0]


def draw(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(int)


def test_a_surface_in_axes_of_ones_own_follows_them(land):
    """Saved at twice the resolution it is the same picture, and where the axes turn it turns with them."""
    figures = [Figure((5, 5), dpi=dpi) for dpi in (60, 120)]
    for figure in figures:
        axes = lv.plot_landscape(land, figure.add_subplot(projection="3d"), kind="surface")
    small, large = (draw(figure) for figure in figures)
    halved = np.asarray(Image.fromarray(large.astype(np.uint8)).reduce(2)).astype(int)
    assert np.abs(small - halved).mean() < 2.5
    assert (small < 250).any(axis=2).mean() > 0.1
    other = Figure((5, 5), dpi=120)
    turned = lv.plot_landscape(land, other.add_subplot(projection="3d"), kind="surface", rotate=40.0)
    axes.view_init(elev=turned.elev, azim=turned.azim)
    assert np.abs(draw(figures[1]) - large).mean() > 5
    surface = axes.artists[0]
    assert turned.azim == pytest.approx(axes.azim)
    assert surface.visible() == pytest.approx(turned.artists[0].visible(), abs=0.1)


def test_a_tight_figure_is_not_cut(land):
    figure = Figure((5, 3), dpi=50)
    lv.plot_landscape(land, figure.add_subplot(projection="3d"), kind="surface")
    ink = (draw(figure) < 250).any(axis=2)
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    tight = 50 * figure.get_tightbbox().get_points()
    assert tight[0, 0] < columns[0] + 1
    assert tight[1, 0] > columns[-1] - 1
    assert tight[0, 1] < 150 - rows[-1] + 1
    assert tight[1, 1] > 150 - rows[0] - 1


def test_the_users_style_is_used_in_axes_of_ones_own(land):
    with mpl.rc_context({"font.size": 17, "axes.labelsize": 13, "lines.linewidth": 3.5, "text.color": "blue"}):
        before = dict(mpl.rcParams)
        axes = lv.plot_landscape(land, Figure().add_subplot())
        assert axes.xaxis.label.get_size() == 13
        assert axes.lines[0].get_linewidth() == 3.5
        assert mpl.colors.same_color(axes.texts[0].get_color(), "blue")
        solid = lv.plot_landscape(land, Figure().add_subplot(projection="3d"), kind="surface")
        assert solid.zaxis.label.get_size() == 13
        assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("kind", ["contour", "surface"])
def test_without_axes_a_pyplot_figure_is_made(land, kind):
    with mpl.rc_context({"backend": "agg"}):
        axes = lv.plot_landscape(land, kind=kind)
        assert pyplot.gcf() is axes.figure
        pyplot.close(axes.figure)


def test_several_runs_are_named_above_the_picture(race, tmp_path):
    _, sizes, _ = read_svg(lv.export_image(race, tmp_path / "race.svg", kind="contour", dpi=60))
    assert {"Adam", "SGD + momentum"} <= set(sizes)


def test_notes_are_in_the_file_or_on_the_page(land, tmp_path):
    for notes in (False, True):
        path = lv.export_image(land, tmp_path / "figure.svg", notes=notes, dpi=60, width="180mm")
        root, sizes, _ = read_svg(path)
        assert any("of the variance" in words for words in sizes) == notes
        [about] = root.iter("{http://purl.org/dc/elements/1.1/}description")
        assert "Explained variance does not measure fidelity." in about.text
        assert f"step 60, true loss {land.path_loss[60]:.4g}" in about.text
    pdf = lv.export_image(land, tmp_path / "figure.pdf", dpi=60).read_bytes()
    [subject] = re.findall(rb"/Subject \((.*?[^\\])\)", pdf, re.DOTALL)
    plain = re.sub(rb"\\(.)", rb"\1", subject, flags=re.DOTALL).decode("utf-16")
    assert "Explained variance does not measure fidelity." in plain


@pytest.mark.parametrize("suffix", ["pdf", "svg", "png"])
def test_hostile_names_are_read_back(tmp_path, suffix):
    run = lv.train("x^2", steps=20, progress=False)
    names = {"<!--]]>&amp; (a\\) \\( $x$ é": run, 'b"} endobj </svg>': run}
    land = lv.landscape(names, resolution=4, progress=False)
    path = lv.export_image(land, tmp_path / f"figure.{suffix}", kind="contour", dpi=60)
    settings = read_settings(path)
    assert [one["name"] for one in settings["runs"]] == list(names)
    assert (settings["export"], settings["view"]["kind"]) == ("export_image", "contour")
    assert np.array_equal(lv.reproduce(path, progress=False).loss, land.loss)


def test_a_font_can_be_chosen(land, tmp_path):
    path = lv.export_image(land, tmp_path / "figure.pdf", kind="contour", font="dejavu serif", dpi=60)
    assert b"DejaVuSerif" in path.read_bytes()
    assert b"DejaVuSans" not in path.read_bytes()


def test_the_surface_of_a_pdf_is_an_image_of_the_resolution_asked_for(land, tmp_path):
    path = lv.export_image(land, tmp_path / "figure.svg", width="4in", height="3in", dpi=100)
    root, _, _ = read_svg(path)
    [image] = root.iter(f"{SVG}image")
    data = image.get("{http://www.w3.org/1999/xlink}href").partition("base64,")[2]
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        assert picture.width / float(image.get("width")) == pytest.approx(100 / 72, rel=0.02)
        assert picture.width > 150
        assert 0.3 < (np.asarray(picture)[..., 3] > 0).mean() < 1


@pytest.mark.parametrize(
    ("changed", "cause", "repair"),
    [
        ({"path": "figure.eps"}, "`path` must end in .pdf or .svg or .png, got '", "A film is written by"),
        ({"kind": "bars"}, "`kind` must be one of surface, contour, both; got 'bars'", "side by side"),
        ({"width": 0}, "`width` must be from 40mm to 1200mm, got 0", "Use 'single'"),
        ({"width": "-85mm"}, "`width` must be from 40mm to 1200mm, got '-85mm'", "Use 'single'"),
        ({"width": float("nan")}, "`width` must be from 40mm to 1200mm, got nan", "Use 'single'"),
        ({"width": "85 furlongs"}, "`width` must be a length such as '85mm', '3.35in'", "got '85 furlongs'"),
        ({"height": "0in"}, "`height` must be from 30mm to 1200mm, got '0in'", "Use 'single'"),
        ({"dpi": 0}, "`dpi` must be a whole number from 50 to 2400, got 0", "Use 300"),
        ({"width": "double", "dpi": 2400}, "at most 20,000,000 pixels; `dpi`=2400 makes 2", "Use 300"),
        ({"font": "Nonesuch"}, "`font` must be installed, or one of serif,", "got 'Nonesuch'. Installed are: "),
        ({"font_size": 0.0}, "`font_size` must be from 4 to 40 points, got 0.0", "Use 8"),
        ({"step": 61}, "from 0 to 60; got 61", "Use None for the last one"),
        ({"rotate": float("inf")}, "`rotate` must be a finite number of degrees, got inf", "Use 0"),
        ({"min_support": 2.0}, "`min_support` must be a number from 0 to 1, got 2.0", "Use 0"),
    ],
)
def test_errors_state_cause_and_repair(land, tmp_path, changed, cause, repair):
    changed = {"path": tmp_path / changed.pop("path", "figure.pdf")} | changed
    with pytest.raises(ValueError, match=re.escape(cause)) as error:
        lv.export_image(land, **changed)
    assert repair in str(error.value)
    assert not list(tmp_path.iterdir())


def test_axes_of_the_wrong_kind_are_refused(land):
    flat, solid, round_ = (Figure().add_subplot(projection=name) for name in ("rectilinear", "3d", "polar"))
    for axes, kind, got in ((flat, "surface", "rectilinear"), (solid, "contour", "3d"), (round_, "contour", "polar")):
        with pytest.raises(TypeError, match=f"for `kind`='{kind}', got {got} axes. Make them with") as error:
            lv.plot_landscape(land, axes, kind=kind)
        assert error.value.argument == "ax"
        assert not axes.lines
    with pytest.raises(TypeError, match=r"got Figure\. Make them with"):
        lv.plot_landscape(land, Figure())
    with pytest.raises(ValueError, match=r"`kind` must be one of contour, surface; got 'both'\. Draw each"):
        lv.plot_landscape(land, kind="both")
