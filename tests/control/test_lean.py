"""What the process of a VM loads: each import is memory of every VM of a host."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest
from support.private_bus import PrivateBus
from support.process import running_sim

# What the process has loaded when it ends, by sitecustomize: not what is None, or still of importlib.util's _LazyModule.
TELL = """\
import atexit, sys
def tell():
    with open({path!r}, "w") as file:
        print(*(name for name, module in sys.modules.items() if type(module).__name__ == "module"), file=file)
atexit.register(tell)
"""

# With everything under them.
UNUSED = (
    *("ssl", "_ssl", "xml", "pyexpat", "gi", "urllib", "dataclasses", "email", "http", "multiprocessing"),
    *("dbus_next.aio", "dbus_next.glib", "dbus_next.introspection", "dbus_next.message_bus", "dbus_next.proxy_object"),
    *("dbus_next.service", "vmservice.client.bus", "vmservice.check", "asyncio.sslproto"),
    *("vmservice.service.keyboard", "vmservice.host.terminal", "termios"),
    *(("ast", "tokenize", "textwrap") if sys.version_info >= (3, 13) else ()),  # see service/lean.py
)


def test_a_vm_on_the_bus_has_loaded_nothing_that_it_does_not_use(
    bus: PrivateBus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, config = tmp_path / "modules", tmp_path / "demo.toml"
    (tmp_path / "sitecustomize.py").write_text(TELL.format(path=str(told)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with running_sim(config, bus.address, '[serial]\nmode = "null"\n') as process:
        process.send(signal.SIGTERM)
        assert process.wait() == 0
    loaded = told.read_text().split()
    assert {"asyncio", "dbus_next.message", "vmservice.control.bus", "vmservice.service.loop"} <= set(loaded)
    assert [name for name in loaded if any(name == unused or name.startswith(f"{unused}.") for unused in UNUSED)] == []
