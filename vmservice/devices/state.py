"""What the state of every device has in common: plain values, printable and comparable, and nothing of the host."""

from __future__ import annotations


class DeviceState:
    """Base of the state objects. A subclass names all that it holds in `__slots__`: ints, floats, bools, bytearrays, lists.

    A device built from such an object goes on where the device that it was taken from stood.
    """

    __slots__: tuple[str, ...] = ()
    __hash__ = None  # type: ignore[assignment]  # it changes with every access

    def values(self) -> dict[str, object]:
        """Every field by its name."""
        return {name: getattr(self, name) for name in self.__slots__}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DeviceState) and type(other) is type(self) and other.values() == self.values()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.values().items())})"
