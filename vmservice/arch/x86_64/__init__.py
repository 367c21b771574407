"""x86-64: addresses, registers, tables of the boot protocol."""
