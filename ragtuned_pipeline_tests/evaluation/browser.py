"""Debian's chromium without a window, driven over the DevTools protocol."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

CHROMIUM = shutil.which("chromium")
_START_SECONDS = 30
_ANSWER_SECONDS = 30


class Browser:
    """One page of one browser; `events` holds all that it has reported, oldest first."""

    def __init__(self, connection: ClientConnection) -> None:
        self.events: list[dict[str, Any]] = []
        self._connection = connection
        self._last = 0
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Return the browser's answer to a command.

        Raises:
            RuntimeError: the browser refuses it.
        """
        self._last += 1
        self._connection.send(
            json.dumps({"id": self._last, "method": method, "params": parameters})
        )
        while True:
            message = json.loads(self._connection.recv(timeout=_ANSWER_SECONDS))
            if message.get("id") != self._last:
                self.events.append(message)
            elif "error" in message:
                raise RuntimeError(f"{method}: {message['error']['message']}")
            else:
                return dict(message["result"])

    def open(self, file: Path) -> None:
        """Load a file and wait until it is there."""
        self.events.clear()
        self.send("Page.navigate", url=file.as_uri())
        while not self.of("Page.loadEventFired"):
            self.events.append(json.loads(self._connection.recv(timeout=_ANSWER_SECONDS)))

    def of(self, method: str) -> list[dict[str, Any]]:
        """Return what events of one kind say."""
        return [event["params"] for event in self.events if event.get("method") == method]

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression in the page.

        Raises:
            RuntimeError: it throws.
        """
        said = self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in said:
            raise RuntimeError(said["exceptionDetails"]["exception"]["description"])
        return said["result"].get("value")

    def resize(self, width: int, height: int) -> None:
        """Give the page a window of this many CSS pixels."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    def prefer(self, scheme: str) -> None:
        """Ask for the "light" or the "dark" scheme."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.send("Emulation.setEmulatedMedia", features=[feature])

    def screenshot(self, file: Path) -> None:
        """Write the whole page, not the window only, as a PNG."""
        picture = self.send("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(picture["data"]))

    def print(self) -> bytes:
        """Return the page's first sheet as a PDF."""
        return base64.b64decode(self.send("Page.printToPDF", pageRanges="1")["data"])


def _page_address(file: Path, process: subprocess.Popen[bytes]) -> str:
    """Wait until the browser has written its port to `file` and has a page; return the page's
    address."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        written = file.read_text().split("\n") if file.is_file() else []
        if len(written) > 1:
            with direct.open(f"http://127.0.0.1:{written[0]}/json/list", timeout=5) as reply:
                pages = [each for each in json.load(reply) if each["type"] == "page"]
            if pages:
                return str(pages[0]["webSocketDebuggerUrl"])
        time.sleep(0.05)
    raise RuntimeError(f"chromium did not start (exit status {process.poll()})")


@contextmanager
def start(folder: Path) -> Iterator[Browser]:
    """Start a browser whose files lie in `folder`; it is stopped at the end."""
    assert CHROMIUM is not None
    process = subprocess.Popen(
        [
            CHROMIUM,
            "--headless=new",
            "--no-sandbox",  # it is root in most containers, and loads our own file only
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--disable-extensions",
            "--no-first-run",
            "--no-proxy-server",
            "--remote-debugging-port=0",
            f"--user-data-dir={folder}",
            "about:blank",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        address = _page_address(folder / "DevToolsActivePort", process)
        with connect(address, proxy=None, max_size=None) as connection:
            yield Browser(connection)
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
