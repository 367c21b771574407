"""ACPI tables and AML: pure bytes."""
