"""The seed's test_vm on the real /dev/kvm."""

from __future__ import annotations

import pytest
from support.kvm_guest import needs_kvm

from vmservice.check import selftest
from vmservice.errors import HostError
from vmservice.kvm.system import Kvm

pytestmark = [pytest.mark.kvm, needs_kvm]


def test_two_plus_three() -> None:
    kvm = Kvm()
    try:
        assert selftest.run_test_vm(kvm) == b"5\n"
    finally:
        kvm.close()


def test_a_guest_that_does_not_halt_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "_CODE", bytes.fromhex("e6 80 eb fc"))  # out 0x80, al; again
    kvm = Kvm()
    try:
        with pytest.raises(HostError, match="did not halt within 100 exits"):
            selftest.run_test_vm(kvm)
    finally:
        kvm.close()
