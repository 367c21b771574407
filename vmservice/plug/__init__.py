"""How each kind of device comes into a machine: a module a kind, which the kind's section of the configuration names.

A module has

    open(section, host) -> Backend                      once a process: what the host gives to the device
    build(section, backend, slot) -> Plugged            once a machine, so after each reset again: the device in its slot
                                                        (docs/design.md, "A new kind of device", has what both are given)
    memory_bytes(backend) -> int                        where the device brings memory of its own: how much that is now
    unit_needs(section, vm_name) -> (kind, lines)       where a unit of its own, vm-KIND@NAME:DEVICE, serves the device: what
                                                        its sandbox has to let through, as lines of a unit file
    details(section, backend) -> {name: {key: value}}   for kinds that `Devices` on the bus shows: values are str, int or bool
    IN_SIMULATION                                       where it is true, a simulated machine has it opened too
"""
