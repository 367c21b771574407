"""What a controller may ask of a VM: the one table of the verbs and properties of interface org.vmservice.VM1.

What is exported, what polkit is asked, what the commands of `vmservice` call, and what a mock has, all comes from here. The
XML in dbus/ and the polkit policy are written by hand; tests hold them equal to this.
"""

from __future__ import annotations


class Verb:
    """`member` of the interface, the `signature` of what it takes, the name of the method of `Vm` that does it.

    `command` of the command line calls it as it is, and `sentence` is what its help says. An empty command is a member that
    people reach by another name: `vmservice poweroff --force` is Shutdown, since a hard stop is never the plain word.
    """

    __slots__ = ("command", "member", "method", "sentence", "signature")

    def __init__(self, member: str, signature: str, method: str, command: str, sentence: str) -> None:
        self.member = member
        self.signature = signature
        self.method = method
        self.command = command
        self.sentence = sentence

    @property
    def action(self) -> str:
        """The polkit action that stands for the verb."""
        return f"org.vmservice.vm1.{self.method.replace('_', '-')}"


VERBS = (
    Verb("Boot", "", "boot", "boot", "start the guest of a VM in state created or shutdown, or resume a paused one"),
    Verb("Pause", "", "pause", "pause", "stop every vCPU and every device"),
    Verb("Resume", "", "resume", "resume", "let a paused VM run again"),
    Verb("Shutdown", "", "shutdown", "", "stop the guest at once, without asking it"),
    Verb("Resize", "y", "resize", "resize", "have the guest take vCPUs, or give them back"),
    Verb("PowerButton", "", "power_button", "power-button", "press the power button, and leave what follows to the guest"),
    Verb("Reboot", "", "reboot", "reset", "reset the VM at once, as by the reset button"),
)

BY_MEMBER = {verb.member: verb for verb in VERBS}

# Property → its type.
PROPERTIES = {
    "State": "s",
    "Name": "s",
    "VCPUs": "y",
    "MaxVCPUs": "y",
    "Memory": "t",
    "LastExit": "s",
    "GuestReady": "b",
    "Devices": "a(ssa{sv})",
    "Stats": "a{sd}",  # read when it is asked for, and no change of it is told
}
