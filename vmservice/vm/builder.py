"""The order in which a machine is built: read `build` and you know what a guest finds."""

from __future__ import annotations

from vmservice.arch.x86_64 import layout, smbios
from vmservice.arch.x86_64.cpuid import physical_address_bits, vcpu_cpuid
from vmservice.board import resources
from vmservice.board.board import Board
from vmservice.board.slot import Services
from vmservice.boot.firmware import image_of, load_firmware
from vmservice.errors import ConfigError, NamingKey
from vmservice.host.file_watch import FileWatch
from vmservice.kvm import abi
from vmservice.memory import backing
from vmservice.plug.backend import plug_module
from vmservice.vm.exit_handler import ExitHandler
from vmservice.vm.guest_requests import GuestRequests
from vmservice.vm.identity import smbios_tables
from vmservice.vm.machine import KvmMachine
from vmservice.vm.panic_line import PanicLine
from vmservice.vm.vcpus import Vcpus

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from vmservice.board.board import Tree
    from vmservice.board.mmio_slots import MmioSlots
    from vmservice.board.pci_slots import PciSlots
    from vmservice.board.slot import Plugged
    from vmservice.boot.initramfs import LoadedInitramfs
    from vmservice.boot.kernel import LoadedKernel
    from vmservice.config.core import KernelConfig
    from vmservice.config.load import Config
    from vmservice.kvm.system import Kvm
    from vmservice.kvm.vcpu import KvmVcpu
    from vmservice.kvm.vm import KvmVm
    from vmservice.memory.guest_memory import GuestMemory
    from vmservice.vm.host_services import HostServices


class Closers:
    """What has been made so far, to be given back in the opposite order."""

    def __init__(self) -> None:
        self._closers: list[Callable[[], None]] = []

    def add(self, close: Callable[[], None]) -> None:
        self._closers.append(close)

    def close(self) -> None:
        while self._closers:
            self._closers.pop()()


def build(config: Config, host: HostServices, vcpus: int) -> KvmMachine:
    """A machine as `config` asks for it, with `vcpus` vCPUs, stopped, its kernel or firmware in memory.

    Leaves nothing behind on error.
    """
    closers = Closers()
    try:
        with config.naming():
            return _build(config, host, vcpus, closers)
    except BaseException:
        closers.close()
        raise


def restore(config: Config, host: HostServices, tree: Tree, memory: GuestMemory) -> KvmMachine:
    """A machine of `config` that goes on from `tree`, which `state_tree.collect` has made of another one, with the same guest
    memory; stopped. It owns `memory`, also on error, when nothing is left behind. ValueError, KvmError for what does not fit.
    """
    from vmservice.vm.state_tree import check, put_back

    closers = Closers()
    closers.add(memory.close)
    try:
        check(tree, config)
        machine = _build(config, host, 0, closers, memory, tree)
        put_back(tree, machine, host.kvm)
        return machine
    except BaseException:
        closers.close()
        raise


def _build(
    config: Config,
    host: HostServices,
    vcpus: int,
    closers: Closers,
    memory: GuestMemory | None = None,
    tree: Tree | None = None,
) -> KvmMachine:
    """With a `tree` the machine is built without what a loader does, and its vCPUs are those of the tree."""
    kvm = host.kvm
    parts: Tree = tree or {}
    kvm.require()
    cpuid = kvm.supported_cpuid()
    _check_limits(config, kvm, cpuid)
    if memory is None:
        memory = _allocate_memory(config, host, closers)
    vm = kvm.create_vm()
    closers.add(vm.close)
    _show_memory(vm, memory)
    split_irqchip = _create_irqchip(vm, kvm)
    devices: list[Plugged] = []
    guest = GuestRequests(host.events, lambda: _explain_memory(memory) + "".join(device.explain() for device in devices))
    if config.memory.file is not None:
        closers.add(_watch_memory(memory, guest).close)
    available = resources.Resources(memory.end, physical_address_bits(cpuid), _device_memory(config, host))
    services = _slot_services(memory, available, guest, host)
    serial = host.backends.serial
    board = Board(
        vm,
        memory,
        available,
        host.timers,
        guest,
        split_irqchip=split_irqchip,
        vcpus=vcpus,
        max_vcpus=config.cpus.max,
        console=PanicLine(serial.write, guest.panic_line).write if serial is not None else None,
        on_console_room=services.on_input_room,
        watchdog_fired=host.take_watchdog_fired(),
        on_watchdog=host.note_watchdog,
        warn=host.warn,
        tree=parts.get("board"),
    )
    created = Vcpus(_vcpu_creator(vm, kvm, cpuid, config), map(int, parts["vcpus"]) if parts else range(vcpus))
    closers.add(created.close)
    slots = _create_slots(config, board, services, vm, kvm, closers, parts.get("slots"))
    _plug_in(config, slots, host, closers, parts.get("devices", {}), devices)
    rom = None
    if config.kernel is not None:
        if board.serial is not None and kvm.extension(abi.KVM_CAP_COALESCED_PIO):
            board.coalesce_console(created.first)
        if tree is None:
            acpi = _write_acpi(memory, board, slots, vcpus, config.cpus.max)
            smbios.write_smbios(memory, smbios_tables(config, host.credentials))
            _boot_kernel(config.kernel, memory, created.first, vcpus, acpi, host)
    elif config.firmware is not None:
        with NamingKey("firmware.path"):
            image = load_firmware(config.firmware.path, memory) if tree is None else image_of(bytes.fromhex(tree["rom"]))
        closers.add(image.close)
        # Nothing but the image: vCPUs start as a processor comes out of reset, at the reset vector.
        vm.memory.add(image.gpa, image.mapping, read_only=bool(kvm.extension(abi.KVM_CAP_READONLY_MEM)))
        rom = image.mapping
    return KvmMachine(
        vm=vm,
        memory=memory,
        rom=rom,
        board=board,
        vcpus=created,
        exit_handler=ExitHandler(board, guest),
        guest=guest,
        slots=slots,
        devices=devices,
        kinds={section.name: section.kind for section in config.devices},
        give_back=closers.close,
    )


def _slot_services(memory: GuestMemory, available: resources.Resources, guest: GuestRequests, host: HostServices) -> Services:
    def on_input_room(label: str) -> None:
        guest.call_soon(lambda: host.on_input_room(label))

    return Services(
        memory,
        host.timers,
        available,
        post=guest.call_soon,
        on_input_room=on_input_room,
        warn=host.warn,
        fault=guest.fault,
    )


def _create_slots(
    config: Config, board: Board, services: Services, vm: KvmVm, kvm: Kvm, closers: Closers, tree: Tree | None
) -> PciSlots | MmioSlots | None:
    """Where devices beyond the board's are plugged in; None for a machine that has no place for them."""
    if config.transport is None:
        return None
    if config.transport == "mmio":
        from vmservice.board.mmio_slots import MmioSlots

        return MmioSlots(board, services, tree)
    from vmservice.board.pci_slots import PciSlots

    # With the in-kernel irqchip KVM's routing table is that of its pins.
    irqfd = board.ioapic is not None and kvm.extension(abi.KVM_CAP_IRQFD) and kvm.extension(abi.KVM_CAP_IRQ_ROUTING)
    ioeventfd = kvm.extension(abi.KVM_CAP_IOEVENTFD) and kvm.extension(abi.KVM_CAP_IOEVENTFD_ANY_LENGTH)
    slots = PciSlots(board, services, vm, irqfd=bool(irqfd), ioeventfd=bool(ioeventfd), tree=tree)
    closers.add(slots.close)
    return slots


def _device_memory(config: Config, host: HostServices) -> list[int]:
    """The sizes of memory that devices bring."""
    if config.transport is None:
        return []
    modules = ((section, plug_module(section)) for section in config.devices)
    return [module.memory_bytes(host.backends.of(section)) for section, module in modules if hasattr(module, "memory_bytes")]


def _plug_in(
    config: Config,
    slots: PciSlots | MmioSlots | None,
    host: HostServices,
    closers: Closers,
    trees: Tree,
    devices: list[Plugged],
) -> None:
    if slots is None:
        return
    for section in config.devices:
        slot = slots.slot(section.name, trees.get(section.name))
        device = plug_module(section).build(section, host.backends.of(section), slot)
        closers.add(device.close)
        devices.append(device)


def _check_limits(config: Config, kvm: Kvm, supported_cpuid: bytes) -> None:
    last_gpa, last_size = layout.ram_ranges(config.memory.size_bytes)[-1]
    resources.check_reach(last_gpa + last_size, physical_address_bits(supported_cpuid))
    if config.cpus.max > kvm.max_vcpus:
        raise ConfigError(f"cpus.max is {config.cpus.max}, but KVM on this host gives a VM at most {kvm.max_vcpus} vCPUs")


def _allocate_memory(config: Config, host: HostServices, closers: Closers) -> GuestMemory:
    memory = config.memory
    allocated = backing.allocate(
        layout.ram_ranges(memory.size_bytes),
        file=memory.file,
        mergeable=memory.mergeable,
        hugepages=memory.hugepages,
        prefault=memory.prefault,
        shared=memory.shared,
        warn=host.warn,
        progress=host.progress,
    )
    closers.add(lambda: allocated.close(host.progress))
    return allocated


def _show_memory(vm: KvmVm, memory: GuestMemory) -> None:
    vm.set_tss_address(layout.TSS_ADDRESS)
    vm.set_identity_map_address(layout.IDENTITY_MAP_ADDRESS)
    memory.listen(vm.memory)


def _watch_memory(memory: GuestMemory, guest: GuestRequests) -> FileWatch:
    """Somebody may cut short the file that memory.file names."""

    def look() -> None:
        if memory.is_cut_short():
            guest.fault("the guest's memory has lost pages")

    return FileWatch(memory.fd, look)


def _explain_memory(memory: GuestMemory) -> str:
    """Why the guest may have failed, if its memory is why."""
    return "; somebody has cut short the file that memory.file names" if memory.is_cut_short() else ""


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


def _vcpu_creator(vm: KvmVm, kvm: Kvm, supported_cpuid: bytes, config: Config) -> Callable[[int], KvmVcpu]:
    """The way in which the machine makes a vCPU; a firmware sets up its processors itself."""
    tsc_deadline = bool(kvm.extension(abi.KVM_CAP_TSC_DEADLINE_TIMER))

    def create(index: int) -> KvmVcpu:
        vcpu = vm.create_vcpu(index)
        try:
            vcpu.set_cpuid(vcpu_cpuid(supported_cpuid, index, config.cpus.max, tsc_deadline=tsc_deadline))
            if config.kernel is not None:
                from vmservice.arch.x86_64 import registers

                registers.set_boot_msrs(vcpu)
                registers.set_local_interrupts(vcpu)
        except BaseException:
            vcpu.close()
            raise
        return vcpu

    return create


def _boot_kernel(
    kernel_config: KernelConfig, memory: GuestMemory, vcpu: KvmVcpu, vcpus: int, rsdp: int, host: HostServices
) -> None:
    """What a boot loader and a PC's firmware would have done together; `vcpu` is the first."""
    from vmservice.arch.x86_64 import mptable, reset_vector
    from vmservice.boot.cmdline import write_cmdline
    from vmservice.boot.initramfs import load_initramfs
    from vmservice.boot.loader import load_kernel

    with NamingKey("kernel.path"):
        kernel = load_kernel(kernel_config.path, memory)
    with NamingKey("kernel.initramfs"):
        initramfs = load_initramfs(kernel_config.initramfs, memory, kernel) if kernel_config.initramfs else None
    with NamingKey("kernel.cmdline"):
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


def _write_acpi(memory: GuestMemory, board: Board, slots: PciSlots | MmioSlots | None, vcpus: int, max_vcpus: int) -> int:
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
    if slots is not None:
        devices += slots.aml()
        tables += slots.tables()
    return write_tables(
        memory,
        vcpus=vcpus,
        max_vcpus=max_vcpus,
        dsdt_aml=devices_aml.dsdt(devices),
        more=tables,
    )
