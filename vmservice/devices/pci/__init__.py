"""PCI: configuration space, functions and their BARs, MSI-X, and the bus that finds them (PCI Local Bus 3.0)."""
