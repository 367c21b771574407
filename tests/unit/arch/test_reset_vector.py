"""What a warm reset through real mode runs into."""

from __future__ import annotations

from support.guest_ram import guest_ram

from vmservice.arch.x86_64 import layout
from vmservice.arch.x86_64.boot_params import E820_RESERVED, e820
from vmservice.arch.x86_64.reset_vector import write_reset_vector
from vmservice.devices.power import PowerRegister


def test_code_at_f000_fff0_writes_the_reset_register() -> None:
    memory = guest_ram()
    write_reset_vector(memory)
    code = memory.read(0xF000 * 16 + 0xFFF0, 16)
    # mov al, 1; mov dx, 0x600; out dx, al; hlt; jmp $-1
    assert code.hex() == "b001ba0006eef4ebfd" + "00" * 7
    called: list[str] = []
    register = PowerRegister(lambda: called.append("sleep"), lambda: called.append("reset"))
    register.write(int.from_bytes(code[3:5], "little") - layout.POWER_PORT, code[1:2])
    assert called == ["reset"]
    memory.close()


def test_guest_is_told_to_leave_it_alone() -> None:
    memory = guest_ram()
    assert any(
        start <= layout.WARM_RESET_VECTOR and start + size >= layout.WARM_RESET_VECTOR + 16
        for start, size, kind in e820(memory)
        if kind == E820_RESERVED
    )
    memory.close()
