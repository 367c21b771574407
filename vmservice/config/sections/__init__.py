"""The sections that stand for devices: a module each, found by its name, so a new kind is a new file.

A module has

    KEYS        all keys that the section may have
    ARRAY       whether it is written [[name]] and may be there several times
    LIVE        the keys that a reload may change while the VM runs
    PLUG        the module that makes the device: open() and build(), see plug/
    ORDER       where its devices come in the order in which a machine's are plugged in
    read()      from a TableReader and the other sections, all devices that the file asks for: frozen objects, right by
                themselves, with `kind`, `name` and `plug`
    check_files(), check_live()    where there is something to check; see load.py and reload.py
    FOLLOWS_HOST    where it is true, each reload is told to these devices, also when nothing in the file has changed
"""
