"""The root trees of hosts that have Cockpit, and a browser to look at it with: for the test of the page alone, which the others
need not wait for."""

from __future__ import annotations

from pathlib import Path

from lab.root_tree import PACKAGES, debian_tree

# Cockpit as an administrator installs it, without the pages that need more; sudo is its way to administrative access.
COCKPIT_PACKAGES = ("cockpit-bridge", "cockpit-system", "cockpit-ws", "sudo", "chromium-headless-shell")


def cockpit_tree(release: str) -> Path:
    """The folder of the tree, built first if need be (a minute, and the network). Nobody writes into it."""
    return debian_tree(f"cockpit-{release}", release, (*PACKAGES, *COCKPIT_PACKAGES))
