"""The page in Cockpit, in a browser, as a person sees and uses it, with simulated guests.

With VMSERVICE_PICTURES=FOLDER pictures of it are left there: those of the documentation are so made.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import browser as chromium
from support.browser import Browser
from support.cockpit_page import SIZE, errors, keep_picture, log_in, prepare, switch_administrative_access_on
from support.container import Container
from support.releases import newest_release
from support.unit_vm import UnitVm, firmware_config

LYING_VM = Path(__file__).parents[1] / "support" / "lying_vm.py"

# To be seen as these letters: a page that took them for HTML would run the script.
HOSTILE = "<img src=x onerror=alert(1)>"

TYPED_AT = (
    firmware_config(cpus=1)
    .replace("boot = 1", "boot = 1\nmax = 4")
    .replace('mode = "journal"', 'mode = "socket"\nlog = "journal"')
)


@pytest.fixture(scope="session")
def host(cockpit_container: Container) -> Container:
    prepare(cockpit_container)
    return cockpit_container


@contextlib.contextmanager
def configured(host: Container, name: str, text: str) -> Iterator[UnitVm]:
    """A VM that does not run; it is gone afterwards."""
    vm = UnitVm(host, name)
    vm.configure(text)
    try:
        yield vm
    finally:
        vm.remove()


@pytest.fixture
def web(host: Container) -> Iterator[UnitVm]:
    """A VM that runs, and has a console to type at."""
    with configured(host, "web-1", TYPED_AT) as vm:
        vm.start()
        yield vm


@pytest.fixture
def db(host: Container) -> Iterator[UnitVm]:
    """A VM that does not run."""
    with configured(host, "db", firmware_config()) as vm:
        yield vm


@pytest.fixture
def mail(host: Container) -> Iterator[UnitVm]:
    """As web-1, with a log of its own."""
    with configured(host, "mail", TYPED_AT) as vm:
        vm.start()
        yield vm


@pytest.fixture
def bare_browser(host: Container) -> Iterator[Browser]:
    browser = Browser(host.talk(chromium.COMMAND))
    try:
        yield browser
    finally:
        browser.close()


@pytest.fixture
def browser(bare_browser: Browser) -> Iterator[Browser]:
    """carol's, with administrative access, at the page. No script may have failed in the end."""
    log_in(bare_browser, "carol", privileged=True)
    yield bare_browser
    assert errors(bare_browser) == []


def button(name: str) -> str:
    """The selector of a button by its name for screen readers."""
    return f'button[aria-label="{name}"]'


def row(vm: UnitVm) -> str:
    return f'tr[data-vm="{vm.name}"]'


@newest_release
def test_the_list_and_its_buttons(browser: Browser, web: UnitVm, db: UnitVm) -> None:
    browser.wait_for_text("Running", row(web))
    browser.wait_for_text("1 of 4", row(web))
    browser.wait_for_text("64 MiB", row(web))
    browser.wait_for_text("Off", row(db))

    browser.size(*SIZE, dark=True)
    browser.wait("document.documentElement.className === 'dark'")
    browser.size(*SIZE)
    browser.wait("document.documentElement.className === ''")

    browser.click(button("Pause web-1"))
    browser.wait_for_text("Paused", row(web))
    assert web.state == "paused"
    # The focus is at the button that has come instead, so the keyboard alone can go on.
    browser.wait(f"document.activeElement === document.querySelector({json.dumps(button('Resume web-1'))})")
    browser.press("Enter")
    browser.wait_for_text("Running", row(web))
    assert web.state == "running"

    browser.click(button("Resize web-1"))
    browser.wait("document.activeElement?.id === 'count' && document.activeElement.value === '1'")
    browser.type("3")
    browser.press("Enter")
    browser.wait_for_text("3 of 4", row(web))
    assert web.get("VCPUs") == 3

    browser.click(button("Start db"))
    browser.wait_for_text("Running", row(db))
    assert db.state == "running"
    browser.click(button("Stop db"))
    browser.wait_for_text("Off", row(db))
    assert db.show("Result") == "success"


@newest_release
def test_what_happens_elsewhere_is_seen(browser: Browser, web: UnitVm, host: Container) -> None:
    browser.evaluate("window.notLoadedAnew = true")
    browser.wait_for_text("1 of 4", row(web))
    web.stop()
    browser.wait_for_text("Off", row(web))
    web.configure(TYPED_AT.replace("boot = 1", "boot = 2"))
    web.start()
    browser.wait_for_text("Running", row(web))
    browser.wait_for_text("2 of 4", row(web))
    web.configure(TYPED_AT)
    web.restart()
    browser.wait_for_text("1 of 4", row(web))
    web.call("Pause")
    browser.wait_for_text("Paused", row(web))
    with configured(host, "new", firmware_config()) as new:
        browser.wait_for_text("Off", row(new))
    browser.wait(f"!document.querySelector({json.dumps(row(new))})")

    # The manager keeps nothing: one that is new is asked anew.
    host.run("systemctl restart vmservice-manager.service", check=True)
    web.call("Resume")
    browser.wait_for_text("Running", row(web))
    assert browser.evaluate("window.notLoadedAnew")


@newest_release
def test_a_start_that_fails_says_why(browser: Browser, web: UnitVm, db: UnitVm, host: Container) -> None:
    with configured(host, "test", firmware_config().replace("64M", "64MiB")) as bad:
        browser.click(button("Start test"))
        browser.wait_for_text("test could not be started", ".alert")
        browser.wait_for_text('memory.size is "64MiB"; expected "64M"', ".alert")
        browser.click(button("Close: test could not be started"))
        browser.wait("!document.querySelector('.alert')")
        browser.wait_for_text("Failed", row(bad))
        browser.wait_for_text('memory.size is "64MiB"; expected "64M"', row(bad))
        browser.wait_for_text("1 of 4", row(web))
        keep_picture(browser, "cockpit", host, height=500)

        bad.configure(firmware_config().replace("64M", HOSTILE))
        browser.click(button("Start test"))
        browser.wait_for_text(f'memory.size is "{HOSTILE}"', ".alert")
        browser.wait_for_text(f'memory.size is "{HOSTILE}"', row(bad))
        assert browser.evaluate("document.querySelectorAll('img').length") == 0
        assert db.show("ActiveState") == "inactive"


@newest_release
def test_the_console_and_the_log(browser: Browser, mail: UnitVm, host: Container) -> None:
    browser.click(f"{row(mail)} a")
    browser.wait_for_text("vm@mail.service", "dl")
    browser.wait_for_text("mode socket", "#page")
    browser.wait_for_text("VM started", ".log")
    browser.wait_for_text("simulated guest: heartbeat", ".log")

    browser.click(".card-head .button")
    browser.wait("document.querySelector('.terminal').value.includes('at the serial console of mail')")
    browser.wait("document.activeElement.className === 'terminal'")
    browser.wait("document.querySelector('.terminal').value.includes('heartbeat 3')")
    keep_picture(browser, "cockpit-vm", host, height=1250)
    # The simulated guest echoes what it is told: to the console, and so to the journal.
    browser.type("a")
    browser.press("Tab")
    browser.type("b")
    browser.wait("/a +b/.test(document.querySelector('.terminal').value)")
    browser.press("Tab", shift=True)
    browser.wait("document.activeElement.textContent === 'Disconnect'")
    browser.press("Tab")
    browser.type(HOSTILE)
    browser.wait(f"document.querySelector('.terminal').value.includes({json.dumps(HOSTILE)})")
    browser.press("Enter")
    browser.wait_for_text(HOSTILE, ".log")
    assert browser.evaluate("document.querySelectorAll('img').length") == 0
    browser.click(".card-head .button")
    browser.wait("document.querySelector('.terminal').value.includes('Not connected any longer')")
    # Somebody else can have it now.
    host.run("vmservice console mail < /dev/null", timeout=90, check=True)

    browser.click(button("Reset mail"))
    browser.click("dialog button[type=submit]")
    browser.wait_for_text("reset", "dl")
    assert mail.get("LastExit") == "reset"
    browser.click(button("Force off mail"))
    browser.wait("document.querySelector('dialog')")
    browser.press("Escape")
    browser.wait("!document.querySelector('dialog')")
    assert mail.state == "running"
    browser.click(button("Force off mail"))
    browser.click("dialog button[type=submit]")
    browser.wait_for_text("Boot")
    assert mail.state == "shutdown"
    browser.click(button("Boot mail"))
    browser.wait_for_text("Press power button")
    browser.click(button("Press power button mail"))
    browser.wait_for_text("The VM does not run")


def test_a_guest_that_hears_no_button_is_forced_off(browser: Browser, host: Container) -> None:
    """With a real machine: a simulated one always hears."""
    real = "ExecStart=\nExecStart=/usr/bin/vmservice run %i\n"
    with configured(host, "deaf", firmware_config("deaf")) as deaf, deaf.drop_in(real):
        deaf.start()
        browser.click(f"{row(deaf)} a")
        browser.click(button("Stop deaf"))
        browser.wait_for_text("Stopping", ".title")
        browser.click(button("Force off deaf"))
        browser.click("dialog button[type=submit]")
        browser.wait_for_text("Off", ".title")
        assert deaf.show("Result") == "success"


@newest_release
def test_a_vm_that_lies(browser: Browser, web: UnitVm, host: Container) -> None:
    """Who has taken over a VMM can say anything. It is shown as text, or not at all, and the other VMs are as they were."""
    (host.shared / "lying_vm.py").write_bytes(LYING_VM.read_bytes())
    lie = UnitVm(host, "lie")
    lie.configure(firmware_config())
    script = f"systemd-run --quiet --unit=lie /usr/bin/python3 /lab/lying_vm.py {lie.name} {shlex.quote(HOSTILE)}"
    host.run(script, check=True)
    try:
        browser.wait_for_text("No answer", row(lie))
        browser.click(f"{row(lie)} a")
        browser.wait_for_text(f"{HOSTILE} , __proto__ {HOSTILE}", ".devices")
        browser.wait_for_text("Nobody can type at a console of this VM")
        browser.wait_for_text(f"Last exit\n{HOSTILE}", "dl")
        assert "vCPUs" not in browser.evaluate("document.querySelector('dl').innerText")
        browser.click("nav a")
        web.call("Pause")
        browser.wait_for_text("Paused", row(web))
        assert browser.evaluate("document.querySelectorAll('img').length") == 0
    finally:
        host.run("systemctl stop lie.service")
        lie.remove()


def test_a_console_that_nobody_can_type_at(browser: Browser, db: UnitVm) -> None:
    db.start()
    browser.click(f"{row(db)} a")
    browser.wait_for_text("Nobody can type at a console of this VM: serial is in mode “journal”.")
    browser.wait_for_text("simulated guest: heartbeat", ".log")
    browser.wait_for_text("VM started", ".log")
    choice = "document.querySelector('#log-choice')"
    browser.evaluate(f"({choice}.value = 'guest', {choice}.dispatchEvent(new Event('change')))")
    browser.wait("!document.querySelector('.log').innerText.includes('VM started')")
    browser.wait_for_text("simulated guest: heartbeat", ".log")


# What a guest prints, and the text that is left of it.
PRINTED = {
    "one\r\ntwo": "one\ntwo",
    "\x1b[1;31mred\x1b[0m": "red",
    "\x1b]0;title\x07a\x1b]3008;start=1\x1b\\b\x1b(Bc": "abc",
    "hello\b\b\x1b[Kp": "help",
    "abc\rX\x1b[Cz": "Xbz",
    "abcdef\x1b[3D\x1b[2P": "abcf",
    "abcdef\x1b[3D\x1b[2@": "abc  def",
    "a\tb": "a       b",
    "one\r\ntwo\x1b[H\x1b[Jthree": "three",
    "\x1b[999999999999Cx\x1b[999999999999D": " " * 79 + "x",
    "\x1b[" + "1" * 5000 + "mx": "1" * 905 + "mx",
}


def test_control_sequences(browser: Browser) -> None:
    write = "(await import(new URL('screen.js', document.baseURI))).Screen"
    script = f"(async () => {{ const screen = new ({write})(); screen.write(%s); return screen.text; }})()"
    shown = {printed: browser.evaluate(script % json.dumps(printed)) for printed in PRINTED}
    assert shown == PRINTED


@newest_release
def test_who_may_only_look(bare_browser: Browser, web: UnitVm) -> None:
    browser = bare_browser
    log_in(browser, "alice", privileged=False)
    browser.wait_for_text("Running", row(web))
    browser.click(button("Pause web-1"))
    browser.wait_for_text("web-1 could not be paused", ".alert")
    browser.wait_for_text("administrative access", ".alert")
    browser.click(button("Stop web-1"))
    browser.wait_for_text("web-1 could not be stopped")
    assert web.state == "running"
    browser.click(f"{row(web)} a")
    browser.wait_for_text("Not everything is shown", ".log")
    assert errors(browser) == []


@newest_release
def test_administrative_access_is_switched_on(bare_browser: Browser, web: UnitVm) -> None:
    browser = bare_browser
    log_in(browser, "carol", privileged=False)
    browser.click(button("Pause web-1"))
    browser.wait_for_text("web-1 could not be paused", ".alert")
    switch_administrative_access_on(browser)
    # The page is loaded anew: what has failed is gone.
    browser.wait("!document.querySelector('.alert')")
    browser.click(button("Pause web-1"))
    browser.wait_for_text("Paused", row(web))
    assert errors(browser) == []


def test_the_browser_sees_what_goes_wrong(browser: Browser) -> None:
    browser.evaluate("document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.ran = 1'}))")
    browser.evaluate("window.setTimeout(() => { throw new Error('in vain') })")
    deadline = time.monotonic() + 60
    while not all(word in "".join(browser.errors) for word in ("Content Security Policy", "in vain")):
        assert time.monotonic() < deadline, browser.errors
        browser.evaluate("new Promise(resolve => window.setTimeout(resolve, 50))")
    assert browser.evaluate("window.ran") is None
    browser.errors.clear()


@newest_release
def test_without_the_manager_it_says_so(browser: Browser, web: UnitVm, host: Container) -> None:
    host.run("systemctl mask --runtime --now vmservice-manager.service", check=True)
    try:
        browser.wait_for_text("org.vmservice.Manager1, which knows them, does not answer")
    finally:
        host.run("systemctl unmask --runtime vmservice-manager.service", check=True)
    browser.click("#page .button.primary")
    browser.wait_for_text("Running", row(web))


def test_no_virtual_machines(browser: Browser) -> None:
    browser.wait_for_text("vmservice create web --image")
