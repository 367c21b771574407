"""A kernel or firmware image, an initramfs and a command line into guest memory."""
