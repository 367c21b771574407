"""What is said of a /dev/kvm that is missing, forbidden, or no KVM at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vmservice.errors import HostFacilityMissing, KvmError, NotPermitted
from vmservice.kvm import ioctl
from vmservice.kvm.system import Kvm


def test_no_kvm(tmp_path: Path) -> None:
    with pytest.raises(HostFacilityMissing, match=r"does not exist: this host has no KVM; load the module") as caught:
        Kvm(str(tmp_path / "kvm"))
    assert caught.value.exit_status == 69


def test_no_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, flags: int) -> int:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(NotPermitted, match=r"no permission to open /dev/kvm: .* group") as caught:
        Kvm()
    assert caught.value.exit_status == 77


def test_not_a_kvm() -> None:
    with pytest.raises(HostFacilityMissing, match=r"/dev/null is not a KVM of API version 12"):
        Kvm("/dev/null")


def test_a_refused_ioctl_names_itself_and_its_errno() -> None:
    fd = os.open("/dev/null", os.O_RDWR)
    try:
        with pytest.raises(KvmError, match=r"^KVM_CREATE_VM failed: Inappropriate ioctl for device \(errno 25\)$") as caught:
            ioctl.call(fd, ioctl.io(0x01), name="KVM_CREATE_VM")
    finally:
        os.close(fd)
    assert caught.value.errno == 25
