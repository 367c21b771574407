"""Cockpit on a host under test, and the project's page in it: prepared, logged in to, and kept as pictures."""

from __future__ import annotations

import os
from pathlib import Path

from support.browser import Browser
from support.container import Container

SIZE = (1280, 800)

_PASSWORD = "correct horse"
_ADDRESS = "http://127.0.0.1:9090"
_FRAME = 'iframe[name="cockpit1:localhost/vmservice"]'

_PREPARE = """\
mkdir -p /run/systemd/system/vm@.service.d
printf '[Service]\\nExecStart=\\nExecStart=/usr/bin/vmservice run --sim %%i\\n' > /run/systemd/system/vm@.service.d/sim.conf
systemctl daemon-reload
useradd --create-home --shell /bin/bash --groups sudo carol
systemctl start cockpit.socket
"""

# Marks the button that says this, which has neither id nor class of its own.
_MARK = """
[...document.querySelectorAll("button")].filter(one => one.innerText.trim() === "%s" && one.offsetParent)
    .map(one => { one.dataset.marked = ""; return true; })[0]
"""


def prepare(host: Container) -> None:
    """Every VM is a simulated one there from now on; carol is an administrator, alice is nothing."""
    host.run(_PREPARE, check=True)
    host.run("chpasswd", check=True, stdin=f"carol:{_PASSWORD}\nalice:{_PASSWORD}\n".encode())


def log_in(browser: Browser, user: str, *, privileged: bool) -> None:
    """By Cockpit's own form, and to the page. With `privileged` as who has switched administrative access on before."""
    browser.size(*SIZE)
    browser.go(f"{_ADDRESS}/vmservice")
    browser.wait("document.readyState === 'complete' && document.querySelector('#login-user-input')?.offsetParent")
    if privileged:  # where the shell keeps it
        browser.evaluate(f"localStorage.setItem('superuser:{user}', 'any')")
    browser.focus("#login-user-input")
    browser.type(user)
    browser.focus("#login-password-input")
    browser.type(_PASSWORD)
    browser.errors.clear()  # that nobody is logged in
    browser.press("Enter")
    browser.wait(f"document.querySelector('{_FRAME}')?.contentDocument?.querySelector('h1')")
    browser.frame = _FRAME


def switch_administrative_access_on(browser: Browser) -> None:
    """By the button of Cockpit's shell."""
    browser.frame = ""
    browser.wait(_MARK % "Limited access")
    browser.click("[data-marked]")
    browser.focus("#switch-to-admin-access-password")
    browser.type(_PASSWORD)
    browser.press("Enter")
    browser.wait(_MARK % "Administrative access")
    browser.frame = _FRAME


def errors(browser: Browser) -> list[str]:
    """What has gone wrong in scripts, but for Cockpit's own pages, which ask for fonts that Debian's has not."""
    browser.evaluate("0")  # what there is comes before the answer
    return [error for error in browser.errors if "Failed to load resource" not in error or "/vmservice/" in error]


def keep_picture(browser: Browser, name: str, host: Container, height: int) -> None:
    """As NAME-RELEASE.png, for a view so high, if somebody wants pictures: in the folder $VMSERVICE_PICTURES."""
    if folder := os.environ.get("VMSERVICE_PICTURES"):
        browser.size(1200, height)
        browser.evaluate("window.scrollTo(0, 0)")
        (Path(folder) / f"{name}-{host.release}.png").write_bytes(browser.picture())
        browser.size(*SIZE)
