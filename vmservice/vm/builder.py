"""The order in which a machine is built: read `build` and you know what a guest finds."""

from __future__ import annotations

from vmservice.arch.x86_64 import layout
from vmservice.arch.x86_64.cpuid import physical_address_bits, vcpu_cpuid
from vmservice.board import resources
from vmservice.board.board import Board
from vmservice.errors import ConfigError
from vmservice.kvm import abi
from vmservice.memory import backing
from vmservice.vm.exit_handler import ExitHandler
from vmservice.vm.guest_requests import GuestRequests
from vmservice.vm.machine import KvmMachine
from vmservice.vm.vcpus import Vcpus

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from vmservice.board.timers import Timers
    from vmservice.boot.initramfs import LoadedInitramfs
    from vmservice.boot.kernel import LoadedKernel
    from vmservice.config_sections import Config, KernelConfig, VirtioConfig
    from vmservice.host.console import Console
    from vmservice.kvm.system import Kvm
    from vmservice.kvm.vcpu import KvmVcpu
    from vmservice.kvm.vm import KvmVm
    from vmservice.memory.guest_memory import GuestMemory
    from vmservice.vm.events import EventQueue
    from vmservice.vm.peripherals import Peripherals


class HostPorts:
    """What the host lends to a machine, and keeps when the machine goes.

    `serial` and `hvc` take what the guest writes to its serial port and its virtio-console; None for a machine without one.
    `hvc_size` answers the columns and rows of the virtio-console's terminal now, 0 and 0 when there is none. `ports` are the
    other ends of the configuration's, by name. `on_input_room` is told, from any thread, the console that has room for typed
    bytes again. `info` and `warn` take messages for the log.
    """

    __slots__ = (
        "_watchdog_fired",
        "events",
        "hvc",
        "hvc_size",
        "info",
        "kvm",
        "on_input_room",
        "ports",
        "serial",
        "timers",
        "warn",
    )

    def __init__(
        self,
        kvm: Kvm,
        events: EventQueue,
        timers: Timers,
        *,
        serial: Callable[[bytes], None] | None,
        hvc: Callable[[bytes], None] | None = None,
        hvc_size: Callable[[], tuple[int, int]] | None = None,
        ports: Mapping[str, Console] | None = None,
        on_input_room: Callable[[str], None],
        info: Callable[[str], None],
        warn: Callable[[str], None],
    ) -> None:
        self.kvm = kvm
        self.events = events
        self.timers = timers
        self.serial = serial
        self.hvc = hvc
        self.hvc_size = hvc_size
        self.ports = ports if ports is not None else {}
        self.on_input_room = on_input_room
        self.info = info
        self.warn = warn
        self._watchdog_fired = False

    def note_watchdog(self) -> None:
        """The next machine is to know that the watchdog ended the guest of this one."""
        self._watchdog_fired = True

    def take_watchdog_fired(self) -> bool:
        fired, self._watchdog_fired = self._watchdog_fired, False
        return fired


class Closers:
    """What has been made so far, to be given back in the opposite order."""

    def __init__(self) -> None:
        self._closers: list[Callable[[], None]] = []

    def add(self, close: Callable[[], None]) -> None:
        self._closers.append(close)

    def close(self) -> None:
        while self._closers:
            self._closers.pop()()


def build(config: Config, host: HostPorts, vcpus: int) -> KvmMachine:
    """A machine as `config` asks for it, with `vcpus` vCPUs, stopped, its kernel or firmware in memory.

    Leaves nothing behind on error.
    """
    closers = Closers()
    try:
        return _build(config, host, vcpus, closers)
    except BaseException:
        closers.close()
        raise


def _build(config: Config, host: HostPorts, vcpus: int, closers: Closers) -> KvmMachine:
    kvm = host.kvm
    kvm.require()
    cpuid = kvm.supported_cpuid()
    _check_limits(config, kvm, cpuid)
    memory = _allocate_memory(config, host)
    closers.add(memory.close)
    vm = kvm.create_vm()
    closers.add(vm.close)
    _show_memory(vm, memory)
    split_irqchip = _create_irqchip(vm, kvm)
    guest = GuestRequests(host.events, lambda: _explain_memory(memory))
    board = Board(
        vm,
        memory,
        host.timers,
        guest,
        split_irqchip=split_irqchip,
        vcpus=vcpus,
        max_vcpus=config.cpus.max,
        console=host.serial,
        on_console_room=host.on_input_room,
        watchdog_fired=host.take_watchdog_fired(),
        on_watchdog=host.note_watchdog,
        warn=host.warn,
    )
    created = Vcpus(_vcpu_creator(vm, kvm, cpuid, from_kernel=config.kernel is not None), vcpus)
    closers.add(created.close)
    peripherals = None
    if config.virtio is not None:
        peripherals = _create_peripherals(config.virtio, vm, memory, board, guest, host, physical_address_bits(cpuid))
        closers.add(peripherals.close)
    if config.kernel is not None:
        if board.serial is not None and kvm.extension(abi.KVM_CAP_COALESCED_PIO):
            board.coalesce_console(created.first)
        acpi = _write_acpi(memory, board, peripherals, vcpus, config.cpus.max)
        _boot_kernel(config.kernel, memory, created.first, vcpus, acpi, host)
    elif config.firmware is not None:
        _boot_firmware(config.firmware.path, vm, memory, kvm, closers)
    return KvmMachine(
        memory=memory,
        board=board,
        vcpus=created,
        exit_handler=ExitHandler(board, guest),
        guest=guest,
        peripherals=peripherals,
        give_back=closers.close,
    )


def _check_limits(config: Config, kvm: Kvm, supported_cpuid: bytes) -> None:
    last_gpa, last_size = layout.ram_ranges(config.memory.size_bytes)[-1]
    resources.check_reach(last_gpa + last_size, physical_address_bits(supported_cpuid))
    if config.cpus.max > kvm.max_vcpus:
        raise ConfigError(f"[cpus] max is {config.cpus.max}, but KVM on this host gives a VM at most {kvm.max_vcpus} vCPUs")


def _allocate_memory(config: Config, host: HostPorts) -> GuestMemory:
    memory = config.memory
    return backing.allocate(
        layout.ram_ranges(memory.size_bytes),
        file=memory.file,
        mergeable=memory.mergeable,
        hugepages=memory.hugepages,
        prefault=memory.prefault,
        shared=memory.shared,
        warn=host.warn,
    )


def _show_memory(vm: KvmVm, memory: GuestMemory) -> None:
    vm.set_tss_address(layout.TSS_ADDRESS)
    vm.set_identity_map_address(layout.IDENTITY_MAP_ADDRESS)
    for slot, region in enumerate(memory.regions):
        vm.set_memory(slot, region.gpa, region.mapping)


def _explain_memory(memory: GuestMemory) -> str:
    """Why the guest may have failed, if its memory is why."""
    return "; somebody has cut short the file that [memory] file names" if memory.is_cut_short() else ""


def _create_irqchip(vm: KvmVm, kvm: Kvm) -> bool:
    """Whether it is split: local APICs in the kernel, the IOAPIC ours."""
    tsc_deadline = kvm.extension(abi.KVM_CAP_TSC_DEADLINE_TIMER)
    # Our own IOAPIC needs a way to send its messages, and comes without a PIT: the timer must then be the local APIC's.
    if kvm.extension(abi.KVM_CAP_SPLIT_IRQCHIP) and kvm.extension(abi.KVM_CAP_SIGNAL_MSI) and tsc_deadline:
        vm.enable_split_irqchip(layout.IOAPIC_PINS)
        return True
    vm.create_irqchip()
    if not tsc_deadline:
        vm.create_pit()
    return False


def _create_peripherals(
    config: VirtioConfig,
    vm: KvmVm,
    memory: GuestMemory,
    board: Board,
    guest: GuestRequests,
    host: HostPorts,
    address_bits: int,
) -> Peripherals:
    from vmservice.vm.peripherals import Peripherals

    return Peripherals(
        config,
        vm=vm,
        memory=memory,
        board=board,
        address_bits=address_bits,
        # With the in-kernel irqchip KVM's routing table is that of its pins.
        irqfd=board.ioapic is not None
        and bool(host.kvm.extension(abi.KVM_CAP_IRQFD) and host.kvm.extension(abi.KVM_CAP_IRQ_ROUTING)),
        hvc=host.hvc,
        hvc_size=host.hvc_size,
        ports=host.ports,
        on_room=host.on_input_room,
        post=guest.call_soon,
        warn=host.warn,
    )


def _vcpu_creator(vm: KvmVm, kvm: Kvm, supported_cpuid: bytes, *, from_kernel: bool) -> Callable[[int], KvmVcpu]:
    """The way in which the machine makes a vCPU; a firmware sets up its processors itself."""
    tsc_deadline = bool(kvm.extension(abi.KVM_CAP_TSC_DEADLINE_TIMER))

    def create(index: int) -> KvmVcpu:
        vcpu = vm.create_vcpu(index)
        try:
            vcpu.set_cpuid(vcpu_cpuid(supported_cpuid, index, tsc_deadline=tsc_deadline))
            if from_kernel:
                from vmservice.arch.x86_64 import registers

                registers.set_boot_msrs(vcpu)
                registers.set_local_interrupts(vcpu)
        except BaseException:
            vcpu.close()
            raise
        return vcpu

    return create


def _boot_kernel(
    kernel_config: KernelConfig, memory: GuestMemory, vcpu: KvmVcpu, vcpus: int, rsdp: int, host: HostPorts
) -> None:
    """What a boot loader and a PC's firmware would have done together; `vcpu` is the first."""
    from vmservice.arch.x86_64 import mptable, reset_vector
    from vmservice.boot.cmdline import write_cmdline
    from vmservice.boot.initramfs import load_initramfs
    from vmservice.boot.loader import load_kernel

    kernel = load_kernel(kernel_config.path, memory)
    initramfs = load_initramfs(kernel_config.initramfs, memory, kernel) if kernel_config.initramfs else None
    cmdline_size = write_cmdline(kernel_config.cmdline, memory, kernel)
    mptable.write_mptable(memory, vcpus)
    reset_vector.write_reset_vector(memory)
    _enter_kernel(vcpu, memory, kernel, initramfs, cmdline_size, rsdp)
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


def _boot_firmware(path: str, vm: KvmVm, memory: GuestMemory, kvm: Kvm, closers: Closers) -> None:
    """Nothing but the image: vCPUs start as a processor comes out of reset, at the reset vector."""
    from vmservice.boot.firmware import load_firmware

    image = load_firmware(path, memory)
    closers.add(image.close)
    vm.set_memory(len(memory.regions), image.gpa, image.mapping, read_only=bool(kvm.extension(abi.KVM_CAP_READONLY_MEM)))


def _write_acpi(memory: GuestMemory, board: Board, peripherals: Peripherals | None, vcpus: int, max_vcpus: int) -> int:
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
    if board.serial is not None:
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
    if peripherals is not None:
        devices += peripherals.aml()
        tables += peripherals.tables()
    return write_tables(
        memory,
        vcpus=vcpus,
        max_vcpus=max_vcpus,
        dsdt_aml=devices_aml.dsdt(devices),
        more=tables,
    )
