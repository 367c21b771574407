# make demo    the main job, shown in a nested host: a VM started, paused, resumed and stopped as a service
# make test    every test and linter there is
# make bench   start-up, memory and exits beside QEMU
# make deb     dist/vmservice_VERSION_all.deb
# make lab     builds what demo, test and bench keep in the cache ($VMSERVICE_CACHE, or ~/.cache/vmservice)
#
# Made for Debian 12 and 13; what is missing is installed with apt-get, so run it as root.

PYTHON := /usr/bin/python3
LEVELS := style unit control kvm system lab

LAB_PACKAGES := debian-archive-keyring e2fsprogs lz4 mmdebstrap util-linux xz-utils zstd
TEST_PACKAGES := $(LAB_PACKAGES) acpica-tools binutils dbus gcc libc6-dev libxml2-utils lintian man-db python3-dbusmock python3-venv systemd systemd-container

.PHONY: demo test bench deb lab

demo: as-root
	@packaging/need $(LAB_PACKAGES)
	@$(PYTHON) tests/lab/lab.py demo

test: as-root
	@packaging/need $(TEST_PACKAGES)
	@$(PYTHON) tests/support/environment.py -m pytest -p tests.support.skips $(addprefix tests/,$(LEVELS)) $(PYTEST_OPTIONS)

bench: as-root
	@packaging/need $(TEST_PACKAGES)
	@$(PYTHON) tests/support/environment.py tests/bench/bench.py

deb:
	@packaging/build-deb

lab: as-root
	@packaging/need $(LAB_PACKAGES)
	@$(PYTHON) tests/lab/lab.py build

.PHONY: as-root
as-root:
	@if [ "$$(id -u)" -ne 0 ]; then echo "make: run this as root: it boots containers and a nested host" >&2; exit 77; fi
