"""What the process of a VM does not load: hundreds of VMs share a host, and each import is memory of every one of them.

For that process alone, and called by it: a test, or a command for people, has everything that it imports.
"""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder
from importlib.util import LazyLoader, module_from_spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

# asyncio imports it if it is there. A VM encrypts nothing, and with OpenSSL it is 1.3 MiB. With None an import of it fails as
# if it were not installed: Python's reference, the import system, 5.3.1.
_ABSENT = "ssl"

# asyncio, or what it imports, imports these for functions that a VM calls to format a traceback at most: they are loaded then.
# From Python 3.13 on that is 0.9 MiB, more than half of it `ast`; older versions use some of them at once.
_WHEN_USED = ("ast", "asyncio.sslproto", "locale", "textwrap", "tokenize")

# Its __init__.py imports all of dbus-next: also its bus for GLib's main loop, with GLib if that is installed, and its reader of
# introspection XML, 2.3 MiB that nobody calls.
_LIBRARY = "dbus_next"


def load_less() -> None:
    """Before asyncio and dbus-next are imported."""
    sys.modules.setdefault(_ABSENT, None)  # type: ignore[arg-type]  # what None means: see above
    sys.meta_path.insert(0, _WhenUsed)
    spec = PathFinder.find_spec(_LIBRARY)
    if spec is None or _LIBRARY in sys.modules:
        return  # who has no bus does without
    # The package without what its __init__.py does: its modules are imported by their own names.
    sys.modules[_LIBRARY] = module_from_spec(spec)
    import dbus_next.errors  # noqa: F401  # it and `message` import each other, which works in this order only


class _WhenUsed:
    """Finds the modules of _WHEN_USED, for which importlib.util.LazyLoader does what it is documented to do."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name in _WHEN_USED else None
        if spec is not None and spec.loader is not None:
            spec.loader = LazyLoader(spec.loader)
        return spec
