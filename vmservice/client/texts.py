"""What `--help` of each command says beyond what the command does: when it returns, and the exit statuses that matter."""

from __future__ import annotations

SEVERAL = (
    "Several VMs are worked on side by side: one that fails keeps no other from being done, each error names its VM, and the"
    " exit status is that of the first NAME that failed."
)

_NOT_RUNNING = "69 the VM does not run, or there is no bus"
_VERB = f"0 done; 1 the VM refused, and said why; {_NOT_RUNNING}; 75 no answer in time; 77 not permitted"
_SYSTEMCTL = "that of systemctl"

# Command → (when it returns, its exit statuses).
TEXTS = {
    "run": (
        "It returns when the guest has powered itself off, or the VM has been stopped.",
        "0 powered off, or stopped as asked; 69 no KVM, or the VM runs already; 71 an operation of the host failed; 77 not"
        ' permitted; 78 the configuration is wrong; 133 the guest asked for a reset and on_reset = "exit"; 134 it panicked, or'
        ' left its watchdog unfed; what the guest said, with ready = "guest"',
    ),
    "check-config": (
        "Kernel and initramfs are loaded for a trial, and no VM is started. It returns when all has been read.",
        "0 no problem found; 78 something is wrong",
    ),
    "check-host": (
        "A guest of a few bytes runs on /dev/kvm for it. It returns within seconds.",
        "0 a VM can run here; 69 something that every VM needs is missing",
    ),
    "list": (
        "It returns when each has answered, or has not within 2 seconds.",
        "0 done, also where no VM runs; 69 there is no bus",
    ),
    "top": (
        "It returns when you type q or Ctrl-C; with --once, with --json and without a terminal, when it has measured once.",
        "0 done; 69 there is no bus; 130 interrupted before anything was measured",
    ),
    "status": (
        "It returns at once. Of a VM that does not run it shows what is known.",
        f"0 done; {_NOT_RUNNING}; 75 the VM does not answer",
    ),
    "boot": ("It returns when the guest runs.", _VERB),
    "pause": ("It returns when every vCPU and device of the VM has stopped.", _VERB),
    "resume": ("It returns when the guest runs.", _VERB),
    "resize": (
        "It returns when the guest has that many vCPUs, or fails after 20 seconds.",
        f"0 done; 1 the VM refused, and said why; {_NOT_RUNNING}; 75 the guest did not do it in time; 77 not permitted",
    ),
    "power-button": ("It returns when the button is pressed; shutdown is the same.", _VERB),
    "reset": ("The guest is not asked, and may lose data. It returns when it starts anew.", _VERB),
    "shutdown": (
        "The power button is pressed, and it returns at once; poweroff also waits until the guest is off.",
        _VERB,
    ),
    "poweroff": (
        "The power button is pressed, and it returns when the guest is off. With --force it returns at once, and the guest may"
        " lose data.",
        f"0 off; 1 the VM refused, and said why; {_NOT_RUNNING}; 75 not off in time; 77 not permitted",
    ),
    "reboot": (
        "It returns when the guest runs again: in its process if that has stayed, else in its unit, which systemctl starts.",
        f"0 done; 1 the VM refused, and said why; {_NOT_RUNNING}; 71 systemctl failed; 75 not off in time; 77 not permitted",
    ),
    "start": ("The line that is run is printed. It returns when the unit has started.", _SYSTEMCTL),
    "stop": (
        "The line that is run is printed. It returns when the unit has stopped; a guest that is not off within shutdown_timeout"
        " is stopped by force.",
        _SYSTEMCTL,
    ),
    "restart": ("The line that is run is printed. It returns when the unit has started again.", _SYSTEMCTL),
    "ssh": (
        "The way is vsock, or a port that is forwarded. It returns when ssh does.",
        "69 the VM does not run, or no way to its guest is known; that of ssh",
    ),
    "logs": (
        "It returns when all is printed; with --follow it goes on until Ctrl-C.",
        "0 done; 71 the journal cannot be read; 130 interrupted",
    ),
    "console": (
        "It returns when you leave it, by Ctrl-] three times within a second, or when the VM goes.",
        "0 left; 69 the VM does not run, or has no such console; 71 somebody else is at it; 77 not permitted",
    ),
    "wait": (
        "It returns when the VM is in the state, or was for a moment; without --timeout that may be never. Of several VMs each"
        " must have been.",
        "0 all have been in the state; 69 there is no bus; 75 not in time; 130 interrupted",
    ),
    "create": (
        "The image is copied, its kernel is taken out of it, and a configuration is written. It returns when the VM can be"
        " started, and says how. Interrupted, it leaves nothing.",
        "0 made; 69 a tool that it needs is missing; 71 an operation of the host failed; 77 not permitted; 78 the image is of"
        " no use, or the VM is there already",
    ),
    "delete": (
        "It asks first, of several VMs for each, and refuses while the VM runs. It returns when all is gone.",
        "0 removed; 1 the answer was no; 69 the VM runs; 71 an operation of the host failed; 77 not permitted; 78 create did"
        " not make it",
    ),
    "update-kernel": (
        "The VM must not run. It returns when the new kernel is in place, for the next start.",
        "0 done; 69 the VM runs; 71 an operation of the host failed; 77 not permitted; 78 there is no kernel, or create did not"
        " make the VM",
    ),
    "edit": (
        "It returns when the editor has ended and what it wrote is checked and in place.",
        "0 done; 71 the editor, or an operation of the host, failed; 77 not permitted; 78 the configuration is as it was",
    ),
}
