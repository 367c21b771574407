"""What gives a container something like the network of a host: an address, and a default route."""

from __future__ import annotations

# passt takes its guest's addresses from such an interface; of Debian 12 it does not start without one.
UPLINK = """\
ip link show uplink > /dev/null 2>&1 || {
    ip link add uplink type veth peer name port && ip address add 192.0.2.1/24 dev uplink &&
    ip link set uplink up && ip link set port up && ip route add default via 192.0.2.2
}
"""
