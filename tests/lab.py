"""A notebook in JupyterLab and in Chromium, driven by Playwright."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = [
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
    # WebGL is drawn in software; the rest of the page costs least where nothing pretends to have a GPU.
    "--disable-gpu-rasterization",
    "--disable-gpu-compositing",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",  # a page that needs the network fails
]
# Hints of Chromium about canvases and software WebGL, and of JupyterLab about a slow machine.
HARMLESS = re.compile(
    "willReadFrequently|GPU stall|WebGL|GroupMarkerNotSet|Automatic fallback|too long to activate|ms to activate"
)

try:
    import nbformat
    from playwright.sync_api import sync_playwright

    MISSING = "" if CHROMIUM else "no Chromium on the PATH; on Debian: apt-get install chromium"
except ImportError as error:
    MISSING = f"{error.name} is not installed"
if MISSING and "LOSS_VIZ_BROWSER" in os.environ:
    raise RuntimeError(MISSING)


@contextlib.contextmanager
def open_chromium():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def write_notebook(path, *cells):
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(book, path)


class Lab:
    """A JupyterLab server on a free port, with its settings and notebooks in a folder."""

    def __init__(self, folder):
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        places = {
            name: str(folder / ".home" / name)
            for name in ("config", "data", "runtime", "workspaces", "settings", "ipython")
        }
        environment = os.environ | {
            "JUPYTER_CONFIG_DIR": places["config"],
            "JUPYTER_DATA_DIR": places["data"],
            "JUPYTER_RUNTIME_DIR": places["runtime"],
            "JUPYTERLAB_WORKSPACES_DIR": places["workspaces"],
            "JUPYTERLAB_SETTINGS_DIR": places["settings"],
            "IPYTHONDIR": places["ipython"],
            "JUPYTER_PLATFORM_DIRS": "1",
        }
        self.log = (folder / "lab.log").open("wb")
        self._set("apputils-extension/notification", fetchNews="false", checkForUpdates=False, doNotDisturbMode=True)
        self._set(
            "notebook-extension/tracker", windowingMode="none"
        )  # keeps cells in the page that are scrolled out of sight
        options = [
            f"--ServerApp.root_dir={folder}",
            f"--port={port}",
            "--ServerApp.port_retries=0",
            "--ip=127.0.0.1",
            "--no-browser",
            "--allow-root",
            "--IdentityProvider.token=",
            "--ServerApp.disable_check_xsrf=True",
            "--LabApp.expose_app_in_browser=True",
        ]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options],
            env=environment,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._wait()

    def _set(self, plugin, **values):
        path = self.folder / f".home/settings/@jupyterlab/{plugin}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))

    @contextlib.contextmanager
    def default_windowing(self):
        """Let pages that are opened meanwhile lay out cells out of sight as JupyterLab does by default."""
        self._set("notebook-extension/tracker")
        yield
        self._set("notebook-extension/tracker", windowingMode="none")

    def _wait(self):
        end = time.monotonic() + 90
        while True:
            with contextlib.suppress(OSError):
                urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{self.url}/api", timeout=2).read()
                return
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError((self.folder / "lab.log").read_text(errors="replace")[-3000:])
            time.sleep(0.2)

    def close(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)
        self.log.close()


# A widget created before the widget manager has loaded those of the kernel gets no updates.
WIDGETS_READY = """async () => {
    const mimeType = 'application/vnd.jupyter.widget-view+json';
    const factory = window.jupyterapp.shell.currentWidget.content.rendermime.getFactory(mimeType);
    const manager = factory && await factory.createRenderer({mimeType})._manager.promise;
    return manager && manager.restoredStatus;
}"""


class Notebook:
    """One notebook in one page; `errors` collects those of the browser's console and the kernel."""

    def __init__(self, page, lab, name):
        self.page = page
        self.errors = []
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.errors.append(f"{error} {error.stack}"))
        page.on("websocket", lambda socket: socket.on("framereceived", self._on_kernel_message))
        page.goto(f"{lab.url}/lab/tree/{name}?reset", timeout=90_000)
        page.wait_for_function("() => window.jupyterapp && window.jupyterapp.shell.currentWidget?.content?.widgets")
        page.evaluate("async () => { await window.jupyterapp.restored; await window.jupyterapp.allPluginsActivated; }")
        page.evaluate("() => window.jupyterapp.shell.collapseLeft()")
        self.wait_idle()
        page.wait_for_function(WIDGETS_READY, timeout=90_000)

    def _on_console(self, message):
        if message.type in ("error", "warning") and not HARMLESS.search(message.text):
            self.errors.append(message.text)

    def _on_kernel_message(self, payload):
        data = payload if isinstance(payload, bytes) else payload.encode()
        if b'"msg_type": "error"' in data or b'"msg_type":"error"' in data:
            self.errors.append(data.decode(errors="replace")[-3000:])

    def command(self, name, **arguments):
        self.page.evaluate(f"() => window.jupyterapp.commands.execute('{name}', {json.dumps(arguments)})")

    def wait_idle(self):
        self.page.wait_for_function(
            "() => window.jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status === 'idle'",
            timeout=90_000,
        )

    def run_all(self):
        """Run all cells."""
        self.page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")
        self.wait_idle()

    def run_cell(self, index):
        """Run one cell and return what it printed."""
        return self.page.evaluate(
            """async index => {
                const notebook = window.jupyterapp.shell.currentWidget.content;
                notebook.activeCellIndex = index;
                await window.jupyterapp.commands.execute('notebook:run-cell');
                return notebook.widgets[index].outputArea.node.innerText;
            }""",
            index,
        )


class Panel:
    """A panel in a notebook, read from the page and moved by mouse and keyboard."""

    def __init__(self, notebook, index=0):
        self.notebook = notebook
        self.page = notebook.page
        self.root = self.page.locator(".lossviz").nth(index)
        self.index = index

    def wait_drawn(self, timeout=60):
        """Wait until the figures have been up to date for a moment."""
        busy = f"() => document.querySelectorAll('.lossviz-picture')[{self.index}]?.getAttribute('aria-busy')"
        end, calm = time.monotonic() + timeout, 0
        while calm < 4:
            calm = calm + 1 if self.page.evaluate(busy) == "false" else 0
            self.page.wait_for_timeout(75)
            if time.monotonic() > end:
                raise TimeoutError(f"not drawn after {timeout} s; the panel says {self.status!r}")

    def wait_until(self, condition, timeout=30):
        end = time.monotonic() + timeout
        while not condition():
            self.page.wait_for_timeout(50)
            if time.monotonic() > end:
                raise TimeoutError(f"condition not met after {timeout} s; the panel says {self.status!r}")

    @property
    def status(self):
        return self.root.locator(".lossviz-status").inner_text()

    @property
    def state(self):
        return self.root.locator(".lossviz-badge").inner_text()

    def look(self):
        """Return a digest of each visible pane: its data, title and axes."""
        return self.page.evaluate(
            """index => {
                const panes = document.querySelectorAll('.lossviz')[index].querySelectorAll('.lossviz-pane');
                const sum = values => Array.from(values || []).reduce((s, v, i) => s + (+v || 0) * Math.cos(i), 0);
                return Array.from(panes, pane => {
                    const traces = pane._fullData.map(t => ['x', 'y', 'z'].map(k => sum(t[k])).join());
                    const scene = pane._fullLayout.scene;
                    return traces.join(';') + pane._fullLayout.title.text + (scene ? scene.zaxis.type : '');
                });
            }""",
            self.index,
        )

    @property
    def title(self):
        return self._surface("pane => pane._fullLayout.title.text")

    @property
    def camera(self):
        return self._surface("pane => pane._fullLayout.scene._scene.getCamera().eye")

    def trace(self, pane, name, key):
        """Return the values of a drawn trace as numbers: None where not finite, none before the first picture."""
        return self.page.evaluate(
            """([index, pane, name, key]) => {
                const root = document.querySelectorAll('.lossviz')[index];
                pane = root.querySelector('.lossviz-pane-' + pane);
                if (!pane?._fullData) return []; // Plotly is loaded after the panel has opened
                const trace = pane._fullData.find((t, i) => name === (pane.data[i].uid || t.name));
                return Array.from(trace[key]);
            }""",
            [self.index, pane, name, key],
        )

    def read_drawn(self, pane, name):
        """Return x and y of the points of a 2D trace as its SVG shows them, in units of the axes."""
        return self.page.evaluate(
            """([index, pane, name]) => {
                const root = document.querySelectorAll('.lossviz')[index];
                pane = root.querySelector('.lossviz-pane-' + pane);
                const trace = pane._fullData.find((t, i) => name === (pane.data[i].uid || t.name));
                const group = pane.querySelector(`.scatterlayer .trace${trace.uid}`);
                const point = group.querySelector('path.point');
                const line = group.querySelector('path.js-line');
                const text = point ? point.getAttribute('transform') : line.getAttribute('d');
                const find = (name) => pane._fullLayout[name.replace(/^([xy])/, '$1axis')];
                const [x, y] = [find(trace.xaxis || 'x'), find(trace.yaxis || 'y')];
                const numbers = text.match(/-?[\\d.]+/g).map(Number);
                const toData = (axis, pixel) => axis.l2d(axis.p2l(pixel));
                return numbers.map((pixel, i) => toData(i % 2 ? y : x, pixel));
            }""",
            [self.index, pane, name],
        )

    def _surface(self, code):
        return self.page.evaluate(
            f"index => ({code})(document.querySelectorAll('.lossviz')[index].querySelector('.lossviz-pane'))",
            self.index,
        )

    def control(self, name):
        """Return the input of a setting; its drawer is opened if need be."""
        if name == "step":
            return self.root.locator(".lossviz-step")
        field = self.root.locator(
            f".lossviz-field[data-name={name}] > :is(input, select), "
            f".lossviz-field[data-name={name}] .lossviz-track input"
        )
        if not field.is_visible():
            self.button("more").click()
        return field

    def close_drawer(self):
        if self.root.locator(".lossviz-drawer").is_visible():
            self.button("more").click()

    def press(self, name, key, times=1):
        self.control(name).focus()
        for _ in range(times):
            self.page.keyboard.press(key)

    def choose(self, name, option):
        self.control(name).select_option(option)

    def type(self, name, text):
        box = self.control(name)
        box.fill(text)
        box.press("Enter")

    def button(self, name):
        button = self.root.get_by_role("button", name=name, exact=True)
        menu = {"Train": "more"} | dict.fromkeys(("picture", "page", "film", "code"), "share")
        if name in menu and not button.is_visible():
            self.button(menu[name]).click()
        return button


def list_moves(panel, rng):
    """Return functions that each make one random move in a panel."""
    keys = ("ArrowLeft", "ArrowRight", "PageUp", "PageDown", "Home")
    options = {
        "axes": ("pca", "random"),
        "plane": ("auto", "local", "parallel", "flat"),
        "loss_axis": ("auto", "linear", "log"),
        "activation": ("tanh", "silu", "relu", "gelu"),
        "optimizer": ("adam", "adamw", "sgd"),
        "preset": ("post", "robust"),
    }
    numbers = {"width": (2, 20), "depth": (1, 3), "steps": (100, 400), "seed": (0, 99)}
    return [
        *(lambda name=name: press_if_enabled(panel, name, rng.choice(keys)) for name in SLIDERS * 4),
        *(lambda name=name: panel.choose(name, str(rng.choice(options[name]))) for name in options),
        *(lambda name=name: panel.type(name, str(rng.integers(*numbers[name]))) for name in numbers),
        *(lambda name=name: panel.button(name).click() for name in ("x", "x²", "x³", "sin 3x", "Train")),
    ]


SLIDERS = ("k", "sigma", "resolution", "step")


def press_if_enabled(panel, name, key):
    """Press a key on a slider, unless the present picture has no use for it."""
    if panel.control(name).is_enabled():
        panel.press(name, key)
