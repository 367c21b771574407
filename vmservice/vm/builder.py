"""The order in which a machine is built: read `build` and you know what a guest finds."""

from __future__ import annotations

from vmservice.arch.x86_64 import layout
from vmservice.arch.x86_64.cpuid import physical_address_bits, vcpu_cpuid
from vmservice.errors import ConfigError
from vmservice.kvm import abi
from vmservice.memory import backing
from vmservice.vm import resources
from vmservice.vm.chipset import Chipset
from vmservice.vm.machine import KvmMachine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vmservice.boot.initramfs import LoadedInitramfs
    from vmservice.boot.kernel import LoadedKernel
    from vmservice.config_sections import Config, KernelConfig, VirtioConfig
    from vmservice.devices.cpu_hotplug import CpuHotplug
    from vmservice.devices.pvpanic import PvPanic
    from vmservice.devices.watchdog import Watchdog
    from vmservice.host.console import Console
    from vmservice.kvm.system import Kvm
    from vmservice.kvm.vcpu import KvmVcpu
    from vmservice.memory.guest_memory import GuestMemory
    from vmservice.vm.events import EventQueue


class HostPorts:
    """What the host lends to a machine, and keeps when the machine goes.

    `serial` and `hvc` take what the guest writes to its serial port and its virtio-console; None for a machine without one.
    `hvc_size` answers the columns and rows of the virtio-console's terminal now, 0 and 0 when there is none. `ports` are the
    other ends of the configuration's, by name. `info` and `warn` take messages for the log. `watchdog_fired` is what the next
    machine is to know of the last one.
    """

    __slots__ = ("events", "hvc", "hvc_size", "info", "kvm", "ports", "serial", "warn", "watchdog_fired")

    def __init__(
        self,
        kvm: Kvm,
        events: EventQueue,
        *,
        serial: Callable[[bytes], None] | None,
        hvc: Callable[[bytes], None] | None = None,
        hvc_size: Callable[[], tuple[int, int]] | None = None,
        ports: Mapping[str, Console] | None = None,
        info: Callable[[str], None],
        warn: Callable[[str], None],
    ) -> None:
        self.kvm = kvm
        self.events = events
        self.serial = serial
        self.hvc = hvc
        self.hvc_size = hvc_size
        self.ports = ports if ports is not None else {}
        self.info = info
        self.warn = warn
        self.watchdog_fired = False


def build(config: Config, host: HostPorts, vcpus: int) -> KvmMachine:
    """A machine as `config` asks for it, with `vcpus` vCPUs, stopped, its kernel or firmware in memory.

    Leaves nothing behind on error.
    """
    host.kvm.require()
    supported_cpuid = host.kvm.supported_cpuid()
    _check_limits(config, host.kvm, supported_cpuid)
    machine = KvmMachine(host.events)
    try:
        _create_vm(machine, config, host)
        _create_interrupts_and_devices(machine, host, vcpus, config.cpus.max)
        _create_vcpus(machine, host.kvm, supported_cpuid, vcpus, from_kernel=config.kernel is not None)
        if config.virtio is not None:
            _create_peripherals(machine, config.virtio, host, physical_address_bits(supported_cpuid))
        if config.kernel is not None:
            _boot_kernel(machine, config.kernel, host, config.cpus.max)
        elif config.firmware is not None:
            _boot_firmware(machine, config.firmware.path, host.kvm)
    except BaseException:
        machine.close()
        raise
    return machine


def _check_limits(config: Config, kvm: Kvm, supported_cpuid: bytes) -> None:
    last_gpa, last_size = layout.ram_ranges(config.memory.size_bytes)[-1]
    resources.check_reach(last_gpa + last_size, physical_address_bits(supported_cpuid))
    if config.cpus.max > kvm.max_vcpus:
        raise ConfigError(f"[cpus] max is {config.cpus.max}, but KVM on this host gives a VM at most {kvm.max_vcpus} vCPUs")


def _create_vm(machine: KvmMachine, config: Config, host: HostPorts) -> None:
    memory = config.memory
    machine.memory = backing.allocate(
        layout.ram_ranges(memory.size_bytes),
        file=memory.file,
        mergeable=memory.mergeable,
        hugepages=memory.hugepages,
        prefault=memory.prefault,
        shared=memory.shared,
        warn=host.warn,
    )
    vm = machine.kvm_vm = host.kvm.create_vm()
    vm.set_tss_address(layout.TSS_ADDRESS)
    vm.set_identity_map_address(layout.IDENTITY_MAP_ADDRESS)
    for slot, region in enumerate(machine.memory.regions):
        vm.set_memory(slot, region.gpa, region.mapping)


def _create_interrupts_and_devices(machine: KvmMachine, host: HostPorts, vcpus: int, max_vcpus: int) -> None:
    assert machine.kvm_vm is not None and machine.memory is not None
    vm, kvm = machine.kvm_vm, host.kvm
    tsc_deadline = kvm.extension(abi.KVM_CAP_TSC_DEADLINE_TIMER)
    # Our own IOAPIC needs a way to send its messages, and comes without a PIT: the timer must then be the local APIC's.
    split = bool(kvm.extension(abi.KVM_CAP_SPLIT_IRQCHIP) and kvm.extension(abi.KVM_CAP_SIGNAL_MSI) and tsc_deadline)
    if split:
        vm.enable_split_irqchip(layout.IOAPIC_PINS)
    else:
        vm.create_irqchip()
        if not tsc_deadline:
            vm.create_pit()
    machine.chipset = Chipset(
        vm,
        machine.memory,
        split_irqchip=split,
        console=host.serial,
        cpu_hotplug=_cpu_hotplug(machine, vcpus, max_vcpus) if max_vcpus > 1 else None,
        on_console_room=machine.feed,
        on_sleep=machine.guest_poweroff,
        on_reset=machine.guest_reset,
        pvpanic=_pvpanic(machine, host),
        watchdog=_watchdog(machine, host),
    )


def _create_peripherals(machine: KvmMachine, config: VirtioConfig, host: HostPorts, address_bits: int) -> None:
    from vmservice.vm.peripherals import Peripherals

    assert machine.kvm_vm is not None and machine.memory is not None
    machine.peripherals = Peripherals(
        config,
        vm=machine.kvm_vm,
        memory=machine.memory,
        chipset=machine.chipset,
        address_bits=address_bits,
        # With the in-kernel irqchip KVM's routing table is that of its pins.
        irqfd=machine.chipset.ioapic is not None
        and bool(host.kvm.extension(abi.KVM_CAP_IRQFD) and host.kvm.extension(abi.KVM_CAP_IRQ_ROUTING)),
        hvc=host.hvc,
        hvc_size=host.hvc_size,
        ports=host.ports,
        on_room=machine.feed,
        on_backlog=machine.backlog,
        warn=host.warn,
    )


def _pvpanic(machine: KvmMachine, host: HostPorts) -> PvPanic:
    from vmservice.devices.pvpanic import PvPanic

    return PvPanic(
        on_panic=machine.guest_panic,
        on_crash_loaded=lambda: host.warn("the guest panicked, and goes on with its crash kernel"),
        on_shutdown=machine.guest_poweroff,
    )


def _watchdog(machine: KvmMachine, host: HostPorts) -> Watchdog:
    """CLOCK_MONOTONIC stands still while the host sleeps."""
    from time import monotonic

    from vmservice.devices.watchdog import Watchdog, WatchdogState

    def expired() -> None:
        host.watchdog_fired = True
        machine.guest_watchdog()

    state = WatchdogState(fired=host.watchdog_fired)
    host.watchdog_fired = False
    return Watchdog(monotonic, expired, state)


def _cpu_hotplug(machine: KvmMachine, vcpus: int, max_vcpus: int) -> CpuHotplug:
    from vmservice.devices.cpu_hotplug import CpuHotplug, CpuHotplugState

    return CpuHotplug(CpuHotplugState(vcpus, max_vcpus), machine.vcpu_taken, machine.vcpu_ejected)


def _create_vcpus(machine: KvmMachine, kvm: Kvm, supported_cpuid: bytes, vcpus: int, *, from_kernel: bool) -> None:
    """The boot vCPUs, and the way in which the machine makes more of them."""
    vm = machine.kvm_vm
    assert vm is not None
    tsc_deadline = bool(kvm.extension(abi.KVM_CAP_TSC_DEADLINE_TIMER))

    def create_vcpu(index: int) -> KvmVcpu:
        vcpu = vm.create_vcpu(index)
        try:
            vcpu.set_cpuid(vcpu_cpuid(supported_cpuid, index, tsc_deadline=tsc_deadline))
            if from_kernel:  # a firmware does this itself
                from vmservice.arch.x86_64 import registers

                registers.set_boot_msrs(vcpu)
                registers.set_local_interrupts(vcpu)
        except BaseException:
            vcpu.close()
            raise
        return vcpu

    machine.create_vcpu = create_vcpu
    for index in range(vcpus):
        machine.kvm_vcpus[index] = create_vcpu(index)


def _boot_kernel(machine: KvmMachine, kernel_config: KernelConfig, host: HostPorts, max_vcpus: int) -> None:
    """What a boot loader and a PC's firmware would have done together."""
    from vmservice.arch.x86_64 import mptable, reset_vector
    from vmservice.boot.cmdline import write_cmdline
    from vmservice.boot.initramfs import load_initramfs
    from vmservice.boot.loader import load_kernel

    memory = machine.memory
    assert memory is not None and machine.kvm_vm is not None
    if machine.chipset.serial is not None and host.kvm.extension(abi.KVM_CAP_COALESCED_PIO):
        # The kernel's 8250 console reads a status register for each byte that it writes: let the write wait for the read.
        machine.coalesce_console()
    kernel = load_kernel(kernel_config.path, memory)
    initramfs = load_initramfs(kernel_config.initramfs, memory, kernel) if kernel_config.initramfs else None
    cmdline_size = write_cmdline(kernel_config.cmdline, memory, kernel)
    rsdp = _write_acpi(machine, memory, max_vcpus)
    mptable.write_mptable(memory, machine.vcpus)
    reset_vector.write_reset_vector(memory)
    _enter_kernel(machine.kvm_vcpus[0], memory, kernel, initramfs, cmdline_size, rsdp)
    host.info(f"booting {kernel_config.path} by the {kernel.protocol} boot protocol")


def _enter_kernel(
    vcpu: KvmVcpu,
    memory: GuestMemory,
    kernel: LoadedKernel,
    initramfs: LoadedInitramfs | None,
    cmdline_size: int,
    rsdp: int,
) -> None:
    """What the kernel's boot protocol wants to find in memory and in the registers of the first vCPU."""
    from vmservice.arch.x86_64 import boot_params, gdt, paging, pvh, registers
    from vmservice.boot.kernel import PVH

    module = (initramfs.gpa, initramfs.size_bytes) if initramfs is not None else None
    if kernel.protocol == PVH:
        pvh.write_start_info(memory, initramfs=module, rsdp=rsdp, address_map=boot_params.e820(memory))
        gdt.write_gdt(memory, gdt.PROTECTED_MODE)
        registers.set_pvh_registers(vcpu, kernel.entry)
        return
    boot_params.write_zero_page(
        memory, setup_header=kernel.setup_header, cmdline_size=cmdline_size, initramfs=module, rsdp=rsdp
    )
    gdt.write_gdt(memory, gdt.LONG_MODE)
    paging.write_page_tables(memory)
    registers.set_long_mode_registers(vcpu, kernel.entry)


def _boot_firmware(machine: KvmMachine, path: str, kvm: Kvm) -> None:
    """Nothing but the image: vCPUs start as a processor comes out of reset, at the reset vector."""
    from vmservice.boot.firmware import load_firmware

    assert machine.memory is not None and machine.kvm_vm is not None
    image = load_firmware(path, machine.memory)
    machine.owned.append(image.close)
    slot = len(machine.memory.regions)
    read_only = bool(kvm.extension(abi.KVM_CAP_READONLY_MEM))
    machine.kvm_vm.set_memory(slot, image.gpa, image.mapping, read_only=read_only)


def _write_acpi(machine: KvmMachine, memory: GuestMemory, max_vcpus: int) -> int:
    """ACPI tables into guest memory; the gpa of the RSDP."""
    from vmservice.acpi import cpu_aml, devices_aml
    from vmservice.acpi.wdat import wdat
    from vmservice.arch.x86_64.acpi_tables import write_tables
    from vmservice.devices import watchdog

    devices = [
        devices_aml.real_time_clock(layout.CMOS_BASE),
        devices_aml.power_button(),
        devices_aml.pvpanic(layout.PVPANIC_PORT),
    ]
    handlers = [devices_aml.power_button_pressed()]
    if machine.chipset.serial is not None:
        devices.append(devices_aml.com_port(1, layout.COM1_BASE, layout.COM1_GSI))
    if max_vcpus > 1:
        devices.append(cpu_aml.cpu_hotplug(layout.CPU_HOTPLUG_BASE, layout.CPU_HOTPLUG_LEN, max_vcpus))
        handlers.append(cpu_aml.cpus_changed())
    devices.append(devices_aml.generic_event_device(layout.GED_PORT, layout.GED_GSI, handlers))
    tables = [
        wdat(
            control=layout.WATCHDOG_BASE + watchdog.CONTROL,
            status=layout.WATCHDOG_BASE + watchdog.STATUS,
            feed=layout.WATCHDOG_BASE + watchdog.FEED,
            timeout=layout.WATCHDOG_BASE + watchdog.TIMEOUT,
            remaining=layout.WATCHDOG_BASE + watchdog.REMAINING,
            period_ms=watchdog.PERIOD_MS,
            count_min=watchdog.COUNT_MIN,
            count_max=watchdog.COUNT_MAX,
        )
    ]
    peripherals = machine.peripherals
    if peripherals is not None:
        devices += peripherals.aml()
        tables += peripherals.tables()
    return write_tables(
        memory,
        vcpus=machine.vcpus,
        max_vcpus=max_vcpus,
        dsdt_aml=devices_aml.dsdt(devices),
        more=tables,
    )
