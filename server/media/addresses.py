"""Which network addresses the server may connect to for its callers: those of the public internet, and no others."""

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

Address = IPv4Address | IPv6Address

# IANA's special-purpose registries, spelled out: what Python's `is_global` knows of them depends on its version.
_NOT_PUBLIC_V4 = tuple(
    ip_network(network)
    for network in (
        "0.0.0.0/8",  # this host
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carrier-grade NAT, Alibaba's metadata
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # Azure's host agent, the one service of a cloud's inside at a public address
        "169.254.0.0/16",  # link-local, cloud metadata
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments, Oracle's metadata
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # AMT
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
)
_PUBLIC_V6 = ip_network("2000::/3")
_NOT_PUBLIC_V6 = tuple(
    ip_network(network)
    for network in (
        "2001::/23",  # protocol assignments, Teredo
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4, which carries any IPv4 address
        "2620:4f:8000::/48",  # AS112
        "3fff::/20",  # documentation
    )
)
_NAT64 = ip_network("64:ff9b::/96")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.IGNORECASE)


def is_public(address: Address) -> bool:
    """Whether an address is on the public internet; one that carries an IPv4 address is what that is."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_V4)
    if address.ipv4_mapped is not None:
        return is_public(address.ipv4_mapped)
    if address in _NAT64:
        return is_public(IPv4Address(int(address) & 0xFFFFFFFF))
    return address in _PUBLIC_V6 and not any(address in network for network in _NOT_PUBLIC_V6)


def literal_address(host: str) -> Address | None:
    """The address that a URL's host spells, None for a name.

    Raises ValueError for spellings that resolvers read as addresses and people do not: 2130706433, 0x7f.1, 0177.0.0.1.
    """
    host = host.strip("[]")
    labels = host.rstrip(".").split(".")
    if ":" in host or _NUMBER.fullmatch(labels[-1]):
        return ip_address(host)
    return None


class AddressPolicy:
    """What an operator lets callers reach.

    networks: non-public networks that may be reached nonetheless, e.g. 10.1.0.0/16. hosts: if any, the only hosts
    that may be named: exact names, or .example.com for every name below example.com.
    """

    def __init__(self, networks: Sequence[str] = (), hosts: Sequence[str] = ()) -> None:
        self._networks = [ip_network(network) for network in networks]
        self._hosts = [host.lower().rstrip(".") for host in hosts]

    def allows_host(self, host: str) -> bool:
        """Whether a URL may name this host, whatever its addresses."""
        host = host.lower().rstrip(".")
        return not self._hosts or any(
            host.endswith(allowed) if allowed.startswith(".") else host == allowed for allowed in self._hosts
        )

    def allows_address(self, address: Address) -> bool:
        """Whether a connection may go to this address."""
        return is_public(address) or any(address in network for network in self._networks)
