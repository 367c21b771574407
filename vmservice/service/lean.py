"""What the process of a VM does not load: hundreds of VMs share a host, and each import is memory of every one of them.

For that process alone, and called by it: a test, or a command for people, has everything that it imports.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys

# asyncio imports these if they are there. A VM encrypts nothing: ssl, with OpenSSL, is 1.3 MiB. With None an import of it fails
# as if it were not installed: Python's reference, the import system, 5.3.1.
_ABSENT = ("ssl", "_ssl")

# Its __init__.py imports all of dbus-next: also its bus for GLib's main loop, with GLib if that is installed, and its reader of
# introspection XML, 2.3 MiB that nobody calls.
_LIBRARY = "dbus_next"


def load_less() -> None:
    """Before asyncio and dbus-next are imported."""
    for name in _ABSENT:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # what None means: see above
    if _LIBRARY in sys.modules:
        return
    spec = importlib.util.find_spec(_LIBRARY)
    if spec is None:
        return  # who has no bus does without
    # The package without what its __init__.py does: its modules are imported by their own names.
    sys.modules[_LIBRARY] = importlib.util.module_from_spec(spec)
    importlib.import_module(f"{_LIBRARY}.errors")  # it and `message` import each other, which works in this order only
