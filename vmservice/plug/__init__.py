"""How each kind of device comes into a machine: a module a kind, which the kind's section of the configuration names.

A module has

    open(section, host) -> Backend                      once a process: what the host gives to the device
    build(section, backend, slot, state) -> Plugged     once a machine, so after each reset again: the device in its slot
"""
