"""needrestart, which restarts services after an upgrade of what they use, leaves VMs and their back ends alone."""

from __future__ import annotations

import subprocess
from pathlib import Path

FILE = Path(__file__).parents[2] / "packaging/needrestart/vmservice.conf"

# As needrestart reads its conf.d, and as it asks about each service.
_ASK = """
our %nrconf = (override_rc => {});
eval do { local (@ARGV, $/) = shift; <> };
die $@ if $@;
for my $unit (@ARGV) {
    my @said = map { $nrconf{override_rc}->{$_} } grep { $unit =~ /$_/ } keys %{$nrconf{override_rc}};
    print @said ? "$said[0]\\n" : "-\\n";
}
"""


def test_vms_and_their_back_ends_are_not_chosen_for_a_restart() -> None:
    units = ["vm@web.service", "vm@web-1.example.service", "vm-disk@web:root.service", "vm-passt@web:network0.service"]
    units += ["vm-tap@web:lan.service", "ssh.service", "vmservice-manager.service", "my-vm@web.service"]
    done = subprocess.run(["perl", "-we", _ASK, str(FILE), *units], check=True, capture_output=True, text=True)
    said = dict(zip(units, done.stdout.split(), strict=True))
    assert said == {unit: "0" if unit.startswith("vm") and "@" in unit else "-" for unit in units}
    assert done.stderr == ""
