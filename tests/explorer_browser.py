r"""The explorer's notebook in a real browser: JupyterLab, headless Chromium, and the DevTools protocol between them.

    python tests/explorer_browser.py --out figures/explorer.png    # the README's picture, and latencies in the browser

``test_explorer_browser.py`` uses the same. Everything is temporary: a copy of the notebook as far as the explorer
(nbval runs the rest), Jupyter's folders, the browser's profile. A port that is taken is no obstacle: Jupyter goes on to
another, and says which.
"""

import argparse
import base64
import contextlib
import io
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import websocket  # websocket-client, which comes with jupyter_server
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "notebooks" / "16_explorer.ipynb"
LIMIT = 300  # seconds that anything may take on a machine full of jobs
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
KEYS = {
    "Backspace": 8,
    "Tab": 9,
    "Enter": 13,
    "ArrowRight": 39,
    "ArrowLeft": 37,
    "ArrowDown": 40,
    "End": 35,
    "Home": 36,
}


def find_browser() -> str | None:
    """Path of a Chromium or Chrome, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def until(found, what: str, limit: float = LIMIT):
    """What ``found()`` gives once it is true; ``TimeoutError`` naming ``what`` otherwise."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        if value := found():
            return value
        time.sleep(0.1)
    raise TimeoutError(f"waited {limit} s in vain for {what}")


@contextlib.contextmanager
def process(words, log: Path, **options):
    """A program whose output goes to a file; it and its children end with the block."""
    with log.open("wb") as out:
        started = subprocess.Popen(words, stdout=out, stderr=out, start_new_session=True, **options)
        try:
            yield started
        finally:
            for way, patience in ((signal.SIGTERM, 20), (signal.SIGKILL, 20)):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(started.pid, way)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    started.wait(patience)
                    break


@contextlib.contextmanager
def jupyterlab(folder: Path, port: int, dark: bool = False, **environment):
    """JupyterLab of this Python with ``folder`` as its root and folders of its own; yields its address and token.

    ``port`` is where it begins to look for a free one.
    """
    own = folder.parent / "jupyter"
    settings = {
        "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
        "apputils-extension/themes": {"theme": "JupyterLab Dark" if dark else "JupyterLab Light"},
        "notebook-extension/tracker": {"windowingMode": "none"},  # all cells are in the page
    }
    for name, values in settings.items():
        path = own / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    places = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime"}
    places |= {
        "JUPYTERLAB_SETTINGS_DIR": "settings",
        "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        "IPYTHONDIR": "ipython",
    }
    env = os.environ | {name: str(own / place) for name, place in places.items()}
    env |= {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
    env |= {"JUPYTER_PREFER_ENV_PATH": "1", "MPLBACKEND": "module://matplotlib_inline.backend_inline"} | environment
    token = secrets.token_hex(16)
    words = [sys.executable, "-m", "jupyterlab", "--no-browser", f"--port={port}", "--ServerApp.ip=127.0.0.1"]
    words += [f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}", "--ServerApp.port_retries=200"]
    words += ["--LabApp.expose_app_in_browser=True", "--ServerApp.terminals_enabled=False"]
    words += ["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    log = own / "log.txt"
    with process(words, log, env=env, cwd=folder) as server:

        def address():
            if server.poll() is not None:
                raise RuntimeError(f"JupyterLab ended:\n{log.read_text(errors='replace')[-3000:]}")
            for path in (own / "runtime").glob("jpserver-*.json"):
                with contextlib.suppress(ValueError, OSError):  # half written, or not listening yet
                    url = json.loads(path.read_text())["url"]
                    urllib.request.urlopen(f"{url}api?token={token}", timeout=5)
                    return url
            return None

        yield until(address, "JupyterLab"), token


class Page:
    """A tab of Chromium: ``evaluate`` JavaScript, press keys, move the pointer, take pictures."""

    def __init__(self, url: str):
        self.socket = websocket.create_connection(url, timeout=LIMIT, suppress_origin=True)
        self.number = 0
        for domain in ("Page", "Runtime"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)  # as if its window were in front

    def call(self, method: str, **parameters) -> dict:
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self.socket.recv())
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def evaluate(self, code: str):
        """The value of an expression, which may be a promise."""
        answer = self.call("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{code}: {answer['exceptionDetails'].get('exception', {}).get('description')}")
        return answer["result"].get("value")

    def until(self, code: str, what: str, limit: float = LIMIT):
        return until(lambda: self.evaluate(code), what, limit)

    def press(self, key: str, shift: bool = False) -> None:
        """A key by name, or a character."""
        about = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS.get(key, 0), "modifiers": 8 * shift}
        text = key if len(key) == 1 else ""
        self.call("Input.dispatchKeyEvent", type="keyDown", **about, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def write(self, text: str) -> None:
        for character in text:
            self.press(character)

    def place(self, selector: str) -> tuple[float, float]:
        """The middle of an element, scrolled into view."""
        code = f"""(() => {{const e = document.querySelector({json.dumps(selector)});
            e.scrollIntoView({{block: 'nearest'}}); const r = e.getBoundingClientRect();
            return [r.x + r.width / 2, r.y + r.height / 2]}})()"""
        return tuple(self.evaluate(code))

    def point(self, selector: str) -> None:
        x, y = self.place(selector)
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, selector: str) -> None:
        x, y = self.place(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def picture(self, clip: dict | None = None) -> Image.Image:
        more = {"clip": clip | {"scale": 1}} if clip else {}
        data = self.call("Page.captureScreenshot", format="png", **more)["data"]
        return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")


@contextlib.contextmanager
def chromium(folder: Path, size=(1000, 1100), scale: float = 1.0):
    """A headless Chromium with a profile of its own and one empty page."""
    profile = folder / "profile"
    profile.mkdir(parents=True, exist_ok=True)
    words = [find_browser(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    words += ["--remote-debugging-port=0", f"--user-data-dir={profile}", f"--window-size={size[0]},{size[1]}"]
    words += ["--no-first-run", "--disable-extensions", "--disable-background-networking", "--hide-scrollbars"]
    log = folder / "chromium.txt"
    env = os.environ | {"HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "XDG_CACHE_HOME": str(folder)}
    with process([*words, "about:blank"], log, env=env) as browser:

        def page():
            if browser.poll() is not None:
                raise RuntimeError(f"the browser ended:\n{log.read_text(errors='replace')[-3000:]}")
            with contextlib.suppress(OSError, ValueError, IndexError, StopIteration):
                port = (profile / "DevToolsActivePort").read_text().split()[0]
                tabs = json.load(urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=5))
                return next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page")

        found = Page(until(page, "the browser"))
        about = {"width": size[0], "height": size[1], "deviceScaleFactor": scale, "mobile": False}
        found.call("Emulation.setDeviceMetricsOverride", **about)
        try:
            yield found
        finally:
            found.socket.close()


class Explored:
    """The explorer as a user has it in front of them."""

    VIEW = ".hrcf-explored"
    TEXT = ".hrcf-explorer textarea"
    NAMES = "[...document.querySelectorAll('.hrcf-explored .name')].map(e => e.textContent.replace('\\u2713 ', ''))"

    def __init__(self, page: Page):
        self.page = page

    def open(self, url: str, token: str) -> None:
        """Open the notebook, run all its cells, and wait for the explorer and the last cell."""
        page = self.page
        page.call("Page.navigate", url=f"{url}lab/tree/notebooks/{NOTEBOOK.name}?token={token}&reset")
        panel = "[...(window.jupyterapp?.shell?.widgets('main') ?? [])].find(w => w.sessionContext)"
        page.until(f"({panel})?.sessionContext.session?.kernel?.status === 'idle'", "the kernel")
        page.evaluate(f"void window.jupyterapp.shell.activateById(({panel}).id)")
        page.evaluate("void window.jupyterapp.commands.execute('application:toggle-left-area')")
        page.until(f"window.jupyterapp.shell.currentWidget === {panel}", "the notebook in front")
        page.evaluate("void window.jupyterapp.commands.execute('notebook:run-all-cells')")
        page.until(f"['{self.VIEW}', '{self.TEXT}'].every(s => document.querySelector(s))", "the explorer")
        code = "c => c.model.type !== 'code' || c.model.executionCount"
        page.until(f"({panel}).content.widgets.every({code})", "the last cell")

    def labels(self) -> list[str]:
        """Names of the bars, the best first."""
        return self.page.evaluate(self.NAMES)

    def message(self) -> str:
        code = "[...document.querySelectorAll('.hrcf-explorer [role=alert]')].map(e => e.textContent).join(' ')"
        return self.page.evaluate(code)

    def type(self, text: str) -> None:
        """Put the caret at the end of the labels and write."""
        self.page.click(self.TEXT)
        field = f"document.querySelector({self.TEXT!r})"
        self.page.until(f"document.activeElement === {field}", "the focus of the labels")
        self.page.evaluate(f"{field}.setSelectionRange({field}.value.length, {field}.value.length)")
        self.page.write(text)

    def wait_for(self, label: str) -> None:
        self.page.until(f"{self.NAMES}.includes({json.dumps(label)})", f"a bar of {label!r}")

    def row(self, label: str) -> str:
        """A selector of the bar of a label."""
        return f".hrcf-explored li:nth-child({self.labels().index(label) + 1})"

    def overlay(self, label: str) -> float:
        """Opacity of the map of a label."""
        code = f"getComputedStyle(document.querySelector({self.row(label) + ' .map'!r})).opacity"
        return float(self.page.evaluate(code))

    def clip(self) -> dict:
        """The rectangle of the explorer."""
        code = """(() => {const e = document.querySelector('.hrcf-explorer'); e.scrollIntoView({block: 'center'});
            const r = e.getBoundingClientRect(); return [r.x, r.y, r.width, r.height]})()"""
        x, y, w, h = self.page.evaluate(code)
        return {"x": x - 4, "y": y - 4, "width": w + 8, "height": h + 8}

    def latency(self, act, event: str = "keydown") -> float:
        """Milliseconds from the ``event`` that ``act()`` causes to the page that shows what came of it."""
        self.page.evaluate(
            """void (window.hrcfLatency = new Promise((done, fail) => {
            let begin = null;
            addEventListener('EVENT', () => {begin = performance.now()}, {capture: true, once: true});
            const watch = new MutationObserver(() => {
                if (begin === null) return;
                watch.disconnect();
                requestAnimationFrame(() => setTimeout(() => done(performance.now() - begin)));
            });
            const view = document.querySelector('.hrcf-explored').parentElement;
            watch.observe(view, {childList: true, subtree: true, characterData: true});
            setTimeout(() => fail(new Error('nothing changed')), 60000);
        }))""".replace("EVENT", event)
        )
        act()
        return self.page.evaluate("window.hrcfLatency")

    def focus_slider(self, number: int) -> None:
        """Put the focus on the handle of a slider: 0 lambda, 1 regions, 2 threshold."""
        self.page.evaluate(f"document.querySelectorAll('.hrcf-explorer .noUi-handle')[{number}].focus()")

    def insert(self, text: str) -> None:
        """Text at the caret in one go, as if pasted."""
        self.page.call("Input.insertText", text=text)


def copy_to_explorer(folder: Path) -> None:
    """Write the notebook into ``folder``, up to the cell that shows the explorer."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    shows = ["Explorer(" in "".join(cell["source"]) for cell in notebook["cells"]]
    notebook["cells"] = notebook["cells"][: shows.index(True) + 1]
    (folder / NOTEBOOK.name).write_text(json.dumps(notebook), encoding="utf-8")


@contextlib.contextmanager
def explored(port: int = 8888, size=(1000, 1100), scale: float = 1.0, dark: bool = False, **environment):
    """Everything together; yields the explorer, and the address that JupyterLab got."""
    with tempfile.TemporaryDirectory(prefix="hrcf-", ignore_cleanup_errors=True) as folder:
        root = Path(folder) / "root"
        (root / "notebooks").mkdir(parents=True)
        copy_to_explorer(root / "notebooks")
        environment = {"HRCF_OUT": str(Path(folder) / "out"), "HF_HUB_OFFLINE": "1"} | environment
        with contextlib.ExitStack() as stack:
            url, token = stack.enter_context(jupyterlab(root, port, dark, **environment))
            found = Explored(stack.enter_context(chromium(Path(folder) / "browser", size, scale)))
            found.open(url, token)
            yield found, url


def main(words=None) -> None:
    """Take the README's picture and measure latencies."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the picture, such as figures/explorer.png")
    parser.add_argument("--labels", default="fox, ice, mountain, clouds, sky, owl, sea, pizza")
    parser.add_argument("--label", default="umbrella", help="what is typed")
    parser.add_argument("--show", default="fox", help="whose map is shown")
    parser.add_argument("--dark", action="store_true")
    given = parser.parse_args(words)
    with explored(scale=2.0, dark=given.dark) as (found, _):
        page = found.page
        found.type(f", {given.label}")
        found.wait_for(given.label)
        times = {"label": [found.latency(lambda w=w: found.insert(f", {w},"), "input") for w in ("owl", "bus", "cat")]}
        for number, what in enumerate(("lambda", "regions", "threshold")):
            found.focus_slider(number)
            keys = ["ArrowLeft", "ArrowRight"] * 5
            times[what] = [found.latency(lambda key=key: page.press(key)) for key in keys]
        print({what: [round(t) for t in own] for what, own in times.items()}, "ms from the key to the page")
        page.click(".hrcf-explorer button.hrcf-reset")
        page.click(found.TEXT)
        page.evaluate("document.activeElement.select()")
        found.insert(f"{given.labels}, {given.label}")
        shown = {name.strip() for name in given.labels.split(",")} | {given.label}
        until(lambda: set(found.labels()) == shown, "the labels")
        page.evaluate("document.activeElement.blur()")
        clip = found.clip()  # which scrolls, so before the pointer takes its place
        page.point(found.row(given.show))
        until(lambda: found.overlay(given.show) == 1, "the map")
        given.out.parent.mkdir(parents=True, exist_ok=True)
        page.picture(clip).save(given.out, optimize=True)
    print(given.out)


if __name__ == "__main__":
    main()
