"""What is taken for the proof that an emulated host has put its own registers into the place of a guest's."""

from __future__ import annotations

import pytest
from support.guest_evidence import MIXED_UP, host_symbols, in_host

KALLSYMS = """\
0000000000039060 A svm_data\t[kvm_amd]
ffffffffc0840000 t svm_init\t[kvm_amd]
ffffffffc084ed60 t shutdown_interception\t[kvm_amd]
ffffffffc08b2620 t __svm_vcpu_run\t[kvm_amd]
ffffffffc08b2790 t __svm_sev_es_vcpu_run\t[kvm_amd]
ffffffffc08b2900 t svm_exit\t[kvm_amd]
ffffffffc08c0000 d svm_x86_ops\t[kvm_amd]
ffffffff81000000 T _text
"""


def test_the_instruction_behind_the_entry_of_the_guest_is() -> None:
    assert in_host(host_symbols(KALLSYMS), 0xFFFFFFFFC08B26C0) == f", which is __svm_vcpu_run+0xa0 {MIXED_UP}"


@pytest.mark.parametrize(
    "rip",
    [
        0xFFFFFFFFBB273914,  # a guest's kernel
        0x7F70BBF1681B,  # its user space
        0xFFFFFFFFC084ED70,  # where it may have a module itself
        0xFFFFFFFFC08C0010,
        0x39060,
    ],
)
def test_nothing_else_is(rip: int) -> None:
    assert in_host(host_symbols(KALLSYMS), rip) == ""


def test_a_host_without_kvm_has_none() -> None:
    assert in_host(host_symbols(""), 0xFFFFFFFFC08B26C0) == ""
