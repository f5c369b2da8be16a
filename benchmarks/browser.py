"""A headless Chromium that opens pages, tells what they hold and takes their picture.

Spoken to through its own debugging protocol (Chrome DevTools Protocol), so that nothing has to be
installed beside the browser.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_LARGEST = 16_000  # pixels: taller pages are cut


def find_browser() -> str | None:
    """Return the path of a Chromium, None where there is none."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


class Page:
    """One tab of the browser."""

    def __init__(self, socket: ClientConnection, session: str) -> None:
        self._socket, self._session, self._count = socket, session, 0
        self.requests: list[str] = []
        self.complaints: list[str] = []
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command and return its result."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        self._socket.send(json.dumps({**message, "sessionId": self._session}))
        while True:
            answer = json.loads(self._socket.recv(timeout=60))
            self._note(answer)
            if answer.get("id") == self._count and answer.get("sessionId") == self._session:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return dict(answer["result"])

    def _note(self, event: dict[str, Any]) -> None:
        """Keep what the page asked the network for and what the browser complained of."""
        match event.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(event["params"]["request"]["url"])
            case "Log.entryAdded":
                self.complaints.append(event["params"]["entry"]["text"])

    def open(self, url: str, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Go to an address, as a window of this size in this theme."""
        self.requests.clear()
        self.complaints.clear()
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[theme])
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{expression[:60]}: {found['exceptionDetails']['text']}")
        return found["result"].get("value")

    def wait(self, expression: str, seconds: float = 30) -> bool:
        """Wait until a JavaScript expression holds; False where it does not in time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(RuntimeError):  # the page is just being replaced
                if self.evaluate(f"Boolean({expression})"):
                    return True
            time.sleep(0.2)
        return False

    def text(self) -> str:
        """Return what a reader sees, what stands in frames included."""
        told = (self.in_frame(frame, "document.body.innerText") for frame in self.frames())
        return "\n".join(map(str, told))

    def frames(self) -> list[str]:
        """Return the ids of the page's frames, its own first."""

        def walk(tree: dict[str, Any]) -> Iterator[str]:
            yield tree["frame"]["id"]
            for child in tree.get("childFrames", []):
                yield from walk(child)

        return list(walk(self.call("Page.getFrameTree")["frameTree"]))

    def in_frame(self, frame: str, expression: str) -> Any:
        """Return the value of an expression in a frame, also in one that scripts are kept from."""
        world = self.call("Page.createIsolatedWorld", frameId=frame)["executionContextId"]
        found = self.call(
            "Runtime.evaluate", expression=expression, contextId=world, returnByValue=True
        )
        return found["result"].get("value")

    def wait_for_text(self, text: str, seconds: float = 30) -> bool:
        """Wait until the page shows a text, whatever its case; False where it does not in time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with contextlib.suppress(RuntimeError):  # a frame is just being replaced
                if text.lower() in self.text().lower():
                    return True
            time.sleep(0.3)
        return False

    def click(self, text: str) -> bool:
        """Press the innermost element that says `text`; False where there is none."""
        at = self.evaluate(
            "(() => { const e = [...document.body.querySelectorAll('*')]"
            f".findLast(e => e.innerText && e.innerText.trim() === {json.dumps(text)});"
            "if (!e) return null; e.scrollIntoView({block: 'center'});"
            "const r = e.getBoundingClientRect();"
            "return [r.x + r.width / 2, r.y + r.height / 2] })()"
        )
        if at is None:
            return False
        self.press(*at)
        return True

    def press(self, x: float, y: float) -> None:
        """Press and release the mouse's left button at a place in the window."""
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def replace_text(self, text: str) -> None:
        """Type `text` in the place of all that the focused field holds."""
        keys: dict[str, Any] = {"key": "a", "code": "KeyA", "windowsVirtualKeyCode": 65}
        control = {"modifiers": 2, "commands": ["selectAll"]}
        self.call("Input.dispatchKeyEvent", type="keyDown", **keys, **control)
        self.call("Input.dispatchKeyEvent", type="keyUp", **keys)
        if text:
            self.call("Input.insertText", text=text)
            return
        back = {"key": "Backspace", "code": "Backspace", "windowsVirtualKeyCode": 8}
        self.call("Input.dispatchKeyEvent", type="keyDown", **back)
        self.call("Input.dispatchKeyEvent", type="keyUp", **back)

    def picture(self, path: Path, *, whole: bool = True) -> Path:
        """Write what is shown as PNG; `whole` for all of the page and not the window only."""
        clip = {}
        if whole:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            box = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], _LARGEST)}
            clip = {"clip": {**box, "scale": 1}, "captureBeyondViewport": True}
        content = self.call("Page.captureScreenshot", format="png", **clip)["data"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(content))
        return path

    def pdf(self, path: Path) -> Path:
        """Write the page as it prints, on A4."""
        content = self.call(
            "Page.printToPDF", printBackground=True, paperWidth=8.27, paperHeight=11.69
        )
        path.write_bytes(base64.b64decode(content["data"]))
        return path


@contextlib.contextmanager
def browser(binary: str) -> Iterator[Page]:
    """Start a browser with a profile of its own and yield its one tab; it ends with the block."""
    with tempfile.TemporaryDirectory(prefix="winnow-browser-") as folder:
        options = ["--headless=new", "--remote-debugging-port=0", f"--user-data-dir={folder}"]
        options += ["--no-first-run", "--hide-scrollbars", "--disable-gpu"]
        # frames stay in the page's process, where they can be read
        options += ["--disable-features=IsolateSandboxedIframes,IsolateOrigins"]
        options += ["--disable-dev-shm-usage", "--disable-background-networking"]
        if os.geteuid() == 0:  # the sandbox refuses root
            options.append("--no-sandbox")
        process = subprocess.Popen(
            [binary, *options, "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            # no pings: nobody reads their answers while a benchmark waits for something else
            with connect(
                _address(process, Path(folder)), max_size=None, ping_interval=None
            ) as socket:
                assert isinstance(socket, ClientConnection)
                yield Page(socket, _session(socket))
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            if process.poll() is None:
                process.kill()
                process.wait()


def _address(process: subprocess.Popen[bytes], folder: Path) -> str:
    """Wait for the browser to say where it listens."""
    told = folder / "DevToolsActivePort"
    for _ in range(300):
        if process.poll() is not None:
            raise RuntimeError(f"the browser ended with exit code {process.returncode}")
        if told.is_file() and len(lines := told.read_text().splitlines()) == 2:
            return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
        time.sleep(0.1)
    raise RuntimeError("the browser did not start within 30 seconds")


def _session(socket: ClientConnection) -> str:
    """Attach to a new tab."""

    def ask(number: int, method: str, **parameters: Any) -> dict[str, Any]:
        socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(socket.recv(timeout=60))
            if answer.get("id") == number:
                return dict(answer["result"])

    target = ask(-1, "Target.createTarget", url="about:blank")["targetId"]
    return str(ask(-2, "Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
