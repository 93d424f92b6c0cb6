"""Files that the panel makes of what it shows: the same as the export functions write, and nothing else is lost."""

import json
import re
import threading

import pytest
import torch

import loss_viz as lv
from loss_viz.export import films
from loss_viz.panel import sharing
from loss_viz.panel.explorer import Explorer

SMALL = {"steps": 80, "resolution": 9, "step": 40, "k": 3}
SIGNATURES = {"picture": b"\x89PNG\r\n\x1a\n", "page": b"<!doctype html>", "film": b"GIF89a"}
FILM = {"n_frames": 4, "width": 320, "height": 240}


@pytest.fixture(autouse=True)
def small_files(monkeypatch):
    """Make films short and pictures coarse."""
    monkeypatch.setattr(sharing, "PICTURE", sharing.PICTURE | {"dpi": 50})
    build = films._build_film
    monkeypatch.setattr(films, "_build_film", lambda name, land, view, **more: build(name, land, view | FILM, **more))


@pytest.fixture
def explorer():
    explorer = Explorer("x^2", **SMALL)
    assert explorer.wait(60.0)
    yield explorer
    explorer.close()


def ask(explorer, kind, asker="view 1"):
    explorer._on_message(None, {"kind": "share", "file": kind, "asker": asker}, [])


def collect(explorer, monkeypatch):
    """Return the list to which the files that are sent from now on are added: name, asker and bytes."""
    files = []

    def send(message, buffers=None):
        if message["kind"] == "file":
            [data] = buffers
            files.append((message["name"], message["asker"], data))

    monkeypatch.setattr(explorer, "send", send)
    return files


def share(explorer, kind, monkeypatch):
    files = collect(explorer, monkeypatch)
    ask(explorer, kind)
    assert explorer.wait(120.0)
    assert explorer.errors[kind] == "", explorer.errors[kind]
    [(name, asker, data)] = files
    assert asker == "view 1"
    assert data.startswith(SIGNATURES[kind])
    assert explorer.work["text"].startswith(f"{name}: {len(data) / 1e6:.1f} MB, made in ")
    return name, data


def export(kind, landscape, path, *, step, log, min_support=0.0):
    """Return what the export function writes."""
    if kind == "picture":
        lv.export_image(landscape, path, **sharing.PICTURE, step=step, log=log, min_support=min_support)
    elif kind == "film":
        lv.export_gif(landscape, path, log=log, min_support=min_support, progress=False)
    else:
        lv.export_html(landscape, path, k=[landscape.k], sigma=[landscape.sigma], step=step, log=log, progress=False)
    return path.read_bytes()


def read_page(data, name):
    return json.loads(re.search(rf'id="{name}">(.*?)</script>', data.decode(), re.DOTALL)[1])


@pytest.mark.parametrize(("kind", "log"), [("picture", False), ("picture", True), ("page", False), ("film", False)])
def test_a_file_is_what_the_export_function_writes(explorer, kind, log, monkeypatch, tmp_path):
    explorer.loss_axis, explorer.step, explorer.min_support = "log" if log else "linear", 20, 0.1
    assert explorer.wait(60.0)
    name, data = share(explorer, kind, monkeypatch)
    assert name == f"x^2-landscape{sharing.FORMATS[kind][0]}"
    assert data == export(kind, explorer.landscape, tmp_path / name, step=20, log=log, min_support=0.1)


def test_a_page_opens_on_the_axis_of_the_panel(explorer, monkeypatch):
    for axis in ("linear", "log"):
        explorer.loss_axis = axis
        assert explorer.wait(60.0)
        _, data = share(explorer, "page", monkeypatch)
        values = read_page(data, "lossviz-data")["values"]
        assert values == {"k": 3, "sigma": "auto", "step": 40, "loss_axis": axis}
        assert read_page(data, "loss_viz-settings")["explorer"] == explorer.settings


def test_pages_of_surfaces_without_a_stride(explorer, monkeypatch):
    for plane in ("parallel", "flat"):
        explorer.plane = plane
        assert explorer.wait(60.0)
        share(explorer, "page", monkeypatch)


@pytest.mark.parametrize("kind", SIGNATURES)
def test_several_runs_and_a_metric(kind, monkeypatch, tmp_path):
    def weight_norm(model):
        return sum(weights.square().sum() for weights in model.parameters())

    runs = lv.compare("x^2", ["adam", "sgd"], steps=60, progress=False)
    explorer = Explorer(runs, metrics={"weight norm": weight_norm}, height="weight norm", resolution=9, k=3)
    assert explorer.wait(60.0)
    name, data = share(explorer, kind, monkeypatch)
    assert name == f"x^2-weight_norm{sharing.FORMATS[kind][0]}"
    assert explorer.landscape.height_name == "weight norm"
    log = explorer._controller.view.scale.log
    assert data == export(kind, explorer.landscape, tmp_path / name, step=explorer.step, log=log)
    explorer.close()


@pytest.mark.parametrize(
    ("name", "file"),
    [("", "run-landscape"), ("../a b\\c:?", "a_b_c_-landscape"), ("σ = 1", "σ_=_1-landscape"), (9 * "long " * 9, None)],
)
def test_names_of_files_are_safe(name, file):
    model, x = torch.nn.Linear(1, 1), torch.ones(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = lv.Recorder(model, lambda m: (m(x) - 2).square().mean(), name=name).attach(optimizer)
    for _ in range(8):
        optimizer.zero_grad()
        (model(x) - 2).square().mean().backward()
        optimizer.step()
    land = lv.landscape(recorder.run(), k=1, resolution=3, progress=False)
    found = sharing.name_file(land)
    assert found == (file or found)
    assert re.fullmatch(r"[\w^()+=.-]{1,120}", found)


@pytest.mark.parametrize("kind", ["picture", "film"])
def test_a_missing_extra_is_named_beside_the_button(explorer, kind, monkeypatch):
    def missing():
        raise ImportError('Images need matplotlib. Install it with: pip install "loss_viz[film]"')

    monkeypatch.setattr(sharing, "check_matplotlib", missing)
    files = collect(explorer, monkeypatch)
    before = explorer.work
    ask(explorer, kind)
    assert 'pip install "loss_viz[film]"' in explorer.errors[kind]
    assert explorer.wait(10.0)
    assert (files, explorer.work) == ([], before)
    share(explorer, "page", monkeypatch)


def test_before_a_landscape_is_complete_the_menu_says_so(monkeypatch):
    explorer = Explorer("x^2", **SMALL)
    files = collect(explorer, monkeypatch)
    ask(explorer, "picture")
    assert "not complete yet" in explorer.errors["picture"]
    assert explorer.wait(60.0)
    assert files == []
    share(explorer, "picture", monkeypatch)
    explorer.close()


def during(monkeypatch, action):
    """Do something once, while the first frame of the next film is rendered."""
    render, done = films.FrameSequence.render, []

    def render_and_act(self, *arguments):
        for still in render(self, *arguments):
            if not done:
                done.append(True)
                action()
            yield still

    monkeypatch.setattr(films.FrameSequence, "render", render_and_act)


def test_a_film_can_be_stopped_and_the_figures_stay(explorer, monkeypatch):
    files, drawn = collect(explorer, monkeypatch), explorer.landscape
    seen = []
    explorer.observe(lambda change: seen.append(change["new"]), "work")
    during(monkeypatch, lambda: explorer._on_message(None, {"kind": "press", "button": "stop"}, []))
    ask(explorer, "film")
    assert explorer.wait(60.0)
    assert explorer.work["text"] == "Stopped; the film was not made."
    assert {work["text"] for work in seen[:-1]} == {"making the film"}
    assert (files, explorer.landscape, explorer.state) == ([], drawn, "")
    share(explorer, "film", monkeypatch)


def test_a_setting_that_is_changed_meanwhile_is_drawn_first_and_the_film_comes_after_it(
    explorer, monkeypatch, tmp_path
):
    files, shown = collect(explorer, monkeypatch), explorer.landscape
    seen = []
    explorer.observe(lambda change: seen.append(change["new"]["text"].partition(" ")[2][:6]), "work")
    during(monkeypatch, lambda: setattr(explorer, "k", 5))
    ask(explorer, "film")
    assert explorer.wait(60.0)
    [(name, _, data)] = files
    assert data == export("film", shown, tmp_path / name, step=40, log=True)
    assert (shown.k, explorer.landscape.k) == (3, 5)
    texts = [text for i, text in enumerate(seen) if text != seen[i - 1]]
    assert texts.index("losses") < len(texts) - 2  # the new surface was complete before the film


def test_a_setting_that_cannot_be_drawn_meanwhile_does_not_keep_the_film(explorer, monkeypatch, tmp_path):
    files, shown, k = collect(explorer, monkeypatch), explorer.landscape, explorer.k
    during(monkeypatch, lambda: setattr(explorer, "k", 5000))
    ask(explorer, "film")
    assert not explorer.wait(60.0)
    [(name, _, data)] = files
    assert data == export("film", shown, tmp_path / name, step=40, log=True)
    assert "`k`=5000 needs at least" in explorer.errors["k"]
    assert explorer.state == "not these settings"
    explorer.k = k
    assert explorer.wait(60.0)


def test_files_are_made_one_after_the_other(explorer, monkeypatch):
    files = collect(explorer, monkeypatch)
    during(monkeypatch, lambda: (ask(explorer, "page", "view 2"), ask(explorer, "picture"), ask(explorer, "picture")))
    ask(explorer, "film")
    assert explorer.wait(120.0)
    assert [(name[-4:], asker) for name, asker, _ in files] == [
        (".gif", "view 1"),
        ("html", "view 2"),
        (".png", "view 1"),
    ]


def test_an_error_is_shown_at_the_button_and_in_the_status_line_and_the_figures_stay(explorer, monkeypatch):
    def fail(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(sharing, "export_image", fail)
    files, drawn = collect(explorer, monkeypatch), explorer.landscape
    ask(explorer, "picture")
    assert explorer.wait(60.0)
    assert explorer.errors["picture"] == explorer.work["text"]
    assert explorer.work["text"] == "The picture was not made. OSError: No space left on device"
    assert explorer.work["bad"]
    assert "Traceback" in explorer.work["details"]
    assert (files, explorer.landscape, explorer.state) == ([], drawn, "")
    share(explorer, "page", monkeypatch)


def test_what_is_measured_after_the_surface_is_measured_all_the_same(monkeypatch):
    explorer = Explorer("x^2", **SMALL)
    files, complete = collect(explorer, monkeypatch), threading.Event()

    def on_done(change):
        if "drawn in" in change["new"]["text"] and not complete.is_set():
            complete.set()
            ask(explorer, "picture")

    explorer.observe(on_done, "work")
    assert explorer.wait(60.0)
    assert complete.is_set()
    assert len(files) == 1
    assert explorer.notes["width_errors"]["sigma"]
    assert explorer.curve_margin["x"]["shape"][0] > 1
    explorer.close()
