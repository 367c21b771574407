"""Debian's kernels, as files: the image in /boot and the modules a small initramfs needs."""

from __future__ import annotations

import lzma
from pathlib import Path


class KernelPackage:
    """One installed kernel package below `root`, an unpacked tree."""

    def __init__(self, root: Path) -> None:
        images = sorted((root / "boot").glob("vmlinuz-*"))
        if len(images) != 1:
            raise RuntimeError(f"{root}/boot: expected one kernel, found {len(images)}")
        self.image = images[0]
        self.release = self.image.name.removeprefix("vmlinuz-")
        self._modules = root / "lib/modules" / self.release
        if not self._modules.is_dir():
            self._modules = root / "usr/lib/modules" / self.release

    def modules(self, *names: str) -> list[tuple[str, bytes]]:
        """(file name, content) of each module and what it depends on, in the order to load them. A name that is no module is
        taken as built in."""
        paths = {_module_name(path): path for path in self._modules.rglob("*.ko*")}
        loaded: dict[str, bytes] = {}
        for name in names:
            self._collect(name, paths, loaded)
        return [(f"{name}.ko", data) for name, data in loaded.items()]

    def _collect(self, name: str, paths: dict[str, Path], loaded: dict[str, bytes]) -> None:
        if name in loaded or name not in paths:
            return
        data = paths[name].read_bytes()
        if paths[name].suffix == ".xz":
            data = lzma.decompress(data)
        for dependency in _dependencies(data):
            self._collect(dependency, paths, loaded)
        loaded[name] = data


def _module_name(path: Path) -> str:
    return path.name.partition(".")[0].replace("-", "_")


def _dependencies(module: bytes) -> list[str]:
    """The names in "depends=" of the module's .modinfo section: strings that end in a zero byte. depmod(8) has not run over a
    package that was only extracted, so modules.dep cannot be asked."""
    marker = b"\0depends="
    start = module.find(marker)
    if start < 0:
        return []
    text = module[start + len(marker) : module.index(b"\0", start + len(marker))]
    return [name.replace("-", "_") for name in text.decode().split(",") if name]
