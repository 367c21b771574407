r"""The driver of the CPU hotplug device, in AML: a processor device for each vCPU that can be, and the scan of all of them.

    \_SB.PRES            the registers (vmservice/devices/cpu_hotplug.py) and the mutex that guards the selection
    \_SB.CPUS            container of the processors and of the methods that they share
        CSTA(id)         _STA of a processor: 0xf when enabled
        CTFY(id, event)  Notify of one processor
        CEJ0(id)         eject
        CSCN()           look at every processor: notify, acknowledge
        Cnnn             the processors, nnn in hexadecimal

The form is that of Cloud Hypervisor (February 2020). Linux wants _MAT to say "enabled" even for a vCPU that is not there yet.
"""

from __future__ import annotations

from vmservice.acpi import aml, tables

EVENT_CPU = 1

_REGISTERS = r"\_SB.PRES"
_SCAN = r"\_SB.CPUS.CSCN"

_PRESENT = 0xF  # _STA: present, enabled, shown, functioning (ACPI 6.5 §6.3.7)
_DEVICE_CHECK = 1  # Notify values, ACPI 6.5 §5.6.6
_EJECT_REQUEST = 3
_WAIT_FOR_EVER = 0xFFFF

_LOCK = _REGISTERS + ".CPLK"
_SELECT = aml.name_string(_REGISTERS + ".CSEL")
_ENABLED = aml.name_string(_REGISTERS + ".CPEN")
_INSERTING = aml.name_string(_REGISTERS + ".CINS")
_REMOVING = aml.name_string(_REGISTERS + ".CRMV")
_EJECT = aml.name_string(_REGISTERS + ".CEJ0")

_ONE = aml.integer(1)
_ZERO = aml.integer(0)


def cpu_hotplug(base: int, length: int, max_vcpus: int) -> bytes:
    r"""Both devices, for \_SB: registers at I/O port `base`, `length` ports, and processors 0 to max_vcpus - 1."""
    return _register_block(base, length) + aml.device(
        "CPUS",
        aml.name("_HID", aml.string("ACPI0010")),
        aml.name("_CID", aml.eisaid("PNP0A05")),
        _status_method(),
        _notify_method(max_vcpus),
        _eject_method(),
        _scan_method(max_vcpus),
        *(_processor(vcpu) for vcpu in range(max_vcpus)),
    )


def cpus_changed() -> tuple[int, bytes]:
    """The GED's handler for the CPU event."""
    return EVENT_CPU, aml.call(_SCAN)


def _register_block(base: int, length: int) -> bytes:
    return aml.device(
        "PRES",
        aml.name("_HID", aml.eisaid("PNP0A06")),
        aml.name("_UID", aml.string("CPU Hotplug Controller")),
        aml.mutex("CPLK", 0),
        aml.name("_CRS", aml.resource_template(aml.io(base, length))),
        aml.op_region("PRST", aml.SYSTEM_IO, base, length),
        # A write to one flag must not write others back as they were read: they mean something else when written.
        aml.field(
            "PRST",
            aml.BYTE_ACCESS,
            aml.WRITE_AS_ZEROS,
            (None, 32),
            ("CPEN", 1),
            ("CINS", 1),
            ("CRMV", 1),
            ("CEJ0", 1),
            (None, 4),
        ),
        aml.field("PRST", aml.DWORD_ACCESS, aml.PRESERVE, ("CSEL", 32)),
    )


def _locked(*statements: bytes) -> tuple[bytes, ...]:
    return aml.acquire(_LOCK, _WAIT_FOR_EVER), *statements, aml.release(_LOCK)


def _status_method() -> bytes:
    return aml.method(
        "CSTA",
        1,
        *_locked(
            aml.store(aml.ARG0, _SELECT),
            aml.store(_ZERO, aml.LOCAL0),
            aml.if_(aml.equal(_ENABLED, _ONE), aml.store(aml.integer(_PRESENT), aml.LOCAL0)),
        ),
        aml.return_(aml.LOCAL0),
        serialized=True,
    )


def _notify_method(max_vcpus: int) -> bytes:
    return aml.method(
        "CTFY",
        2,
        *(
            aml.if_(aml.equal(aml.ARG0, aml.integer(vcpu)), aml.notify_value(_processor_name(vcpu), aml.ARG1))
            for vcpu in range(max_vcpus)
        ),
        serialized=True,
    )


def _eject_method() -> bytes:
    return aml.method("CEJ0", 1, *_locked(aml.store(aml.ARG0, _SELECT), aml.store(_ONE, _EJECT)), serialized=True)


def _scan_method(max_vcpus: int) -> bytes:
    return aml.method(
        "CSCN",
        0,
        *_locked(
            aml.store(_ZERO, aml.LOCAL0),
            aml.while_(
                aml.less(aml.LOCAL0, aml.integer(max_vcpus)),
                aml.store(aml.LOCAL0, _SELECT),
                aml.if_(
                    aml.equal(_INSERTING, _ONE),
                    aml.call("CTFY", aml.LOCAL0, aml.integer(_DEVICE_CHECK)),
                    aml.store(_ONE, _INSERTING),
                ),
                aml.if_(
                    aml.equal(_REMOVING, _ONE),
                    aml.call("CTFY", aml.LOCAL0, aml.integer(_EJECT_REQUEST)),
                    aml.store(_ONE, _REMOVING),
                ),
                aml.add(aml.LOCAL0, _ONE, aml.LOCAL0),
            ),
        ),
        serialized=True,
    )


def _processor(vcpu: int) -> bytes:
    methods = [
        aml.method("_STA", 0, aml.return_(aml.call("CSTA", aml.integer(vcpu))), serialized=True),
        aml.name("_MAT", aml.buffer(tables.local_apic(vcpu, enabled=True))),
    ]
    if vcpu:  # the first is there for good
        methods.append(aml.method("_EJ0", 1, aml.call("CEJ0", aml.integer(vcpu)), serialized=True))
    return aml.device(
        _processor_name(vcpu), aml.name("_HID", aml.string("ACPI0007")), aml.name("_UID", aml.integer(vcpu)), *methods
    )


def _processor_name(vcpu: int) -> str:
    return f"C{vcpu:03X}"
