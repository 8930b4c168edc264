"""A headless Chromium for tests of pages, over the DevTools protocol."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from websockets.sync.client import ClientConnection, connect

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
PATIENCE = 30.0


class Page:
    """One tab; everything that it complains about is kept in `complaints`."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._session: str | None = None
        self._number = 0
        self.complaints: list[str] = []
        self.requests: list[dict[str, str]] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Network", "Log", "Audits"):
            self._call(f"{domain}.enable")

    def open(self, url: str) -> None:
        """Go to an address, and forget what was before."""
        self._call("Page.navigate", url="about:blank")
        self.complaints.clear()
        self.requests.clear()
        self._call("Page.navigate", url=url)

    def run(self, script: str) -> object:
        """Return the value of an expression in the page."""
        told = self._call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def wait_for(self, script: str) -> object:
        """Wait until an expression is true; return it."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            found = self.run(script)
            if found:
                return found
            time.sleep(0.05)
        raise AssertionError(f"never true: {script}; {self.complaints}; {self.run(TEXT)}")

    def press(self, kind: str, x: float, y: float) -> None:
        """Send a mouse event: pressed, moved or released, with the left button."""
        more = {"buttons": 0 if kind == "released" else 1, "clickCount": 1}
        name = {"pressed": "mousePressed", "moved": "mouseMoved", "released": "mouseReleased"}
        self._call(
            "Input.dispatchMouseEvent",
            type=name[kind],
            x=x,
            y=y,
            button="left",
            pointerType="mouse",
            **more,
        )

    def drag(self, *places: tuple[float, float]) -> None:
        """Draw a line through some places of the window."""
        self.press("pressed", *places[0])
        for place in places[1:]:
            self.press("moved", *place)
        self.press("released", *places[-1])

    def key(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self._call("Input.dispatchKeyEvent", type=kind, key=key)

    def emulate(self, width: int, height: int, scheme: str) -> None:
        """Take a size and a colour scheme."""
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._call("Emulation.setEmulatedMedia", features=features)

    def picture(self, path: Path) -> None:
        """Save the whole page as PNG."""
        told = self._call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(told["data"]))

    def posted(self, ending: str) -> list[dict[str, object]]:
        """Return what was sent to addresses that end like this, as JSON."""
        self.run("0")
        return [json.loads(r["body"]) for r in self.requests if r["url"].endswith(ending)]

    def _call(self, method: str, **parameters: object) -> dict:
        self._number += 1
        message: dict[str, object] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        self._connection.send(json.dumps(message))
        while True:
            told = json.loads(self._connection.recv(timeout=PATIENCE))
            if told.get("id") == self._number:
                assert "error" not in told, (method, told["error"])
                return told["result"]
            self._heard(told.get("method", ""), told.get("params", {}))

    def _heard(self, event: str, told: dict) -> None:
        if event == "Network.requestWillBeSent" and told["request"].get("hasPostData"):
            request = told["request"]
            self.requests.append({"url": request["url"], "body": request["postData"]})
        elif event == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(told["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning"):
            self.complaints.append(json.dumps(told["args"]))
        elif event == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.complaints.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")
        elif event == "Audits.issueAdded":
            self.complaints.append(json.dumps(told["issue"]))


TEXT = "document.body ? document.body.innerText : ''"


@contextmanager
def browser(folder: Path, *arguments: str) -> Iterator[Page]:
    """Run Chromium with a profile in a folder; yield a tab."""
    assert CHROMIUM is not None
    profile = folder / "chromium"
    process = subprocess.Popen(
        [
            *(CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--disable-dev-shm-usage", "--disable-background-networking", "--no-proxy-server"),
            *("--remote-debugging-port=0", f"--user-data-dir={profile}"),
            *(*arguments, "about:blank"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        told = profile / "DevToolsActivePort"
        deadline = time.monotonic() + PATIENCE
        while not (told.exists() and told.read_text().count("\n")):
            assert process.poll() is None, "Chromium ended"
            assert time.monotonic() < deadline, "Chromium does not start"
            time.sleep(0.05)
        port, path = told.read_text().split("\n")[:2]
        with connect(f"ws://127.0.0.1:{port}{path}", max_size=2**26, proxy=None) as connection:
            yield Page(connection)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
