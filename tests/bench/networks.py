"""Runs in the lab's host: a guest's network beside QEMU's q35: at a tap with vhost-net, at a tap without it, by passt.

Both guests of a pair live through all runs; the one that is not measured is stopped by SIGSTOP. With vhost-net the kernel moves
the frames of both. Without it ours does so in a thread, QEMU in its main loop. passt serves ours by vhost-user, and QEMU's by
a stream socket, which is what its own manual page shows.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from bench.guest_link import GuestLink
from bench.rows import BenchError, fail, note
from bench.started import Command, Started, Unit, go_on, hold, host_cpu_sec, wait_for_path

LAB = Path("/lab")
NAME = "netbench"
PLACE = Path("/var/lib/vmservice") / NAME
VHOST, VHOST_AWAY = Path("/dev/vhost-net"), Path("/dev/vhost-net.away")
PASST_SOCKET = Path("/run/netbench.passt")
PASST_MTU = 65520
BOOT_TIMEOUT_SEC = 120.0
SETTLE_SEC = 0.5

# Side → (the host's address at its tap, the guest's). passt gives its guest the host's own address, and leads it to any other.
TAPS = {"vmservice": ("198.18.1.1", "198.18.1.2"), "peer": ("198.18.2.1", "198.18.2.2")}
UPLINK, GATEWAY, OTHER = "192.0.2.1", "192.0.2.2", "198.51.100.1"


class End:
    """Where a guest is in the network: its own address, its gateway's, and this host's for it."""

    def __init__(self, own: str, gateway: str, host: str) -> None:
        self.link = GuestLink(host)
        self.cmdline = f"console=ttyS0 quiet bench=network link={own},{gateway},{host},{self.link.port}"


def console(side: str) -> Path:
    return PLACE / f"{side}.console"


def configure(end: End, network: str) -> None:
    Path(f"/etc/vmservice/{NAME}.toml").write_text(
        f'[kernel]\npath = "{LAB}/trixie.vmlinuz"\ninitramfs = "{LAB}/bench.initramfs"\ncmdline = "{end.cmdline}"\n'
        f'[memory]\nsize = "256M"\n[serial]\nmode = "file"\npath = "{console("vmservice")}"\n'
        f'[[network]]\nname = "lan"\n{network}'
    )


def tap_name(side: str) -> str:
    return f"nb-{side}"


def ours_at_tap(end: End) -> Started:
    configure(end, f'tap = "{tap_name("vmservice")}"\n')
    return Command(["/usr/bin/vmservice", "run", NAME, "--bus", "none"])


def ours_by_passt(end: End) -> Started:
    configure(end, 'mode = "passt"\n')
    return Unit(NAME, [f"vm-passt@{NAME}:lan.service"])


def peer(end: End, network: str, *servers: subprocess.Popen[bytes], more: str = "") -> Started:
    images = ["-kernel", f"{LAB}/trixie.vmlinuz", "-initrd", f"{LAB}/bench.initramfs", "-append", end.cmdline]
    plain = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    machine = ["-M", "q35,accel=kvm", "-cpu", "host", "-m", "256", "-serial", f"file:{console('peer')}"]
    card = ["-netdev", f"{network},id=lan", "-device", f"virtio-net-pci,netdev=lan,romfile={more}"]
    return Command([*plain, *machine, *images, *card], servers)


def peer_at_tap(end: End, vhost: str) -> Started:
    return peer(end, f"tap,ifname={tap_name('peer')},script=no,downscript=no,vhost={vhost}")


def peer_by_passt(end: End) -> Started:
    PASST_SOCKET.unlink(missing_ok=True)
    command = ["passt", "--foreground", "--quiet", "--socket", str(PASST_SOCKET), "--mtu", str(PASST_MTU), "--no-map-gw"]
    passt = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        wait_for_path(PASST_SOCKET)
        return peer(end, f"stream,server=off,addr.type=unix,addr.path={PASST_SOCKET}", passt, more=f",host_mtu={PASST_MTU}")
    except BaseException:
        passt.kill()
        passt.wait()
        raise


# Pair → side → what starts it. QEMU begins: systemd's watchdog would miss our unit if that were stopped while QEMU boots.
PAIRS: Mapping[str, Mapping[str, Callable[[End], Started]]] = {
    "vhost-net": {"peer": lambda end: peer_at_tap(end, "on"), "vmservice": ours_at_tap},
    "a tap alone": {"peer": lambda end: peer_at_tap(end, "off"), "vmservice": ours_at_tap},
    "passt": {"peer": peer_by_passt, "vmservice": ours_by_passt},
}


@contextlib.contextmanager
def host_ready(pair: str) -> Iterator[dict[str, End]]:
    """The host's side of a pair: its interfaces, and where the guests are."""
    undo = contextlib.ExitStack()
    with undo:
        if pair == "passt":
            # passt takes the address and the route of an interface that leads to the world.
            _ip(undo, "link add nb-uplink type dummy", "link del nb-uplink")
            for words in (
                f"address add {UPLINK}/24 dev nb-uplink",
                "link set nb-uplink up",
                f"route add default via {GATEWAY}",
            ):
                _ip(undo, words)
            _ip(undo, f"address add {OTHER}/32 dev lo", f"address del {OTHER}/32 dev lo")
            yield {side: _end(undo, UPLINK, GATEWAY, OTHER) for side in TAPS}
            return
        for side, (address, _) in TAPS.items():
            _ip(undo, f"tuntap add {tap_name(side)} mode tap", f"link del {tap_name(side)}")
            _ip(undo, f"address add {address}/24 dev {tap_name(side)}")
            _ip(undo, f"link set {tap_name(side)} up")
        if pair != "vhost-net":
            # The VMM moves frames itself where there is no vhost-net.
            VHOST.rename(VHOST_AWAY)
            undo.callback(VHOST_AWAY.rename, VHOST)
        yield {side: _end(undo, own, address, address) for side, (address, own) in TAPS.items()}


def _end(undo: contextlib.ExitStack, own: str, gateway: str, host: str) -> End:
    end = End(own, gateway, host)
    undo.callback(end.link.close)
    return end


def _ip(undo: contextlib.ExitStack, words: str, back: str = "") -> None:
    subprocess.run(["ip", *words.split()], check=True, stdin=subprocess.DEVNULL)
    if back:
        undo.callback(subprocess.run, ["ip", *back.split()])


def measure(runs: int) -> None:
    subprocess.run(["modprobe", "-a", "tun", "vhost_net", "dummy"], check=True)
    subprocess.run(["install", "-d", "-o", "vmservice", "-g", "vmservice", PLACE], check=True)
    wait_for_path(VHOST)
    for pair in PAIRS:
        try:
            _measure_pair(pair, runs)
        except Exception as error:  # the other pairs may do
            fail(f"networks, {pair}", error)


def _measure_pair(pair: str, runs: int) -> None:
    with host_ready(pair) as ends, contextlib.ExitStack() as stack:
        machines: dict[str, Started] = {}
        for side, start in PAIRS[pair].items():
            console(side).unlink(missing_ok=True)
            machines[side] = machine = start(ends[side])
            stack.callback(machine.end)
            _wait_up(side, machine, ends[side].link)
            check_vhost(machine, wanted=pair == "vhost-net")
            _hold(machine)
        for run in range(runs + 1):
            for side, machine in machines.items():
                go_on(machine)
                time.sleep(SETTLE_SEC)
                figures = list(_figures(machine, ends[side].link))
                _hold(machine)
                for row, figure in figures if run else ():  # the first time much happens for the first time
                    note(f"network, {pair}: {row}", side, figure)


def _hold(machine: Started) -> None:
    """passt connects to the host before its guest has heard of it, and gives that up where the guest is not heard from."""
    time.sleep(SETTLE_SEC)
    hold(machine)


def _figures(machine: Started, link: GuestLink) -> Iterator[tuple[str, float]]:
    for job, way in (("send", "guest to host"), ("take", "host to guest")):
        rate, cost = link.throughput(job, lambda: host_cpu_sec(machine.pids))
        yield f"{way}, MiB/s", rate
        yield f"{way}, host CPU s for a GiB", cost
    yield "64 bytes there and back, µs", link.echo_us()


def _wait_up(side: str, machine: Started, link: GuestLink) -> None:
    deadline = time.monotonic() + BOOT_TIMEOUT_SEC
    while not link.is_ready(timeout_sec=0.2):
        if (status := machine.status()) or time.monotonic() > deadline:
            said = console(side).read_text(errors="replace")[-400:] if console(side).exists() else ""
            raise BenchError(f"the guest of {side} does not connect: {status or 'it took too long'}, {said!r}")


def check_vhost(machine: Started, *, wanted: bool) -> None:
    """That the frames are moved by whom they should be, and that what it costs is counted."""
    threads = [path.read_text().strip() for path in Path(f"/proc/{machine.pids[0]}/task").glob("*/comm")]
    if any(name.startswith("vhost-") for name in threads) is not wanted:
        raise BenchError(f"expected {'a' if wanted else 'no'} vhost worker among the threads {threads}")
