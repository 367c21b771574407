"""A headless Chromium, driven as a person drives it: by the mouse and the keyboard, with waits for what the page then shows.

It speaks the Chrome DevTools protocol over two pipes: JSON with a zero byte behind each message.
https://chromedevtools.github.io/devtools-protocol/
"""

from __future__ import annotations

import base64
import json
import select
import subprocess
import time
from typing import Any

# Root has no sandbox of Chromium's, and the container little /dev/shm. --remote-debugging-pipe are descriptors 3 and 4.
COMMAND = (
    "exec chromium-headless-shell --no-sandbox --disable-gpu --disable-dev-shm-usage --hide-scrollbars --remote-debugging-pipe"
    " --user-data-dir=$(mktemp -d) --window-size=1280,800 about:blank 3<&0 4>&1 > /dev/null 2> /run/browser.log < /dev/null"
)

TIMEOUT_SEC = 60.0

# Waits in the page, in short turns: one that is loaded anew meanwhile forgets the promise.
_WAIT = """
new Promise(resolve => {
    const look = () => {
        let found;
        try { found = (%s); } catch (error) { if (!(error instanceof TypeError)) throw error; }
        if (found || Date.now() > until) resolve(found?.nodeType ? true : found); else setTimeout(look, 50);
    };
    const until = Date.now() + 2000;
    look();
})
"""

# The frame's own window and document, under the usual names.
_IN_FRAME = """
(() => {
    const frame = document.querySelector(%s);
    if (!frame) return undefined;
    return ((window, document) => (%s))(frame.contentWindow, frame.contentWindow.document);
})()
"""

# The middle of an element that can be clicked, in the coordinates of the whole view.
_MIDDLE = """
(() => {
    const target = document.querySelector(%s);
    if (!target || target.disabled || target.hidden) return null;
    target.scrollIntoView({block: "center", behavior: "instant"});
    const box = target.getBoundingClientRect();
    const x = box.x + box.width / 2, y = box.y + box.height / 2;
    if (!target.contains(document.elementFromPoint(x, y))) return null;
    const frame = window.frameElement?.getBoundingClientRect() ?? {x: 0, y: 0};
    return {x: x + frame.x, y: y + frame.y};
})()
"""

# Names of keys: their text, and their code as Windows numbers them.
_KEYS = {"Enter": ("\r", 13), "Tab": ("", 9), "Escape": ("", 27)}


class Browser:
    """One page of a browser whose process has COMMAND's pipes as its standard input and output.

    `frame` is a selector of an iframe: what is looked for and clicked at is in there. `errors` is what has gone wrong in
    scripts: exceptions, and what the browser or a script has written to the console as an error.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._received = b""
        self._last = 0
        self._session = ""
        self.frame = ""
        self.errors: list[str] = []
        target = self._command("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._command("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._command(f"{domain}.enable")

    def close(self) -> None:
        """Ends it: without its pipes it does not live on."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(TIMEOUT_SEC)
        finally:
            self._process.kill()
            self._process.wait()

    def go(self, address: str) -> None:
        self._command("Page.navigate", url=address)

    def size(self, width: int, height: int, *, dark: bool = False) -> None:
        self._command("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._command("Emulation.setEmulatedMedia", features=[scheme])

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page, or of its promise."""
        if self.frame:
            expression = _IN_FRAME % (json.dumps(self.frame), expression)
        done = self._command("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in done:
            raise AssertionError(f"{expression}: {_said(done['exceptionDetails'])}")
        return done["result"].get("value")

    def wait(self, expression: str, timeout: float = TIMEOUT_SEC) -> Any:
        """Returns the expression's value when it is a true one; AssertionError with what the page shows when it never is."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            try:
                if found := self.evaluate(_WAIT % expression):
                    return found
            except _Navigated:
                continue
        raise AssertionError(f"never in {timeout} s: {expression}\n{self.errors}\nthe page shows:\n{self._shown()}")

    def wait_for_text(self, text: str, within: str = "body") -> None:
        self.wait(f"document.querySelector({json.dumps(within)}).innerText.includes({json.dumps(text)})")

    def click(self, selector: str) -> None:
        """With the mouse, at an element that is there, enabled and not covered, as soon as it is."""
        place = self.wait(_MIDDLE % json.dumps(selector))
        for event in ("mousePressed", "mouseReleased"):
            self._command("Input.dispatchMouseEvent", type=event, button="left", clickCount=1, **place)

    def focus(self, selector: str) -> None:
        target = f"document.querySelector({json.dumps(selector)})"
        self.wait(f"(target => target && !target.disabled && (target.focus(), true))({target})")

    def press(self, key: str, *, shift: bool = False) -> None:
        """A key of `_KEYS`, at what has the focus."""
        text, code = _KEYS[key]
        about = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0}
        self._command("Input.dispatchKeyEvent", type="keyDown", text=text, **about)
        self._command("Input.dispatchKeyEvent", type="keyUp", **about)

    def type(self, text: str) -> None:
        """Characters, at what has the focus."""
        for character in text:
            self._command("Input.dispatchKeyEvent", type="keyDown", text=character, key=character)
            self._command("Input.dispatchKeyEvent", type="keyUp", key=character)

    def picture(self) -> bytes:
        """What the page looks like, as PNG."""
        return base64.b64decode(self._command("Page.captureScreenshot", format="png")["data"])

    def _shown(self) -> object:
        try:
            return self.evaluate("document.body.innerText")
        except AssertionError as error:
            return error

    # The protocol

    def _command(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\0")
        self._process.stdin.flush()
        deadline = time.monotonic() + TIMEOUT_SEC
        while (answer := self._receive(method, deadline)).get("id") != self._last:
            self._note(answer)
        if "error" in answer:
            said = answer["error"]["message"]
            raise (_Navigated if "navigated" in said or "context" in said else AssertionError)(f"{method}: {said}")
        result: dict[str, Any] = answer["result"]
        return result

    def _receive(self, method: str, deadline: float) -> dict[str, Any]:
        """The next message."""
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        while b"\0" not in self._received:
            ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
            data = self._process.stdout.read1(65536) if ready else b""  # type: ignore[attr-defined]
            if not data:
                raise AssertionError(f"the browser {'has ended' if ready else 'does not answer'}: {method}")
            self._received += data
        message, _, self._received = self._received.partition(b"\0")
        decoded: dict[str, Any] = json.loads(message)
        return decoded

    def _note(self, event: dict[str, Any]) -> None:
        parameters = event.get("params", {})
        match event.get("method"):
            case "Runtime.exceptionThrown":
                self.errors.append(_said(parameters["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if parameters["type"] in ("error", "assert"):
                self.errors.append(" ".join(str(value.get("value", value.get("description"))) for value in parameters["args"]))
            case "Log.entryAdded" if parameters["entry"]["level"] == "error":
                self.errors.append(f"{parameters['entry']['text']} ({parameters['entry'].get('url')})")


class _Navigated(AssertionError):
    """The page that was asked is no longer there."""


def _said(details: dict[str, Any]) -> str:
    return f"{details.get('url')}: {details.get('exception', {}).get('description', details['text'])}"
