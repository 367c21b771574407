"""What check-host says of devices that only some VMs need."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from vmservice.check import host


@pytest.mark.parametrize(
    ("number", "result", "detail", "hint"),
    [
        (0, "ok", "for sockets between host and guest, [vsock]", ""),
        (
            errno.ENODEV,
            "limited",
            "/dev/vhost-vsock: No such device; it is for sockets between host and guest, [vsock]",
            "modprobe vhost_vsock",
        ),
        (
            errno.EACCES,
            "limited",
            "/dev/vhost-vsock: Permission denied; it is for sockets between host and guest, [vsock]",
            "add the account that runs the VM to its group, kvm on most hosts",
        ),
    ],
)
def test_a_device_is_opened_to_know(monkeypatch: pytest.MonkeyPatch, number: int, result: str, detail: str, hint: str) -> None:
    real, asked = os.open, []

    def answer(path: str, flags: int) -> int:
        asked.append(path)
        if number:
            raise OSError(number, os.strerror(number))
        return real("/dev/null", flags)

    monkeypatch.setattr(os, "open", answer)
    checks = {check.name: check for check in host._check_devices()}
    assert asked == ["/dev/net/tun", "/dev/vhost-net", "/dev/vhost-vsock"]
    assert list(checks) == ["tap", "vhost-net", "vhost-vsock"]
    assert checks["vhost-vsock"].as_dict() == {"name": "vhost-vsock", "result": result, "detail": detail, "hint": hint}


@pytest.mark.parametrize(
    ("shown", "result", "detail"),
    [
        ("always within_size [advise] never deny force", "ok", "guest memory has them: shmem_enabled is advise"),
        (
            "always within_size advise [never] deny force",
            "limited",
            "guest memory is in small pages, which is slower: shmem_enabled is never",
        ),
        (None, "limited", "this kernel has no transparent huge pages: guest memory is in small pages"),
    ],
)
def test_huge_pages_of_guest_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shown: str | None, result: str, detail: str
) -> None:
    path = tmp_path / "shmem_enabled"
    if shown is not None:
        path.write_text(f"{shown}\n")
    monkeypatch.setattr(host, "_SHARED_HUGE_PAGES", str(path))
    check = host._check_huge_pages()
    assert (check.result, check.detail) == (result, detail)
    assert (f"echo advise > {path}" in check.hint) == (shown is not None and result == "limited")


@pytest.mark.parametrize(
    ("program", "result", "detail"),
    [
        (b"with vhost-user", "ok", "for networks without privilege, by vhost-user"),
        (b"an old one", "ok", "for networks without privilege, by a stream, for it is of before November 2024"),
        (None, "limited", "there is no /usr/bin/passt; it is for networks without privilege"),
    ],
)
def test_passt_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: bytes | None, result: str, detail: str
) -> None:
    if program is not None:
        (tmp_path / "passt").write_bytes(program)
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, flags: real(str(tmp_path / Path(path).name), flags))
    check = host._check_passt()
    assert (check.result, check.detail) == (result, detail)
    assert bool(check.hint) == (program is None)
