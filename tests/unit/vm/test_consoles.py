"""The guest's two consoles: what is typed at one goes to that one, and the virtio-console is as large as its terminal."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.boards import make_board
from support.guest_ram import MIB, guest_ram

from vmservice.board.timers import Timers
from vmservice.config import load_config
from vmservice.config_sections import ConsoleConfig, PortConfig, VirtioConfig
from vmservice.host.console import NullConsole, PtyConsole
from vmservice.service import consoles as consoles_module
from vmservice.service.consoles import Consoles
from vmservice.vm.peripherals import Peripherals


def test_every_console_that_can_be_typed_at_is_read() -> None:
    class Log:
        def info(self, text: str) -> None: ...

    consoles = Consoles.__new__(Consoles)
    serial, hvc = PtyConsole(Log()), PtyConsole(Log(), "hvc")  # type: ignore[arg-type]
    consoles.opened = {"serial": serial, "hvc": hvc}
    assert consoles.inputs() == [("serial", serial), ("hvc", hvc)]
    consoles.opened = {"serial": NullConsole(), "hvc": hvc}
    assert consoles.inputs() == [("hvc", hvc)]
    consoles.opened = {}
    assert consoles.inputs() == []
    serial.close()
    hvc.close()


@pytest.mark.parametrize("transport", ["pci", "mmio"])
def test_the_virtio_console_follows_its_terminal(transport: str) -> None:
    """From the first moment on, and in a machine that comes after a reset too: each asks for itself."""
    size = (80, 24)
    memory = guest_ram((0, 2 * MIB))
    timers = Timers()
    board = make_board(memory, timers=timers)
    peripherals = Peripherals(
        VirtioConfig(transport, ConsoleConfig("null", None), False, None),
        vm=None,  # type: ignore[arg-type]
        memory=memory,
        board=board,
        address_bits=40,
        irqfd=False,
        hvc=lambda data: None,
        hvc_size=lambda: size,
        ports={},
        on_room=lambda label: None,
        post=lambda callback: None,
        warn=lambda text: None,
    )
    assert peripherals.console is not None
    assert peripherals.console.read_config(0, 4) == bytes((80, 0, 24, 0))
    size = (300, 43)
    peripherals.tick()
    assert peripherals.console.read_config(0, 4) == bytes((44, 1, 43, 0))
    peripherals.close()
    memory.close()
    timers.close()


class Stream(NullConsole):
    """The host's end of a port, with or without somebody there."""

    def __init__(self) -> None:
        self.is_attached = False
        self.is_full = False
        self.written = b""

    def write(self, data: bytes) -> None:
        self.written += data

    def has_room(self) -> bool:
        return not self.is_full


@pytest.mark.parametrize("transport", ["pci", "mmio"])
def test_ports_are_a_device_of_their_own_beside_the_console(transport: str) -> None:
    memory = guest_ram((0, 2 * MIB))
    timers = Timers()
    board = make_board(memory, timers=timers)
    ports = (
        PortConfig("agent", "socket", None),
        PortConfig("off", "off", None),
        PortConfig("tty", "pty", None, is_console=True),
    )
    agent, more = Stream(), Stream()
    peripherals = Peripherals(
        VirtioConfig(transport, ConsoleConfig("null", None), False, None, ports),
        vm=None,  # type: ignore[arg-type]
        memory=memory,
        board=board,
        address_bits=40,
        irqfd=False,
        hvc=lambda data: None,
        hvc_size=lambda: (80, 24),
        ports={"agent": agent, "tty": more},
        on_room=lambda label: None,
        post=lambda callback: None,
        warn=lambda text: None,
    )
    assert peripherals.console is not None
    assert len(peripherals.console.ports) == 1
    device = peripherals._port_device
    assert [(port.name, port.is_console) for port in device.ports] == [("agent", False), ("tty", True)]
    assert device.state.host_open == [False, True]
    agent.is_attached = True
    peripherals.tick()
    assert device.state.host_open == [True, True]
    device.ports[0].sink(b"to the agent")
    assert (agent.written, more.written) == (b"to the agent", b"")
    agent.is_full = more.is_full = True
    assert device.ports[0].has_room is not None and not device.ports[0].has_room()
    assert device.ports[1].has_room is None, "Linux spins for a console that does not take its bytes"
    assert list(peripherals.inputs) == ["hvc", "agent", "tty"]
    peripherals.close()
    memory.close()
    timers.close()


def test_what_systemd_passed_goes_to_the_console_of_that_name_or_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left over is said: whoever connects to it would wait for ever."""
    monkeypatch.delenv("CACHE_DIRECTORY", raising=False)
    listeners = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(3)]
    for number, listener in enumerate(listeners):
        listener.bind(str(tmp_path / str(number)))
        listener.listen()
    names = ("agent", "hvc", "serial")
    passed = [(name, os.dup(listener.fileno())) for name, listener in zip(names, listeners, strict=True)]
    monkeypatch.setattr(consoles_module, "_passed_sockets", lambda: list(passed))
    (tmp_path / "demo.toml").write_text(
        '[firmware]\npath = "bios"\n[serial]\nmode = "socket"\n[console]\nmode = "null"\n[[port]]\nname = "agent"\n'
    )
    said: list[str] = []
    closers: list[Callable[[], None]] = []
    log = SimpleNamespace(info=said.append, warning=said.append)
    consoles = Consoles(load_config("demo", str(tmp_path / "demo.toml")), log, closers)  # type: ignore[arg-type]
    assert said == [
        f"the serial console is at the socket {tmp_path}/2",
        f"the agent console is at the socket {tmp_path}/0",
        "systemd passed a socket called 'hvc', and no console of that name has mode = \"socket\"",
    ]
    assert list(consoles.ports()) == ["agent"]
    assert [label for label, _ in consoles.inputs()] == ["serial", "agent"]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(passed[1][1])
    for close in [*closers, *(listener.close for listener in listeners)]:
        close()
