"""The page of `export_html`: its landscapes, its file, and what it shows in Chromium."""

import base64
import errno
import io
import json
import os
import re
from dataclasses import replace
from itertools import product

import numpy as np
import plotly.graph_objects as go
import pytest
import reference
import torch
from lab import HARMLESS, open_chromium
from PIL import Image

import loss_viz as lv
from loss_viz.diagnostics.report import write_factor
from loss_viz.export.html import export_html, page_html
from loss_viz.export.page_data import ArrayStore, choose_scales, page_data
from loss_viz.export.variants import _ProgressBar, compute_variants
from loss_viz.figures.assets import read_plotly
from loss_viz.figures.captions import caption
from loss_viz.figures.live import LIVE_RADIUS
from loss_viz.figures.loss_axis import LINE_LIFT, SHADOW_LIFT, Scale, fit_scale
from loss_viz.figures.traces import SHADOW_DEPTH
from loss_viz.landscapes import compute
from loss_viz.landscapes.held_out import PlaneChoice

K, SIGMA = [5, 2], ["auto", 0.06, 0.2]
PAIRS = list(product(sorted(K), SIGMA))
NASTY = "a <b>name</b> & </script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def computed(run):
    return compute_variants(run, k=K, sigma=SIGMA, resolution=(9, 7), progress=False)


@pytest.fixture(scope="module")
def own_run():
    """A run without a task, with a name that breaks pages which do not escape it."""
    model = torch.nn.Linear(2, 1)
    torch.nn.init.constant_(model.weight, 1.0)
    recorder = lv.Recorder(model, lambda m: m.weight.square().sum() - 1, name=NASTY)
    for _ in range(20):
        with torch.no_grad():
            model.weight *= 0.9
            model.weight[0, 0] *= 0.9
        recorder.record()
    return recorder.run()


def read_part(path, name):
    """Return the JSON in a page with the given id."""
    text = path.read_text(encoding="utf-8")
    return json.loads(re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', text)[1])


def unpack(data, number):
    packed = data["arrays"][number]
    return np.frombuffer(base64.b64decode(packed["base64"]), packed["dtype"]).reshape(packed["shape"])


def strip_plotly(text):
    plotly = read_plotly().replace("</script", r"<\/script").replace("<!--", r"<\!--")
    assert text.count(plotly) == 1
    return text.replace(plotly, "")


# The landscapes.


def test_each_variant_equals_its_landscape(run, computed):
    assert (computed.k, computed.sigma) == ((2, 5), ("auto", 0.06, 0.2))
    assert (computed.opening.k, computed.opening.sigma) == (5, "auto")
    for (k, sigma), land in zip(PAIRS, computed.landscapes, strict=True):
        expected = lv.landscape(run, k=k, sigma=sigma, resolution=(9, 7), plane="local", progress=False)
        assert (land.k, land.sigma) == (k, sigma)
        assert np.array_equal(land.loss, expected.loss)
        assert np.array_equal(land.path_height, expected.path_height)
        assert land.settings == expected.settings
        assert repr(lv.assess(land).fidelity) == repr(lv.fidelity(expected))


def test_a_landscape_keeps_its_plane_grid_anchors_and_seed(run):
    view = {"resolution": (6, 5), "plane": "local", "n_anchors": 11, "progress": False}
    land = lv.landscape(run, k=3, sigma=0.02, **view)
    found = compute_variants(land, k=[4], sigma=["auto"], progress=False)
    assert (found.k, found.sigma) == ((3, 4), ("auto", 0.02))
    assert found.opening is land
    for (k, sigma), made in zip(product((3, 4), ("auto", 0.02)), found.landscapes, strict=True):
        again = lv.landscape(run, k=k, sigma=sigma, **view)
        assert np.array_equal(made.loss, again.loss)
        assert made.settings == again.settings
    assert compute_variants(land, k=[3], sigma=[0.02], progress=False).landscapes == (land,)


def test_an_uneven_grid_is_kept(run):
    land = lv.landscape(run, k=5, resolution=8, progress=False)
    columns = [0, 4, 7]
    sampling = replace(land.sampling, x=land.x[columns])
    parts = {name: getattr(land, name)[:, columns] for name in ("loss", "support")}
    coarse = replace(land, sampling=sampling, x=sampling.x, **parts)
    found = compute_variants(coarse, k=[2], sigma=[0.06], progress=False)
    for (k, sigma), made in zip(product((2, 5), ("auto", 0.06)), found.landscapes, strict=True):
        whole = lv.landscape(run, k=k, sigma=sigma, resolution=8, progress=False)
        assert np.array_equal(made.x, coarse.x)
        assert made.loss == pytest.approx(whole.loss[:, columns], rel=1e-12)


def test_default_strides_fit_the_run():
    run = lv.train("x", steps=20, progress=False)
    bent = lv.landscape(run, plane="local", resolution=3, progress=False)
    found = compute_variants(bent, sigma=["auto"], progress=False)
    assert found.k == (1, 2, 5, 10)
    assert found.opening is bent
    few = lv.landscape(lv.train("x", steps=3, progress=False), plane="local", resolution=3, progress=False)
    found = compute_variants(few, sigma=["auto"], progress=False)
    assert (found.k, found.opening.k) == ((1,), 1)
    land = lv.landscape(run, k=3, sigma=0.05, resolution=3, progress=False)
    found = compute_variants(land, progress=False)
    assert (found.k, found.sigma) == ((1, 2, 3, 5, 10), ("auto", 0.01, 0.03, 0.05, 0.06, 0.1))
    assert (found.opening.k, found.opening.sigma) == (3, 0.05)


@pytest.mark.parametrize("steps", [20, 80])
def test_variants_of_a_run_start_from_what_auto_takes(steps, monkeypatch):
    run = lv.train("x^2", steps=steps, progress=False)
    taken = lv.landscape(run, resolution=3, progress=False)
    for choice in [("local", 4), ("parallel", 5)]:
        monkeypatch.setattr(compute, "choose_planes", lambda *_, choice=choice: PlaneChoice(*choice, {}))
        found = compute_variants(run, resolution=3, sigma=["auto"], progress=False)
        assert (found.opening.plane, found.opening.k, found.opening.sigma) == (*choice, "auto")
        strides = [k for k in (1, 2, 4, 5, 10, 20) if 2 * k < len(run)]
        assert found.k == (tuple(strides) if choice[0] == "local" else (5,))
        assert found.choices.get("k", [None])[0] == (4 if choice[0] == "local" else None)
    monkeypatch.undo()
    found = compute_variants(run, resolution=3, sigma=["auto"], progress=False)
    assert (found.opening.plane, found.opening.k) == (taken.plane, taken.k)
    np.testing.assert_array_equal(found.opening.loss, taken.loss)


@pytest.mark.parametrize(
    ("view", "n_widths"), [({"plane": "flat"}, 1), ({"axes": "random"}, 1), ({"plane": "parallel"}, 5)]
)
def test_planes_without_stride_or_bandwidth_have_one_variant(run, view, n_widths):
    land = lv.landscape(run, **view, n_anchors=5, resolution=3, progress=False)
    plane = land.plane
    found = compute_variants(land, progress=False)
    assert (len(found.k), len(found.sigma)) == (1, n_widths)
    assert compute_variants(land, **found.choices, progress=False).choices == found.choices
    with pytest.raises(ValueError, match=rf"`k` makes no difference to the {plane} plane, got \[4\]. Leave it out"):
        compute_variants(land, k=[4])
    if n_widths == 1:
        with pytest.raises(ValueError, match=r"`sigma` makes no difference to a single plane, got \[0.06\]. Leave"):
            compute_variants(land, sigma=[0.06])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"k": []}, ValueError, r"`k` must contain at least one stride, as in \[5\]; got none"),
        ({"sigma": []}, ValueError, r"`sigma` must contain at least one bandwidth, as in \['auto', 0.06\]; got none"),
        ({"sigma": "auto"}, TypeError, r"`sigma` must be a list, got 'auto'. Put it in brackets"),
        ({"k": [0]}, ValueError, "`k` must be a whole number of at least 1, got 0"),
        ({"k": [5, 31]}, ValueError, "`k`=31 needs at least 2k \\+ 1 = 63 recorded steps, the run has 61"),
        ({"sigma": [0.06, "wide"]}, ValueError, "`sigma` must be 'auto' or a fraction .* got 'wide'"),
        ({"sigma": [-0.1]}, ValueError, "`sigma` must be 'auto' or a fraction .* got -0.1"),
        ({"resolution": 0}, ValueError, "`resolution` must be a whole number of at least 2, .* got 0"),
        ({"resolution": 1}, ValueError, "`resolution` must be a whole number of at least 2"),
        ({"step": 61}, ValueError, "`step` must be within the run, from 0 to 60; got 61"),
    ],
)
def test_wrong_arguments_are_refused_before_any_evaluation(run, tmp_path, monkeypatch, arguments, error, message):
    monkeypatch.setattr(compute, "fit_picture_plane", lambda *_, **__: pytest.fail("work has begun"))
    with pytest.raises(error, match=message):
        export_html(run, tmp_path / "run.html", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_landscape_takes_no_resolution(run):
    land = lv.landscape(run, resolution=3, progress=False)
    with pytest.raises(ValueError, match="`resolution` is that of the landscape, 3 x 3; got 5"):
        compute_variants(land, resolution=5)


def test_progress_covers_all_landscapes(run, capsys):
    bar = _ProgressBar(4, disable=False)
    bar.delay = 0
    meter = bar.begin(5, "auto")
    meter.total = 10
    meter._reported -= 1
    meter.update(5)
    assert bar.n == 0.5
    meter.total, meter._reported = 100, 0  # more work was found: the bar does not move back
    meter.update(1)
    assert bar.n == 0.5
    bar.begin(5, 0.06)
    assert bar.n == 1
    bar.refresh()
    assert "25%" in capsys.readouterr().err
    bar.close()


# The file.


def test_arrays_survive_encoding():
    store, rng = ArrayStore(), np.random.default_rng(0)
    data = {"arrays": store.arrays}
    wide = np.append(rng.lognormal(sigma=20, size=50), [np.nan, np.inf, 0.0])
    assert np.array_equal(unpack(data, store.add(wide)), wide.astype(np.float32), equal_nan=True)
    for extreme in ([1e300, 2.0], [1e-300, 2.0], [-1e39, 0.0]):  # infinite or 0 in float32
        assert unpack(data, store.add(np.array(extreme))).tolist() == extreme
    for top, kind in ((255, "uint8"), (256, "uint16"), (65_536, "uint32")):
        whole = np.array([[0, top], [1, 2], [3, 4]])
        assert np.array_equal(unpack(data, store.add(whole)), whole)
        assert store.arrays[-1]["dtype"] == kind
    assert store.add(np.empty(0)) == store.add(np.empty(0))
    assert store.add(np.zeros(4)) != store.add(np.zeros((2, 2)))
    rgba = rng.integers(0, 256, (20, 4)).astype(np.uint8)
    kept = store.encode({"rgba": rgba})["rgba"]
    colors = unpack(data, kept["colors"])[unpack(data, kept["index"])]
    assert np.array_equal(np.column_stack([colors, unpack(data, kept["left"])]), rgba)


def test_the_loss_axis_is_that_of_the_first_extended_where_needed(computed):
    for log in (False, True):
        own = [fit_scale([land.loss, land.path_loss], log=log) for land in computed.landscapes]
        assert len({(scale.low, scale.high) for scale in own}) > 1
        for first, mine in enumerate(own):
            chosen = choose_scales(computed.landscapes, first, log=log)
            assert chosen[first] == mine
            for scale, needed in zip(chosen, own, strict=True):
                assert scale == Scale(min(mine.low, needed.low), max(mine.high, needed.high), log)


def test_long_runs_are_thinned_and_the_page_says_so(run, computed, monkeypatch):
    monkeypatch.setattr("loss_viz.export.page_data.MAX_STEPS", 20)
    monkeypatch.setattr("loss_viz.export.page_data.MAX_OUTPUTS", 700)
    data = page_data(computed, None)
    step = unpack(data, data["runs"][0]["step"]["array"])
    assert 10 < len(step) <= 20
    assert (step[0], step[-1]) == (0, 60)
    assert np.array_equal(unpack(data, data["runs"][0]["loss"]["array"]), run.loss[step].astype(np.float32))
    picture = data["pictures"][1]
    height = unpack(data, picture["runs"][0]["height"]["array"])
    assert np.array_equal(height, computed.landscapes[1].path_height[step].astype(np.float32))
    line = picture["axes"]["linear"]["parts"]["surface_trajectory"]
    assert len(unpack(data, line["x"]["array"])) == len(unpack(data, line["line.color"]["array"])) == len(step)
    assert [len(unpack(data, column)) for column in line["customdata"]["columns"]] == [len(step)] * 5
    balls = picture["axes"]["linear"]["balls"]
    [places] = balls["panes"]["surface"]["runs"]
    assert np.array_equal(unpack(data, places["height"]["array"]), height)
    [fit] = balls["outputs"]["runs"]
    at, levels = (unpack(data, fit[name]["array"]) for name in ("step", "levels"))
    assert len(at) <= 7
    for row, level in zip(at.tolist(), levels, strict=True):
        assert fit["low"] + fit["unit"] * level == pytest.approx(run.predict(row), abs=fit["unit"])
    assert f"{len(step)} of 61 recorded steps are drawn" in " ".join(data["notes"])
    assert f"stored at {len(at)} steps" in " ".join(data["notes"])
    assert "drawn" not in " ".join(page_data(computed, None)["notes"][:1])


def test_a_loss_that_is_not_positive_has_no_logarithmic_axis(own_run):
    data = page_data(compute_variants(own_run, k=[2], sigma=["auto"], resolution=3, progress=False), None)
    assert list(data["pictures"][0]["axes"]) == ["linear"]
    assert data["pictures"][0]["axes"]["linear"]["balls"]["outputs"] is None
    assert "fit" not in data["panes"]


def test_a_page_opens_on_the_chosen_axis(run, own_run, tmp_path):
    def export(of, log):
        path = export_html(of, tmp_path / "a.html", k=[3], sigma=["auto"], resolution=5, log=log, progress=False)
        return read_part(path, "lossviz-data")["values"]["loss_axis"]

    assert [export(run, log) for log in (None, True, False)] == ["log", "log", "linear"]
    assert [export(own_run, log) for log in (None, False)] == ["linear", "linear"]
    with pytest.raises(ValueError, match="log"):
        export(own_run, True)


def test_the_page_contains_no_links(computed):
    rest = strip_plotly(page_html(computed, None)).lower().replace("objecturl(", "")  # of files that the page makes
    for word in ("http:", "https:", "src=", "href=", "@import", "url(", "//cdn"):
        assert word not in rest
    assert "content=\"default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline' data:; img-src" in rest


def test_names_are_escaped_everywhere(own_run):
    rest = strip_plotly(page_html(compute_variants(own_run, k=[2], sigma=["auto"], resolution=3, progress=False), None))
    assert "<img" not in rest
    assert rest.count("</script>") == 3
    assert "<h1>a &lt;b&gt;name&lt;/b&gt; &amp; &lt;/script&gt;&lt;img" in rest
    # Plotly drops HTML tags it does not know.
    words = caption(lv.landscape(lv.train(lambda x: x, steps=20, progress=False), k=5, resolution=3, progress=False))
    assert words.startswith("<b>&lt;lambda&gt;, local planes</b>")


def test_the_settings_in_the_file_reproduce_it(tmp_path):
    run = lv.train("x^2", steps=60, progress=False)
    path = export_html(run, tmp_path / "run.html", k=[3, 1], sigma=[0.06], resolution=9, step=30, progress=False)
    settings = read_part(path, "loss_viz-settings")
    land = lv.landscape(run, k=3, sigma=0.06, resolution=9, plane="local", progress=False)
    assert settings["landscape"] == land.settings["landscape"]
    assert settings["page"] == {"k": [3, 1], "sigma": [0.06], "step": 30, "log": True}
    twin = export_html(run, tmp_path / "twin.html", resolution=9, progress=False, **settings["page"])
    assert twin.read_bytes() == path.read_bytes()
    train = settings["runs"][0]["train"]
    again = lv.train(**train | {"dtype": getattr(torch, train["dtype"])}, progress=False)
    view = settings["landscape"] | {"resolution": tuple(settings["landscape"]["resolution"])}
    assert np.array_equal(lv.landscape(again, **view, progress=False).loss, land.loss)
    explorer = lv.Explorer(**settings["explorer"])
    assert explorer.wait(60.0)
    assert explorer.landscape.loss == pytest.approx(land.loss, rel=1e-6)
    assert explorer.settings == settings["explorer"]
    explorer.close()
    recipe = read_part(path, "lossviz-data")["recipe"].format(k=3, sigma=0.06, step=30, log=False)
    scope = {}
    exec(recipe.replace("lv.surface_figure", "figure = lv.surface_figure"), scope)
    assert np.array_equal(scope["land"].loss, land.loss)
    assert isinstance(scope["figure"], go.Figure)


@pytest.mark.parametrize(
    ("train", "view", "chosen"),
    [
        (
            {"dtype": torch.float64, "every": 2, "n_points": 30},
            {"plane": "local", "resolution": (4, 3), "n_anchors": 9},
            {"k": [2], "sigma": ["auto"]},
        ),
        ({}, {"axes": "random", "seed": 7, "resolution": 3}, {}),
        ({}, {"plane": "parallel", "steps": (5, 30), "resolution": 3}, {"sigma": ["auto"]}),
        (
            {},
            {
                "plane": "local",
                "center": 9,
                "bounds": ((0.0, 1.0), (-1.0, 1.0)),
                "axes": ("PC1", "sharpest"),
                "resolution": 3,
            },
            {"k": [2], "sigma": ["auto"]},
        ),
    ],
)
def test_code_reproduces_unusual_landscapes_and_the_panel_does_not_offer_to(train, view, chosen):
    run = lv.train("x^2", steps=40, progress=False, **train)
    land = lv.landscape(run, progress=False, **view)
    found = compute_variants(land, **chosen, progress=False)
    scope = {}
    recipe = page_data(found, None)["recipe"]
    exec(recipe.format(k=land.k, sigma=repr(land.sigma), step=9, log=False), scope)
    assert np.array_equal(scope["land"].loss, land.loss)
    assert json.loads(re.search(r'-settings">(.*?)</script>', page_html(found, None))[1])["explorer"] is None


def test_code_leaves_a_gap_for_runs_that_train_cannot_make(own_run):
    runs = {"one": own_run, NASTY: own_run}
    data = page_data(compute_variants(runs, k=[2], sigma=["auto"], resolution=3, progress=False), None)
    scope = {}
    exec(data["recipe"].split("land =")[0], scope)
    assert scope["run"] == {"one": ..., NASTY: ...}
    assert [run["name"] for run in data["runs"]] == ["one", NASTY]


class Stop(BaseException):
    """Like Ctrl-C."""


@pytest.mark.parametrize("n_losses", [1, 500, 5000])
def test_an_interruption_leaves_the_old_file(run, tmp_path, n_losses):
    path = tmp_path / "run.html"
    path.write_text("old content")
    objective, left = run.objective, [n_losses]

    class Ending(type(objective)):
        def __init__(self):
            self.__dict__ = objective.__dict__

        def __call__(self, weights, buffers=None):
            left[0] -= len(weights)
            if left[0] < 0:
                raise Stop
            return objective(weights, buffers)

    with pytest.raises(Stop):
        export_html(replace(run, objective=Ending()), path, progress=False)
    assert [file.name for file in tmp_path.iterdir()] == ["run.html"]
    assert path.read_text() == "old content"


def test_a_full_disk_leaves_the_old_file(run, tmp_path, monkeypatch):
    def fill(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "run.html"
    path.write_text("before")
    monkeypatch.setattr(os, "fsync", fill)
    with pytest.raises(OSError, match="No space left"):
        export_html(run, path, k=[5], sigma=["auto"], resolution=3, progress=False)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["before"]


def test_paths_that_cannot_be_written_are_refused_at_once(run, tmp_path, monkeypatch):
    monkeypatch.setattr("loss_viz.export.html.compute_variants", lambda *_, **__: pytest.fail("work has begun"))
    (tmp_path / "file").write_text("")
    with pytest.raises(IsADirectoryError, match=r"`path` must name a file, .* is a folder. Add a file name"):
        export_html(run, tmp_path)
    for folder in ("nowhere", "file"):
        with pytest.raises(FileNotFoundError, match=rf"`path` must be in a folder, '.*{folder}' is not one. Create it"):
            export_html(run, tmp_path / folder / "run.html")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(PermissionError, match="`path` must be in a writable folder"):
        export_html(run, str(tmp_path / "run.html"))


# The page in the browser.


class Page:
    """An exported page in a browser; collects console errors and network requests."""

    def __init__(self, browser, path, **options):
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | options)
        self.page = self.context.new_page()
        self.errors, self.requests = [], []
        self.page.on("console", self._on_message)
        self.page.on("pageerror", lambda error: self.errors.append(f"{error} {error.stack}"))
        self.page.on("request", lambda request: self.requests.append(request.url))
        # Not every browser logs unhandled rejections.
        self.page.add_init_script("addEventListener('unhandledrejection', e => console.error('unhandled', e.reason))")
        self.page.goto(path.as_uri())
        self.wait_drawn()

    def _on_message(self, message):
        if message.type in ("error", "warning") and not HARMLESS.search(message.text):
            self.errors.append(message.text)

    def wait_drawn(self):
        """Wait until the last update has been drawn."""
        self.page.wait_for_function(
            """() => {
                const {asked, drawn} = document.getElementById('lossviz-picture')?.dataset || {};
                const picture = document.querySelector('.lossviz-picture');
                return asked && asked === drawn && picture.getAttribute('aria-busy') === 'false';
            }""",
            timeout=90_000,
        )

    def trace(self, pane, name, key):
        """Return a property of a trace as drawn."""
        return self.page.evaluate(
            """([pane, name, key]) => {
                pane = document.querySelector('.lossviz-pane-' + pane);
                const trace = pane._fullData.find((t, i) => name === (pane.data[i].uid || t.name));
                return Array.from(trace[key], v => Number.isFinite(v) ? v : v.length ? Array.from(v) : null);
            }""",
            [pane, name, key],
        )

    def layout(self, pane, code):
        return self.page.evaluate(f"() => document.querySelector('.lossviz-pane-{pane}')._fullLayout.{code}")

    def control(self, name):
        """Return the input of a setting."""
        field = f".lossviz-field[data-name={name}]"
        return self.page.locator(".lossviz-step" if name == "step" else f"{field} :is(input, select)")

    def slide(self, name, at):
        """Move a slider to a position by keyboard, from the nearer end."""
        slider = self.control(name)
        slider.focus()
        back = int(slider.get_attribute("max")) - at
        slider.press("Home" if at <= back else "End")
        for _ in range(min(at, back)):
            slider.press("ArrowRight" if at <= back else "ArrowLeft")
        self.wait_drawn()

    def tile(self, name):
        return self.page.locator(".lossviz-details dl > div").filter(has_text=name).locator("dd").text_content().strip()

    def close(self):
        assert self.errors == []
        assert [url for url in self.requests if not url.startswith(("file:", "data:", "blob:"))] == []
        self.context.close()


@pytest.fixture(scope="module")
def browser():
    with open_chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def opened(browser, computed, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "a folder" / "σ #1.html"
    path.parent.mkdir()
    path.write_text(page_html(computed, 30), encoding="utf-8")
    opened = Page(browser, path)
    yield opened
    opened.close()


@pytest.mark.browser
def test_sliders_show_the_landscape_of_their_values(run, computed, opened):
    camera = opened.layout("surface", "scene._scene.getCamera().eye")
    for k, sigma in PAIRS:
        opened.slide("k", sorted(K).index(k))
        opened.slide("sigma", SIGMA.index(sigma))
        expected = lv.landscape(run, k=k, sigma=sigma, resolution=(9, 7), progress=False)
        assert opened.trace("surface", "surface", "z") == expected.loss.astype(np.float32).ravel().tolist()
        x, y = np.meshgrid(expected.x.astype(np.float32), expected.y.astype(np.float32))
        assert opened.trace("surface", "surface", "x") == x.ravel().tolist()
        assert opened.trace("surface", "surface", "y") == y.ravel().tolist()
        assert opened.layout("surface", "title.text") == caption(expected)
        assert opened.trace("surface", "error", "z") == pytest.approx([run.loss[30], expected.path_height[30]])
        factor = lv.fidelity(expected).factor
        assert opened.trace("curve", "factor", "y") == factor.astype(np.float32).tolist()
        assert opened.tile("error here") == write_factor(factor[30])
        assert write_factor(lv.fidelity(expected).median) in opened.tile("error, median")
        assert opened.control("sigma").get_attribute("aria-valuetext") == str(sigma)
    after = opened.layout("surface", "scene._scene.getCamera().eye")
    assert after == pytest.approx(camera, rel=0, abs=1e-14)  # equal up to rounding in Plotly's matrices
    assert len({float(land.loss.sum()) for land in computed.landscapes}) == len(PAIRS)


@pytest.mark.browser
def test_the_first_surface_equals_the_panel_s(run, opened):
    opened.slide("k", 1)
    opened.slide("sigma", 0)
    panel = lv.Explorer(run, k=5, sigma="auto", resolution=7, step=30)
    assert panel.wait(60.0)
    for name in ("x", "y", "customdata"):
        held = panel.surface_trajectory[name]
        mine = np.frombuffer(held["data"], held["dtype"]).reshape(held["shape"])
        assert np.array_equal(np.array(opened.trace("surface", "trajectory", name), dtype=np.float32), mine)
    for pane in ("surface", "curve", "fit"):
        uids = [trace.get("uid") or trace["name"] for trace in panel.panes[pane]["data"]]
        drawn = opened.page.evaluate(
            f"() => document.querySelector('.lossviz-pane-{pane}').data.map(t => t.uid || t.name)"
        )
        assert drawn == uids
    panel.close()


@pytest.mark.browser
@pytest.mark.parametrize("kind", ["linear", "log"])
def test_the_ball_is_at_the_true_loss(run, computed, opened, kind):
    opened.control("loss_axis").select_option(kind)
    opened.slide("k", 0)
    opened.slide("sigma", 1)
    land = computed.landscapes[PAIRS.index((2, 0.06))]
    scale = choose_scales(computed.landscapes, computed.first, log=kind == "log")[1]
    lifted = scale.lift(run.loss, LINE_LIFT)
    assert opened.trace("surface", "trajectory", "z") == pytest.approx(lifted.tolist(), rel=1e-5)
    assert opened.layout("surface", "scene.zaxis.type") == kind
    assert opened.layout("surface", "scene.zaxis.range") == pytest.approx(scale.axis()["range"])
    for step in (0, 4, 60):
        opened.slide("step", step)
        x, y, z = (np.array(opened.trace("surface", "ball", axis)) for axis in "xyz")
        assert z.min() == pytest.approx(run.loss[step], rel=1e-6)
        # Its center is above the point of the run, and its lowest point at the true loss.
        middle = [(side.max() + side.min()) / 2 for side in (x, y)]
        assert middle == pytest.approx(land.path[step].tolist(), abs=0.02 * np.ptp(x))
        drawn = scale.draw(np.array([run.loss[step], z.max()]))
        assert np.ptp(drawn) == pytest.approx(2 * LIVE_RADIUS * (scale.high - scale.low), rel=1e-4)
        check_shadow(opened, land, scale, step)
        assert [opened.trace("curve", "step", axis) for axis in "xy"] == [[step], pytest.approx([run.loss[step]])]
        assert opened.trace("fit", "network", "y") == pytest.approx(run.predict(step).tolist(), abs=1e-4)
        assert opened.tile("loss at step") == f"{run.loss[step]:.3g}"
        assert f"step={step}, log={kind == 'log'})" in opened.page.locator("#lossviz-recipe").inner_text()
    opened.control("loss_axis").select_option("linear")
    opened.wait_drawn()


def check_shadow(opened, land, scale, step):
    """Check that the shadow of the ball lies on the drawn surface, the fainter the farther the ball is from it."""
    ends = scale.draw(np.array([land.path_loss[step], land.path_height[step]]))
    gap = np.ptp(ends) / (2 * LIVE_RADIUS * (scale.high - scale.low))
    if gap > 1:
        assert opened.trace("surface", "shadow", "i") == []
        return
    points = np.array([opened.trace("surface", "shadow", axis) for axis in "xyz"])
    heights = scale.draw(land.loss)
    expected = [reference.height_of_triangles(land, heights, point) for point in points[:2].T]
    lifted = np.array(expected) + SHADOW_LIFT * (scale.high - scale.low)
    np.testing.assert_allclose(scale.draw(points[2]), lifted, atol=1e-4 * (scale.high - scale.low))
    colors = ["".join(color) for color in opened.trace("surface", "shadow", "vertexcolor")]
    colors = np.array([re.findall(r"\d+", color) for color in colors], int)
    middle, rim = colors[0].sum(), colors[-20:].sum(axis=1).mean()
    assert middle / rim == pytest.approx(1 - SHADOW_DEPTH * (1 - gap), abs=0.15)


@pytest.mark.browser
def test_what_is_drawn_directly_looks_like_a_full_redraw(opened):
    """The ball, the network and the marker of the step are drawn without Plotly's layout."""
    page = opened.page
    # Lines and points in two dimensions are drawn fully once they rest.
    page.evaluate(
        "() => { window.full = 0; const {update} = Plotly; Plotly.update = (pane, ...others) => "
        "{ if (pane.matches('.lossviz-pane-surface')) full++; return update(pane, ...others); }; }"
    )
    redraw = "pane => Plotly.redraw(document.querySelector('.lossviz-pane-' + pane))"
    for name in ("surface", "curve", "fit"):
        page.evaluate(redraw, name)
    opened.slide("step", 5)
    opened.slide("step", 3)
    assert page.evaluate("() => full") == 0
    page.wait_for_timeout(300)
    # Plotly leaves out points of the network's line that are on the way between their neighbors.
    for name, limit in {"surface": 0.01, "curve": 0.01, "fit": 0.5}.items():
        pane = page.locator(f".lossviz-pane-{name}")
        directly = look(pane)
        opened.slide("step", 60)
        moved = np.abs(look(pane) - directly).mean()
        opened.slide("step", 3)
        page.evaluate(redraw, name)
        for _ in range(20):  # a slow machine takes longer to show it
            page.wait_for_timeout(400)
            if (same := np.abs(look(pane) - directly).mean()) < limit * moved:
                break
        assert same < limit * moved, name


def look(pane):
    return np.asarray(Image.open(io.BytesIO(pane.screenshot())).convert("RGB")).astype(float)


@pytest.mark.browser
def test_play_and_pause(opened):
    opened.slide("step", 0)
    button = opened.page.get_by_role("button", name="play")
    button.press("Enter")
    assert opened.page.get_by_role("button", name="pause").count() == 1
    step = opened.control("step")
    opened.page.wait_for_function("() => document.querySelector('.lossviz-step').value > 3")
    opened.page.get_by_role("button", name="pause").press("Enter")
    stopped = step.input_value()
    opened.page.wait_for_timeout(400)
    assert step.input_value() == stopped
    assert int(stopped) < 60
    assert button.count() == 1
    opened.wait_drawn()
    button.click()
    button.wait_for(timeout=60_000)  # at the end
    assert step.input_value() == "60"
    button.click()  # restarts
    opened.page.wait_for_function("() => document.querySelector('.lossviz-step').value < 60")
    opened.slide("step", 2)  # moving the slider stops it
    assert button.count() == 1


@pytest.mark.browser
def test_a_click_on_the_curve_moves_the_ball_and_the_camera_stays(opened):
    box = opened.page.locator(".lossviz-pane-curve .nsewdrag[data-subplot=xy]").bounding_box()
    mouse = opened.page.mouse
    mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] / 2)
    opened.page.wait_for_timeout(300)
    mouse.click(box["x"] + box["width"] * 0.5, box["y"] + box["height"] / 2)
    opened.page.wait_for_function("() => document.querySelector('.lossviz-step').value > 20")
    opened.wait_drawn()
    step = opened.control("step")
    assert int(step.input_value()) == pytest.approx(30, abs=4)
    box = opened.page.locator(".lossviz-pane-surface canvas").first.bounding_box()
    camera = opened.layout("surface", "scene._scene.getCamera().eye")
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    mouse.move(x, y)
    mouse.down()
    mouse.move(x - 90, y + 10, steps=6)
    mouse.up()
    opened.page.wait_for_timeout(400)
    rotated = opened.layout("surface", "scene._scene.getCamera().eye")
    assert rotated != camera
    opened.slide("sigma", 2)
    opened.slide("k", 0)
    opened.control("loss_axis").select_option("log")
    opened.wait_drawn()
    for axis in "xyz":
        assert opened.layout("surface", "scene._scene.getCamera().eye")[axis] == pytest.approx(rotated[axis])
    opened.control("loss_axis").select_option("linear")
    opened.wait_drawn()


@pytest.mark.browser
def test_a_click_on_the_surface_selects_the_nearest_step(computed, opened):
    opened.slide("step", 60)
    box = opened.page.locator(".lossviz-pane-surface canvas").first.bounding_box()
    opened.page.mouse.click(box["x"] + 4, box["y"] + box["height"] - 4)  # hits nothing and moves nothing
    path = computed.opening.path
    beside = path[17] + 0.02 * computed.opening.projection.diagonal
    nearest = int(np.linalg.norm(path - beside, axis=1).argmin())
    corner = computed.opening.x[0], computed.opening.y[0]
    for (x, y), trace, index, expected in (
        (beside, "surface", 3, nearest),
        (corner, "surface", 0, nearest),
        (path[0], "trajectory", 5, 5),
        (path[44], "ball", 0, int(np.linalg.norm(path - path[44], axis=1).argmin())),
    ):
        opened.page.evaluate(
            """([x, y, trace, index]) => {
                const pane = document.querySelector('.lossviz-pane-surface');
                const curveNumber = pane.data.findIndex(t => (t.uid || t.name) === trace);
                pane.emit('plotly_click', {points: [{curveNumber, pointNumber: index, x, y}]});
            }""",
            [float(x), float(y), trace, index],
        )
        opened.wait_drawn()
        assert opened.control("step").input_value() == str(expected)


@pytest.mark.browser
def test_the_page_fits_the_window_and_follows_the_theme(opened):
    ink = opened.layout("curve", "font.color")
    width = opened.layout("surface", "width")
    opened.page.set_viewport_size({"width": 390, "height": 800})
    opened.page.emulate_media(color_scheme="dark")
    opened.page.wait_for_function(
        f"() => document.querySelector('.lossviz-pane-surface')._fullLayout.width < {width} / 2"
        f" && document.querySelector('.lossviz-pane-curve')._fullLayout.font.color !== '{ink}'"
    )
    assert opened.page.evaluate("() => document.scrollingElement.scrollWidth") <= 390
    assert opened.layout("fit", "width") == opened.layout("surface", "width")
    # The sliders stay visible when the page scrolls.
    assert opened.control("sigma").bounding_box()["y"] < 800
    opened.page.set_viewport_size({"width": 1280, "height": 900})
    opened.page.emulate_media(color_scheme="light")
    opened.page.wait_for_function(
        f"() => document.querySelector('.lossviz-pane-surface')._fullLayout.width === {width}"
        f" && document.querySelector('.lossviz-pane-curve')._fullLayout.font.color === '{ink}'"
    )


@pytest.mark.browser
def test_the_page_is_accessible_and_sends_nothing(opened):
    snapshot = opened.page.locator("body").aria_snapshot()
    sliders = ("training step", "stride k", "smoothing σ")
    for word in ('heading "x^3"', 'combobox "loss axis"', 'button "play"', *(f'slider "{name}"' for name in sliders)):
        assert word in snapshot
    assert 'figure "Loss landscape of a run of 60 steps' in snapshot
    titles = (
        "() => Array.from(document.querySelectorAll('.modebar-btn'), b => b.getAttribute('data-title') || '').join()"
    )
    buttons = opened.page.evaluate(titles)
    assert "Orbital rotation" in buttons
    assert "cloud" not in buttons.lower()
    assert "share" not in buttons.lower()
    with opened.page.expect_download() as download:
        opened.page.locator(".lossviz-pane-surface").hover()
        opened.page.locator(".lossviz-pane-surface .modebar-btn[data-title*='Download']").click()
    assert download.value.suggested_filename == "loss_viz.png"
    assert download.value.path().read_bytes()[1:4] == b"PNG"


@pytest.mark.slow
@pytest.mark.browser
def test_the_defaults_make_less_than_8_mb(browser, tmp_path):
    run = lv.train("x^3", progress=False)
    path = export_html(run, tmp_path / "run.html", progress=False)
    assert path.stat().st_size < 8_000_000
    opened = Page(browser, path)
    assert opened.page.title() == "x^3 – loss landscape"
    land = lv.landscape(run, progress=False)
    assert opened.trace("surface", "surface", "z") == pytest.approx(land.loss.ravel().tolist(), rel=1e-5)
    assert len(opened.trace("curve", "loss", "y")) == 2001
    for name, values in (("k", ["1", "2", "5", "10", "20"]), ("sigma", ["auto", "0.01", "0.03", "0.06", "0.1"])):
        shown = []
        for position in range(len(values)):
            opened.slide(name, position)
            shown.append(opened.page.locator(f".lossviz-field[data-name={name}] output").inner_text())
        assert shown == values
    assert "the best straight line" in opened.tile("plateau")
    assert opened.page.evaluate("() => document.querySelector('.lossviz-pane-curve').layout.shapes.length") == 1
    opened.close()


@pytest.mark.browser
def test_several_runs(browser, tmp_path):
    a, b = lv.compare("x^3", ["adam", "sgd"], steps=60, progress=False)
    b = replace(b, weights=b.weights[:41], loss=b.loss[:41], step=b.step[:41])
    runs = {"<b>one</b>": a, "other": b}
    path = export_html(runs, tmp_path / "race.html", k=[5], sigma=["auto"], resolution=(8, 6), progress=False)
    opened = Page(browser, path)
    land = lv.landscape(runs, k=5, resolution=(8, 6), progress=False)
    assert opened.trace("surface", "surface", "z") == pytest.approx(land.loss.ravel().tolist(), rel=1e-5)
    opened.slide("step", 50)
    for i, (run, row) in enumerate(((a, 50), (b, 40))):
        tail = f"-{i}" if i else ""
        ball = np.array([opened.trace("surface", f"ball{tail}", axis) for axis in "xyz"])
        place = land.path[land.run_set.starts[i] + row]
        assert (ball[:2].max(axis=1) + ball[:2].min(axis=1)) / 2 == pytest.approx(place, abs=0.02 * np.ptp(ball[0]))
        assert ball[2].min() == pytest.approx(run.loss[row], rel=1e-5)
        assert opened.trace("curve", f"step{tail}", "x") == [row]
        assert opened.trace("fit", f"network{tail}", "y") == pytest.approx(run.predict(row).tolist(), abs=1e-4)
    assert opened.page.locator(".lossviz-pane-surface .legendtext").all_text_contents() == ["<b>one</b>", "other"]
    assert "step 40" in opened.tile("other")
    assert opened.control("sigma").count() == 0
    opened.close()


@pytest.mark.browser
def test_runs_without_a_task_have_no_fit_and_names_are_escaped(browser, own_run, tmp_path):
    path = export_html(own_run, tmp_path / "own.html", k=[2], resolution=(6, 4), progress=False)
    opened = Page(browser, path)
    assert opened.page.locator(".lossviz-pane-fit").count() == 0
    assert opened.page.locator("h1").inner_text() == NASTY
    assert opened.page.locator("img").count() == 0
    assert NASTY in opened.page.locator(".lossviz-pane-surface .gtitle").text_content().replace("\xa0", " ")
    assert opened.control("loss_axis").count() == 0
    opened.slide("step", 7)
    assert opened.trace("surface", "error", "z")[0] == pytest.approx(own_run.loss[7])
    opened.close()
