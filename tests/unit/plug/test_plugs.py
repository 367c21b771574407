"""Plugs: what each kind of device makes of its section and of the host's end, and what becomes of both."""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.boards import make_board, make_services
from support.guest_ram import MIB, guest_ram
from support.movers import running_mover

from vmservice.board.mmio_slots import MmioSlots
from vmservice.board.pci_slots import PciSlots
from vmservice.board.slot import Slot
from vmservice.board.timers import Timers
from vmservice.config.core import ConsoleConfig
from vmservice.config.load import load_config
from vmservice.config.sections.balloon import BalloonDevice
from vmservice.config.sections.console import ConsoleDevice
from vmservice.config.sections.port import PortConfig, PortsDevice
from vmservice.errors import ConfigError
from vmservice.host.consoles.base import NullConsole
from vmservice.host.consoles.mover import Mover
from vmservice.plug import balloon, console, port, vsock
from vmservice.plug.backend import Backends, ConsolesBackend, Host, NoBackend
from vmservice.plug.balloon import BalloonPlug
from vmservice.plug.console import ConsolePlug
from vmservice.plug.port import PortsPlug


class Terminal(NullConsole):
    """The host's end of a virtio-console that has a size."""

    columns, rows = 80, 24

    def size(self) -> tuple[int, int]:
        return self.columns, self.rows


class Stream(NullConsole):
    """The host's end of a port, with or without somebody there."""

    def __init__(self, label: str) -> None:
        super().__init__(label)
        self.is_attached = False
        self.is_full = False
        self.written = b""

    def write(self, data: bytes) -> None:
        self.written += data

    def has_room(self) -> bool:
        return not self.is_full


class Place:
    """A machine with slots and no devices; `run` does what was posted to its event loop."""

    def __init__(self, transport: str) -> None:
        self.memory = guest_ram((0, 2 * MIB))
        self.timers = Timers()
        self.posted: list[Callable[[], None]] = []
        board = make_board(self.memory, timers=self.timers)
        services = make_services(board, self.memory, self.timers, post=self.posted.append)
        self.slots: PciSlots | MmioSlots
        if transport == "pci":
            self.slots = PciSlots(board, services, None, irqfd=False, ioeventfd=False)  # type: ignore[arg-type]
        else:
            self.slots = MmioSlots(board, services)

    def slot(self, label: str) -> Slot:
        return self.slots.slot(label)

    def run(self) -> None:
        while self.posted:
            self.posted.pop(0)()

    def close(self) -> None:
        self.slots.close()
        self.memory.close()
        self.timers.close()


@pytest.fixture(params=["pci", "mmio"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    place = Place(request.param)
    yield place
    place.close()


def test_the_virtio_console_follows_its_terminal(place: Place) -> None:
    """From the first moment on, and in a machine that comes after a reset too: each asks for itself."""
    terminal = Terminal("hvc")
    section, backend = ConsoleDevice(ConsoleConfig("pty", None)), ConsolesBackend([terminal])
    plugged = console.build(section, backend, place.slot("hvc"))
    assert isinstance(plugged, ConsolePlug)
    assert plugged.device.read_config(0, 4) == bytes((80, 0, 24, 0))
    terminal.columns, terminal.rows = 300, 43
    assert terminal.on_resized is not None
    terminal.on_resized()
    assert plugged.device.read_config(0, 4) == bytes((80, 0, 24, 0)), "whoever notices is not the loop"
    place.run()
    assert plugged.device.read_config(0, 4) == bytes((44, 1, 43, 0))
    plugged.close()
    assert terminal.on_resized is None
    after_reset = console.build(section, backend, place.slot("hvc after a reset"))
    assert isinstance(after_reset, ConsolePlug)
    assert after_reset.device.read_config(0, 4) == bytes((44, 1, 43, 0))
    after_reset.close()


def test_ports_are_on_a_device_of_their_own(place: Place) -> None:
    section = PortsDevice(
        (
            PortConfig("port[0]", "agent", ConsoleConfig("socket", None)),
            PortConfig("port[2]", "tty", ConsoleConfig("pty", None), is_console=True),
        )
    )
    agent, tty = Stream("agent"), Stream("tty")
    plugged = port.build(section, ConsolesBackend([agent, tty]), place.slot("ports"))
    assert isinstance(plugged, PortsPlug)
    device = plugged.device
    assert [(one.name, one.is_console) for one in device.ports] == [("agent", False), ("tty", True)]
    assert device.state.host_open == [False, True]
    agent.is_attached = True
    assert agent.on_attached is not None
    agent.on_attached()
    place.run()
    assert device.state.host_open == [True, True]
    device.ports[0].sink(b"to the agent")
    assert (agent.written, tty.written) == (b"to the agent", b"")
    agent.is_full = tty.is_full = True
    assert device.ports[0].has_room is not None and not device.ports[0].has_room()
    assert device.ports[1].has_room is None, "Linux spins for a console that does not take its bytes"
    assert list(plugged.inputs) == ["agent", "tty"]
    assert [plugged.inputs[label].offer(b"x") for label in ("agent", "tty")] == [0, 1], "a stream is not typed ahead"
    plugged.close()
    assert agent.on_attached is None


def test_the_next_client_of_a_stream_is_another_opening_for_the_guest(place: Place) -> None:
    """Also when the loop hears of both at once: the guest went on with the last one's conversation."""
    section = PortsDevice((PortConfig("port[0]", "agent", ConsoleConfig("socket", None)),))
    agent = Stream("agent")
    agent.is_attached, agent.visit = True, 1
    plugged = port.build(section, ConsolesBackend([agent]), place.slot("ports"))
    assert isinstance(plugged, PortsPlug)
    told: list[bool] = []
    plugged.device.set_open = lambda port, is_open: told.append(is_open)  # type: ignore[method-assign]
    agent.visit = 2
    assert agent.on_attached is not None
    agent.on_attached()
    agent.on_attached()
    place.run()
    assert told == [False, True, True]
    plugged.close()


def test_what_systemd_passed_goes_to_the_console_of_that_name_or_is_closed(tmp_path: Path) -> None:
    """A socket that is left over is said: whoever connects to it would wait for ever. What a network had before is not."""
    listeners = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(5)]
    for number, listener in enumerate(listeners):
        listener.bind(str(tmp_path / str(number)))
        listener.listen()
    names = ("agent", "hvc", "serial", "tun/lan", "vsock/notify")
    passed = [(name, os.dup(listener.fileno())) for name, listener in zip(names, listeners, strict=True)]
    (tmp_path / "demo.toml").write_text(
        '[firmware]\npath = "bios"\n[serial]\nmode = "socket"\n[console]\nmode = "null"\n[[port]]\nname = "agent"\n'
    )
    said: list[str] = []
    log = SimpleNamespace(info=said.append, warning=said.append)
    mover = Mover()
    backends = Backends(load_config("demo", str(tmp_path / "demo.toml")), Host("demo", log, mover, list(passed)))
    assert said == [
        f"the serial console is at the socket {tmp_path}/2",
        f"the agent console is at the socket {tmp_path}/0",
        'systemd passed a socket called "hvc", and no console of that name has mode = "socket"',
    ]
    assert [one.label for one in backends.consoles] == ["serial", "hvc", "agent"]
    assert [one.label for one in backends.consoles if one.input_fd >= 0] == ["serial", "agent"]
    for left_over in (passed[1], passed[3], passed[4]):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(left_over[1])
    backends.close()
    mover.close()
    for listener in listeners:
        listener.close()


def test_what_is_wrong_at_the_start_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "demo.toml"
    file.write_text('[firmware]\npath = "bios"\n[serial]\nmode = "null"\n[[disk]]\nformat = "raw"\npath = "nowhere"\n')
    log = SimpleNamespace(info=lambda text: None, warning=pytest.fail)
    mover = Mover()
    with pytest.raises(ConfigError) as caught:
        Backends(load_config("demo", str(file)), Host("demo", log, mover, []))
    assert str(caught.value) == f'{file}: disk disk0: path is "{tmp_path}/nowhere", which does not exist'
    mover.close()


def test_what_a_person_may_see_of_the_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where each console is, after the serial one; a source of random numbers is nothing to look for."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    (tmp_path / "demo.toml").write_text(
        '[firmware]\npath = "bios"\n[serial]\nmode = "file"\npath = "log"\n[console]\nmode = "pty"\n[rng]\n'
        '[[port]]\nname = "agent"\n[[port]]\nname = "tty"\nmode = "null"\nconsole = true\n[balloon]\nsize = 0\n'
    )
    log = SimpleNamespace(info=lambda text: None, warning=pytest.fail)
    mover = Mover()
    backends = Backends(load_config("demo", str(tmp_path / "demo.toml")), Host("demo", log, mover, []))
    assert backends.details() == [
        ("console", "serial", {"mode": "file", "path": f"{tmp_path}/log"}),
        ("console", "hvc", {"mode": "pty", "path": os.readlink(tmp_path / "hvc")}),
        ("port", "agent", {"mode": "socket", "path": f"{tmp_path}/agent.sock", "console": False}),
        ("port", "tty", {"mode": "null", "console": True}),
    ]
    backends.close()
    mover.close()


def test_a_console_with_a_log_is_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the guest prints is at the socket and in the file; what is typed comes from the socket; all is closed."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    (tmp_path / "demo.toml").write_text(
        '[firmware]\npath = "bios"\n[serial]\nmode = "socket"\nlog = "journal"\n'
        '[[port]]\nname = "tty"\nconsole = true\nlog = "file"\nlog_path = "tty.log"\n'
    )
    log = SimpleNamespace(info=lambda text: None, warning=pytest.fail)
    with running_mover() as mover:
        backends = Backends(load_config("demo", str(tmp_path / "demo.toml")), Host("demo", log, mover, []))
        assert backends.details() == [
            ("console", "serial", {"mode": "socket", "path": f"{tmp_path}/serial.sock", "log": "journal"}),
            (
                "port",
                "tty",
                {
                    "mode": "socket",
                    "path": f"{tmp_path}/tty.sock",
                    "log": "file",
                    "log_path": f"{tmp_path}/tty.log",
                    "console": True,
                },
            ),
        ]
        tty = backends.consoles[1]
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(20)
            client.connect(f"{tmp_path}/tty.sock")
            tty.write(b"login: \r\n")
            assert client.recv(100) == b"login: \r\n"
            client.sendall(b"root\r")
            assert select.select([tty.input_fd], [], [], 20)[0]
            assert tty.read(100) == b"root\r"
            assert tty.keeps_input
            tty.took(5, tty.visit)
            with pytest.raises(BlockingIOError):
                tty.read(100)
        backends.close()
    assert (tmp_path / "tty.log").read_bytes() == b"login: \r\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo.toml", "tty.log"]


def test_a_log_that_cannot_be_opened_leaves_nothing_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    file = tmp_path / "demo.toml"
    file.write_text('[firmware]\npath = "bios"\n[serial]\nmode = "socket"\nlog = "file"\nlog_path = "none/l"\n')
    log = SimpleNamespace(info=lambda text: None, warning=pytest.fail)
    with running_mover() as mover, pytest.raises(ConfigError, match="cannot be opened for writing: No such file or directory"):
        Backends(load_config("demo", str(file)), Host("demo", log, mover, []))
    assert [path.name for path in tmp_path.iterdir()] == ["demo.toml"]


@pytest.mark.parametrize("section", ["", "[vsock]\n"])
def test_the_guests_number_is_the_one_that_its_vsock_has_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, section: str
) -> None:
    """The device may get another one at a reset."""
    end = SimpleNamespace(cid=4711, consoles=(), close=lambda: None)
    monkeypatch.setattr(vsock, "open", lambda _section, _host: end)
    config = tmp_path / "demo.toml"
    config.write_text(f'[kernel]\npath = "k"\n[serial]\nmode = "off"\n{section}')
    mover = Mover()
    log = SimpleNamespace(info=None, warning=None, error=None)
    backends = Backends(load_config("demo", str(config)), Host("demo", log, mover, []))
    assert backends.guest_cid() == (4711 if section else 0)
    end.cid = 4712
    assert backends.guest_cid() == (4712 if section else 0)
    backends.close()
    mover.close()


def test_a_balloon_counts_what_is_in_it_and_asks_the_guest_for_its_own_figures(place: Place) -> None:
    plugged = balloon.build(BalloonDevice(1 << 20), NoBackend(), place.slot("balloon"))
    assert isinstance(plugged, BalloonPlug)
    assert plugged.stats() == {"target_bytes": 1 << 20, "actual_bytes": 0}
    asked: list[bool] = []
    plugged.device.request_statistics = lambda: bool(asked.append(plugged.lock.locked()))  # type: ignore[func-returns-value, method-assign]
    plugged.device.write_config(4, (256).to_bytes(4, "little"))
    assert plugged.stats() == {"target_bytes": 1 << 20, "actual_bytes": 1 << 20}
    assert asked == [True]
    plugged.close()
