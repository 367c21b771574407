"""The commands that ask VMs over the bus, as any other program could; and a mock VM for the tests of such programs."""
