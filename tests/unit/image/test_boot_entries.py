"""Which entry a boot loader would start, by the boot loader specification's files and by grub.cfg."""

from __future__ import annotations

import pytest

from vmservice.image.boot_entry import BootEntry, read_entries, read_grub_environment, version_key
from vmservice.image.grub import read_menu


class Folder:
    """Files by path."""

    kind = "folder"

    def __init__(self, files: dict[str, str]) -> None:
        self._files = files

    def text(self, path: str) -> str | None:
        return self._files.get(path)

    def size(self, path: str) -> int | None:
        return len(self._files[path]) if path in self._files else None

    def names(self, path: str) -> list[str]:
        return sorted(name.removeprefix(f"{path}/") for name in self._files if name.startswith(f"{path}/"))

    def copy(self, path: str, output: int) -> None:
        raise NotImplementedError


def entries(files: dict[str, str], environment: dict[str, str] | None = None, loader: str = "") -> list[BootEntry]:
    there = {f"/loader/entries/{name}.conf": text for name, text in files.items()}
    there["/loader/loader.conf"] = loader
    return read_entries(Folder(there), "/", lambda: environment or {})


def test_the_keys_of_an_entry() -> None:
    text = "# made by hand\ntitle Fedora Linux 40\nversion\t6.8\nlinux /a/linux\n"
    text += "initrd /a/one\ninitrd /a/two\noptions ro a=b\noptions c\n"
    assert entries({"fedora": text}) == [BootEntry("Fedora Linux 40", "/a/linux", "/a/one", "ro a=b c")]
    assert entries({"efi": "title Windows\nefi /x.efi\n"}) == []


def test_without_a_sort_key_the_last_by_name_is_the_default() -> None:
    found = entries({"id-6.9": "linux /9\n", "id-6.10": "linux /10\n", "id-6.10~rc1": "linux /rc\n"})
    assert [one.kernel for one in found] == ["/10", "/rc", "/9"]


def test_a_sort_key_comes_first_and_then_the_version() -> None:
    files = {
        "z": "linux /z\n",
        "a": "linux /old\nsort-key debian\nversion 6.9\n",
        "b": "linux /new\nsort-key debian\nversion 6.10\n",
        "c": "linux /other\nsort-key windows\nversion 11\n",
    }
    found = entries(files)
    assert [one.kernel for one in found] == ["/new", "/old", "/other", "/z"]


def test_what_is_set_is_the_default() -> None:
    files = {"arch": "linux /arch\n", "lts": "linux /lts\n", "zen+3-1": "linux /zen\n"}
    assert entries(files)[0].kernel == "/zen"
    assert entries(files, loader="timeout 3\ndefault ar*\n")[0].kernel == "/arch"
    assert entries(files, loader="default lts.conf\n")[0].kernel == "/lts"
    assert entries(files, {"saved_entry": "lts"})[0].kernel == "/lts"
    assert entries(files, loader="default nothing\n")[0].kernel == "/zen"


def test_options_with_the_variables_of_grub() -> None:
    environment = read_grub_environment("# GRUB Environment Block\nkernelopts=root=UUID=1 ro $more\nmore=quiet\n####")
    found = entries({"fedora": "linux /l\noptions $kernelopts ${unknown} rhgb\n"}, environment)
    assert found[0].options == "root=UUID=1 ro quiet rhgb"


@pytest.mark.parametrize(
    ("older", "newer"), [("6.9", "6.10"), ("6.1~rc1", "6.1"), ("6.1-2", "6.1-10"), ("6.1", "6.1.1"), ("", "1")]
)
def test_versions(older: str, newer: str) -> None:
    assert version_key(older) < version_key(newer)


DEBIAN = r"""
### BEGIN /etc/grub.d/00_header ###
if [ -s $prefix/grubenv ]; then
  set have_grubenv=true
  load_env
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set next_entry=
   save_env next_entry
   set boot_once=true
else
   set default="0"
fi
function load_video {
  if [ x$feature_all_video_module = xy ]; then insmod all_video; fi
}
menuentry 'Debian GNU/Linux' --class debian --class os $menuentry_id_option 'gnulinux-simple-0815' {
	load_video
	insmod gzio
	if [ x$grub_platform = xxen ]; then insmod xzio; insmod lzopio; fi
	search --no-floppy --fs-uuid --set=root 0815
	echo	'Loading Linux 6.12 ...' # a word
	linux	/boot/vmlinuz-6.12 root=UUID=0815 ro  console=ttyS0,115200 $vt_handoff
	echo	'Loading initial ramdisk ...'
	initrd	/boot/initrd.img-6.12
}
submenu 'Advanced options for Debian GNU/Linux' $menuentry_id_option 'gnulinux-advanced-0815' {
	menuentry 'Debian, with Linux 6.12' --class debian $menuentry_id_option 'gnulinux-6.12-advanced-0815' {
		linux	/boot/vmlinuz-6.12 root=UUID=0815 ro
	}
	menuentry 'Debian, with Linux 6.11' --class debian --id=old {
		linux	($root)/boot/vmlinuz-6.11 root=UUID=0815 "foo=a b" it\'s
		initrd	/boot/early.img /boot/initrd.img-6.11
	}
}
menuentry 'UEFI Firmware Settings' { fwsetup }
"""


def test_the_grub_cfg_of_a_debian() -> None:
    first, *others = read_menu(DEBIAN, {})
    assert first == BootEntry(
        "Debian GNU/Linux", "/boot/vmlinuz-6.12", "/boot/initrd.img-6.12", "root=UUID=0815 ro console=ttyS0,115200"
    )
    assert [one.title for one in others] == ["Debian, with Linux 6.12", "Debian, with Linux 6.11"]
    assert others[1].kernel == "/boot/vmlinuz-6.11"
    assert (others[1].initrd, others[1].options) == ("/boot/early.img", "root=UUID=0815 foo=a b it's")


@pytest.mark.parametrize(
    "default",
    [
        "1>1",
        "Advanced options for Debian GNU/Linux>Debian, with Linux 6.11",
        "gnulinux-advanced-0815>old",
        "gnulinux-advanced-0815>1",
    ],
)
def test_an_entry_of_a_menu_may_be_the_default(default: str) -> None:
    assert read_menu(DEBIAN.replace('default="0"', f'default="{default}"'), {})[0].kernel == "/boot/vmlinuz-6.11"


def test_the_default_may_be_saved_elsewhere() -> None:
    text = DEBIAN.replace('default="0"', 'default="${saved_entry}"')
    assert read_menu(text, {"saved_entry": "1>1"})[0].kernel == "/boot/vmlinuz-6.11"
    assert read_menu(text, {})[0].title == "Debian GNU/Linux"


UBUNTU = """
set default=0
menuentry 'Ubuntu' {
  if [ "${initrdfail}" = 1 ]; then
    linux /vmlinuz-6.8 root=PARTUUID=1 ro
    initrd /initrd.img-6.8
  else
    linux /vmlinuz-6.8 root=PARTUUID=1 ro panic=-1
  fi
  initrdfail
}
"""


def test_of_two_branches_the_first_is_taken() -> None:
    assert read_menu(UBUNTU, {}) == [BootEntry("Ubuntu", "/vmlinuz-6.8", "/initrd.img-6.8", "root=PARTUUID=1 ro")]


def test_braces_of_variables_are_none_of_the_menus() -> None:
    text = "menuentry x {\n if [ ${a} = y ]; then true; fi\n linux ${root}/boot/k${v} a=${b}c\n}\nset v=1\n"
    assert read_menu(text, {"b": "B"}) == [BootEntry("x", "/boot/k1", "", "a=Bc")]


def test_variables_that_would_be_without_end_are_cut() -> None:
    text = "menuentry x {\n linux /k $a\n}\n" + "".join(
        f"set {one}='{f'${other} ' * 1000}'\n" for one, other in ("ab", "bc", "ca")
    )
    assert len(read_menu(text, {})[0].options) < 1 << 20


@pytest.mark.parametrize("text", ["", "blscfg\n", "menuentry 'x' {\n}\n", "}}}", "menuentry {", "'unclosed", "set default"])
def test_what_starts_no_linux_is_no_entry(text: str) -> None:
    assert read_menu(text, {}) == []
