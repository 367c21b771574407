"""Why a connection has failed, in words: exceptions of Python and of libraries have none, or some of their own."""

from __future__ import annotations

import errno

import pytest

from vmservice.control.dbus_transport import failure_reason


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (TimeoutError(), "there was no answer in time"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), "Broken pipe"),
        (ConnectionError("the bus takes no more"), "the bus takes no more"),
        (EOFError(), "the connection was closed"),
    ],
)
def test_no_name_of_a_class_and_no_errno_in_brackets(error: Exception, said: str) -> None:
    assert failure_reason(error) == said
