"""Where the interface's XML is found at run time, and what stands in for it where it was not installed.

The source of truth is `dbus/org.vmservice.VM1.xml`, and for the manager's interfaces the files of their names beside it. A
checkout has them beside the package; `pip install` puts them under the prefix's `share/dbus-1/interfaces`, a distribution's
package under `/usr/share/dbus-1/interfaces`.
"""

from __future__ import annotations

import os
import sys

from vmservice.control.names import INTROSPECTION_FILE, OBJECT_PATH

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_SHARE = "share/dbus-1/interfaces"
_FILE_LIMIT_BYTES = 1 << 20


def search_path() -> tuple[str, ...]:
    """The folders that are looked into, first one first."""
    checkout = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return (
        os.path.join(checkout, "dbus"),
        os.path.join(sys.prefix, _SHARE),
        os.path.join("/usr/local", _SHARE),
        os.path.join("/usr", _SHARE),
    )


def installed_xml(folders: Iterable[str] | None = None, file_name: str = INTROSPECTION_FILE) -> str | None:
    """The text of an XML file, or None where no folder has it."""
    for folder in search_path() if folders is None else folders:
        try:
            with open(os.path.join(folder, file_name), encoding="utf-8") as file:
                return file.read(_FILE_LIMIT_BYTES)
        except (OSError, UnicodeDecodeError):
            continue
    return None


def generated_xml(
    methods: Mapping[str, Mapping[str, str]], properties: Mapping[str, Mapping[str, str]], path: str = OBJECT_PATH
) -> str:
    """Members without documentation: interface → method → in signature, interface → property → type."""
    lines = [f'<node name="{path}">']
    for interface in {**methods, **properties}:
        lines.append(f' <interface name="{interface}">')
        for name, signature in properties.get(interface, {}).items():
            lines.append(f'  <property name="{name}" type="{signature}" access="read"/>')
        for name, signature in methods.get(interface, {}).items():
            args = "".join(f'<arg type="{kind}" direction="in"/>' for kind in signature)
            lines.append(f'  <method name="{name}">{args}</method>')
        lines.append(" </interface>")
    return "\n".join([*lines, "</node>", ""])


def ancestor_xml(path: str, object_path: str = OBJECT_PATH) -> str | None:
    """For a path above the object, such as `/org`: a node with the one child that leads to it; None for any other path."""
    prefix = path if path == "/" else f"{path}/"
    if not object_path.startswith(prefix) or path == object_path:
        return None
    child = object_path[len(prefix) :].split("/", 1)[0]
    return f'<node name="{path}">\n <node name="{child}"/>\n</node>\n'
