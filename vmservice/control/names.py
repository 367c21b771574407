"""Names on the bus: the interface and the object of a VM, the name that a VM of a given name owns, and the bus's own."""

from __future__ import annotations

INTERFACE = "org.vmservice.VM1"
OBJECT_PATH = "/org/vmservice/VM1"
INTROSPECTION_FILE = "org.vmservice.VM1.xml"

# The bus itself, and an interface that every object has: D-Bus specification.
DAEMON = "org.freedesktop.DBus"
DAEMON_PATH = "/org/freedesktop/DBus"
PROPERTIES_INTERFACE = "org.freedesktop.DBus.Properties"


def escape_label(name: str) -> str:
    """`name` as one element of a bus name, as sd-bus's `bus_label_escape` does it.

    Every byte outside [A-Za-z0-9], and a leading digit, becomes `_` and two lower-case hex digits; the empty string is `_`.
    """
    if not name:
        return "_"
    escaped = ""
    for position, byte in enumerate(name.encode()):
        char = chr(byte)
        plain = char.isascii() and (char.isalpha() or (char.isdigit() and position > 0))
        escaped += char if plain else f"_{byte:02x}"
    return escaped


def bus_name(name: str) -> str:
    """The well-known name of the VM called `name`: `web-1` owns `org.vmservice.VM1.web_2d1`."""
    return f"{INTERFACE}.{escape_label(name)}"
