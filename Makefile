# make demo       the main job, shown in a nested host: a VM started, paused, resumed and stopped as a service
# make check      the linters and the fast tests, in a few minutes and without containers or a nested host
# make test       every level of the tests, and the linters
# make test-long  the same with the tests that are marked "long", most of which are variants of others
# make bench      start-up, memory, exits, disks and networks beside QEMU
# make deb        dist/vmservice_VERSION_all.deb
# make lab        builds what demo, test and bench keep in the cache ($VMSERVICE_CACHE, or ~/.cache/vmservice)
#
# Made for Debian 12 and 13; what is missing is installed with apt-get, so run it as root.

PYTHON := /usr/bin/python3
FAST_LEVELS := style unit control kvm
LEVELS := $(FAST_LEVELS) system lab

LAB_PACKAGES := debian-archive-keyring e2fsprogs lz4 mmdebstrap util-linux xz-utils zstd
# qemu-storage-daemon, which Debian 12 has elsewhere.
DISK_PACKAGES := qemu-utils $(shell . /etc/os-release && [ "$$VERSION_ID" != 12 ] || echo qemu-system-common)
CHECK_PACKAGES := $(DISK_PACKAGES) acpica-tools binutils dbus dmidecode e2fsprogs gcc iproute2 libc6-dev libxml2-utils lintian lz4 man-db \
                  mount python3-dbusmock python3-systemd python3-venv systemd xz-utils zstd
TEST_PACKAGES := $(LAB_PACKAGES) $(CHECK_PACKAGES) systemd-container

.PHONY: demo check test test-long bench deb lab

demo: as-root
	@packaging/need $(LAB_PACKAGES)
	@$(PYTHON) tests/lab/lab.py demo

check:
	@packaging/need $(CHECK_PACKAGES)
	@$(PYTHON) tests/support/run_levels.py $(FAST_LEVELS) -- -q -m "not long" $(PYTEST_OPTIONS)

test: as-root
	@packaging/need $(TEST_PACKAGES)
	@$(PYTHON) tests/support/run_levels.py $(LEVELS) -- -m "not long" $(PYTEST_OPTIONS)

test-long: as-root
	@packaging/need $(TEST_PACKAGES)
	@$(PYTHON) tests/support/run_levels.py $(LEVELS) -- $(PYTEST_OPTIONS)

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
