"""`[[disk]]`: virtio-blk, in an image file or a block device."""

from __future__ import annotations

import _thread
import errno
import os

from vmservice.board.block_server import BlockServer
from vmservice.board.rings import ThreadRings
from vmservice.board.slot import Plugged
from vmservice.devices.limited_warnings import LimitedWarnings
from vmservice.devices.virtio import block
from vmservice.devices.virtio.block import SECTOR_BYTES, Block, BlockShape, BlockState
from vmservice.errors import HostError
from vmservice.host.disk_lane import Lane
from vmservice.host.storage import Image
from vmservice.host.worker_pool import Pool

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vmservice.board.slot import Slot
    from vmservice.config.sections.disk import DiskDevice
    from vmservice.plug.backend import Backend, Details, Host

POOL_THREADS = 4

# Requests of a virtqueue that are asynchronous at the same time; more are the pool's. The host has 65,536 (fs.aio-max-nr).
AIO_DEPTH = 128

# How long a pause waits for the host to have all on its disk: the image is complete for whoever copies it then. Sixteen disks
# of a host in trouble take less than systemd's watchdog allows.
FLUSH_TIMEOUT_SEC = 5.0

_VERBS = {block.IN: "read", block.OUT: "written", block.T_FLUSH: "flushed"}


class DiskPlug(Plugged):
    """`image` outlives it: the next machine has the same."""

    def __init__(self, section: DiskDevice, image: Image, slot: Slot) -> None:
        self._image = image
        self._slot = slot
        self._warn_of_error = LimitedWarnings(slot.warn)
        self._warning = _thread.allocate_lock()
        self._flushing = _thread.allocate_lock()  # held while a pause's flush is under way
        capacity = image.look_again() // SECTOR_BYTES
        self.device = Block(_shape(section, image), slot.state_of(BlockState) or BlockState(capacity))
        self._pool = Pool(f"io-{slot.label}", POOL_THREADS, slot.bug)
        self._lanes: list[Lane] = []
        self._server = server = BlockServer(self.device, self._lanes, self._on_error)
        self._rings = ThreadRings(slot.label, section.queues, server.serve, slot.bug, finish=server.finish)
        try:
            self._lanes += [self._lane(kick) for kick in self._rings.kicks]
            super().__init__(slot, self.device, self._rings)
        except BaseException:
            self._rings.close()
            raise

    def _lane(self, kick: int) -> Lane:
        if not self._image.is_direct:
            return Lane(self._image, self._pool, kick)
        from vmservice.host.direct_lane import DirectLane

        return DirectLane(self._image, self._pool, kick, AIO_DEPTH, self._slot.warn)

    def start(self) -> None:
        super().start()
        self._follow_size()

    def pause(self) -> None:
        super().pause()
        self._flush()

    def stats(self) -> dict[str, float]:
        return self._server.stats()

    def reconfigure(self, section: DiskDevice) -> None:
        """A reload: the image may be larger than before."""
        self._follow_size()

    def close(self) -> None:
        super().close()
        self._pool.end(FLUSH_TIMEOUT_SEC)
        for lane in self._lanes:
            lane.close()
        self._rings.close()

    def _follow_size(self) -> None:
        """The guest learns of room that has come; what has gone it finds out by errors."""
        try:
            capacity = self._image.look_again() // SECTOR_BYTES
        except OSError as error:
            self._slot.warn(f"disk {self.label}: the size of {self._image.path} cannot be had: {error.strerror}")
            return
        with self.lock:
            known = self.device.state.capacity
            if capacity > known:
                self.device.resize(capacity)
        if capacity < known:
            self._slot.warn(
                f"disk {self.label}: {self._image.path} is smaller than the guest knows; what is gone reads as errors"
            )

    def _flush(self) -> None:
        """As far as the host does it in time: nothing that the guest was promised depends on it."""
        image = self._image
        if not image.is_dirty or not self._flushing.acquire(blocking=False):
            return
        done = _thread.allocate_lock()
        done.acquire()

        def flush() -> None:
            try:
                image.is_dirty = False
                image.flush()
            except OSError as error:
                image.is_dirty = True
                self._on_error(block.T_FLUSH, error.errno or errno.EIO)
            finally:
                self._flushing.release()
                done.release()

        self._pool.put(flush)
        if not done.acquire(timeout=FLUSH_TIMEOUT_SEC):
            self._slot.warn(f"disk {self.label}: paused, and the host is still writing to {image.path}")

    def _on_error(self, kind: int, number: int) -> None:
        """From any thread. The guest is told of each, the journal of one a minute."""
        if number == errno.EOPNOTSUPP:
            return
        verb = _VERBS.get(kind, "discarded or zeroed")
        what = f"disk {self.label}: {self._image.path} cannot be {verb}"
        with self._warning:
            self._warn_of_error(f"{what}, which the guest is told: {os.strerror(number)}")


def _shape(section: DiskDevice, image: Image) -> BlockShape:
    shape = image.shape
    return BlockShape(
        block_bytes=shape.block_bytes,
        physical_bytes=shape.physical_bytes,
        minimum_io_bytes=shape.minimum_io_bytes,
        optimal_io_bytes=shape.optimal_io_bytes,
        discard_bytes=shape.discard_bytes,
        readonly=section.readonly,
        discards=section.discard and image.can_discard(),
        queues=section.queues,
        serial=section.serial.encode(),
    )


def open(section: DiskDevice, host: Host) -> Image:
    what = f"disk {section.name}"
    if section.ephemeral:
        from vmservice.host.overlay import Overlay

        image: Image = Overlay(section.path, what)
    else:
        image = Image(section.path, what, writable=not section.readonly, is_direct=section.is_direct)
    try:
        if image.looks_like_qcow2():
            host.log.warning(f'{what}: {section.path} begins as a qcow2 image does, and format = "raw" is what the guest gets')
    except OSError as error:
        image.close()
        raise HostError.from_os(f"{what}: cannot read {section.path}", error) from error
    return image


def build(section: DiskDevice, backend: Image, slot: Slot) -> Plugged:
    return DiskPlug(section, backend, slot)


def details(section: DiskDevice, backend: Backend) -> dict[str, Details]:
    return {
        section.name: {
            "path": section.path,
            "format": "raw",
            "readonly": section.readonly,
            "ephemeral": section.ephemeral,
            "serial": section.serial,
        }
    }
