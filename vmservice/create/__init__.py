"""From an image to a VM, and its end: `vmservice create`, `update-kernel`, `edit` and `delete`."""
