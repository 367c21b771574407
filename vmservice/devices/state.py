"""What the state of every device has in common: plain values, printable and comparable, and nothing of the host."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

# How bytes are written, JSON having none: {"bytes": "00ff"} and {"bytearray": "00ff"}.
_BYTES = "bytes"
_BYTEARRAY = "bytearray"


class DeviceState:
    """Base of the state objects. A subclass names all that it holds in `__slots__`.

    That is ints, floats, bools, strings, bytes, bytearrays, lists of such, and further states, of which `PARTS` names the class
    by the slot that has one, or a list of them. A device built from such an object goes on where the device that it was taken
    from stood.
    """

    __slots__: tuple[str, ...] = ()
    __hash__ = None  # type: ignore[assignment]  # it changes with every access
    PARTS: dict[str, type[DeviceState]] = {}  # noqa: RUF012  # no ClassVar without an import of typing

    def values(self) -> dict[str, object]:
        """Every field by its name, as JSON has it: a copy of what is now."""
        return {name: _plain(getattr(self, name)) for name in self.__slots__}

    @classmethod
    def from_values(cls, values: dict[str, object]) -> Self:
        """The state that `values` was called on; ValueError unless they are those of this class, by name."""
        if not isinstance(values, dict) or values.keys() != set(cls.__slots__):
            raise ValueError(f"these are not the values of {cls.__name__}, {', '.join(cls.__slots__)}: {values!r:.200}")
        state = cls.__new__(cls)
        for name, value in values.items():
            setattr(state, name, _unplain(value, cls.PARTS.get(name)))
        return state

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DeviceState) and type(other) is type(self) and other.values() == self.values()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in self.__slots__)})"


def _plain(value: object) -> object:
    if isinstance(value, DeviceState):
        return value.values()
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, bytes | bytearray):
        return {_BYTES if isinstance(value, bytes) else _BYTEARRAY: value.hex()}
    if value is None or isinstance(value, int | float | str):
        return value
    raise TypeError(f"a device's state holds {value!r:.100}, which is no plain value")


def _unplain(value: object, part: type[DeviceState] | None) -> object:
    if isinstance(value, list):
        return [_unplain(item, part) for item in value]
    if isinstance(value, dict):
        if part is not None:
            return part.from_values(value)
        ((kind, text),) = value.items()
        return bytearray.fromhex(text) if kind == _BYTEARRAY else bytes.fromhex(text)
    return value
