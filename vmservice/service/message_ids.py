"""The MESSAGE_ID of each message that a program may look for in the journal; `units/vmservice.catalog` explains each to people.

An id is made once (`journalctl --new-id128`) and never changes its meaning.
"""

from __future__ import annotations

VM_RUNNING = "e4f1990919664ffcbd323a426e3a14d0"
VM_PAUSED = "f1f1965d6ae5470a86118303f44de044"
VM_RESUMED = "0fcda709009c4a8f9ab8cb2095a770cd"
VM_SHUTDOWN = "87b50476cdc2463097451a6833b2e0d1"
GUEST_RESET = "84910617826341e8874909de6f9b9ead"
GUEST_ERROR = "5d246540d635468bbae5b1b96031d717"
GUEST_PANIC = "0f092c577740471c8d355f8c13044141"
GUEST_WATCHDOG = "4605d8409c784b7dab9ae4f09b06a6b0"
FORCED_STOP = "1372a5cfe7e542b2b32d56b2021aa579"
BUS_NAME_ACQUIRED = "4c47cc4fce784cd388803eac896738bc"
BUS_NAME_LOST = "01b8577e30bc4dca8d72740437010417"
VM_DUMP = "8800a5d0192c449498f65bbd30580112"
