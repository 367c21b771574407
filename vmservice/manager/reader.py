"""What the manager reads of messages: a client's answers, the calls of its own interfaces, and of signals that they have come.

A change of properties is not unpacked: it is word that something is to be read anew. Nobody's signal is believed, and one that
comes between two looks is none too many.
"""

from __future__ import annotations

from dbus_next.constants import MessageType

from vmservice.client.bus import NAMES_LIMIT_BYTES, ClientReader, ClientTransport

# A unit as ListUnitsByPatterns shows it: name, description, load, active and sub state, what it follows, path, job.
UNITS = "a(ssssssouso)"
UNITS_LIMIT_BYTES = NAMES_LIMIT_BYTES

_CALLS = {"": "", "s": "s", "ss": "ss", "ssv": "ss"}
_SIGNALS = ("sss", "so", "b")  # NameOwnerChanged, UnitNew and UnitRemoved, Reloading


class ManagerReader(ClientReader):
    def _body_limit_bytes(self, kind: MessageType, signature: str) -> int:
        if kind is MessageType.METHOD_RETURN and signature == UNITS:
            return UNITS_LIMIT_BYTES
        return super()._body_limit_bytes(kind, signature)

    def _unpacked_part(self, kind: MessageType, signature: str) -> str:
        if kind is MessageType.METHOD_CALL:
            return _CALLS.get(signature, "")
        if kind is MessageType.SIGNAL:
            return signature if signature in _SIGNALS else ""
        return signature if signature == UNITS else super()._unpacked_part(kind, signature)


class ManagerTransport(ClientTransport):
    """The transport that a VM uses, reading as the manager."""

    reader = ManagerReader()
