"""What is counted of a real guest while it runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.kvm_guest import needs_kvm, running_guest

from vmservice.kvm.stats import EXITS

pytestmark = [pytest.mark.kvm, needs_kvm]


def test_exits_are_counted_from_the_guests_start(payloads: Callable[[str], Path]) -> None:
    with running_guest(payloads("smp"), vcpus=2) as guest:
        guest.output.wait_for(b"aps 1\n")
        first = guest.vm.stats()
        if not first:
            pytest.skip("KVM of this host tells no counters")
        assert set(first) <= {f"vcpu.{name}" for name in EXITS}
        assert first["vcpu.exits"] > 0
        guest.output.wait_for(b"beat ", len(guest.output.data))
        assert guest.vm.stats()["vcpu.exits"] > first["vcpu.exits"]
        guest.vm.pause()
        paused = guest.vm.stats()
        assert guest.vm.stats() == paused
        guest.vm.shutdown()
        assert guest.vm.stats() == {}
        guest.vm.boot()
        assert 0 <= guest.vm.stats()["vcpu.exits"] < paused["vcpu.exits"]
