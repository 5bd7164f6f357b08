"""Which addresses callers may make the server connect to, and how hosts may spell them."""

from ipaddress import ip_address

import pytest

from covervlm.server.media.addresses import AddressPolicy, is_public, literal_address

PUBLIC = ["8.8.8.8", "1.1.1.1", "172.15.255.255", "172.32.0.1", "100.63.255.255", "100.128.0.1", "223.255.255.255"]
PUBLIC += ["2606:4700::1111", "2001:4860:4860::8888", "::ffff:8.8.8.8", "64:ff9b::808:808"]
NOT_PUBLIC = {
    "this host": ["0.0.0.0", "0.1.2.3", "::"],
    "loopback": ["127.0.0.1", "127.255.255.254", "::1"],
    "private": ["10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "fc00::1", "fd12:3456::1"],
    "carrier-grade NAT": ["100.64.0.1", "100.127.255.255"],
    "inside clouds": ["168.63.129.16", "100.100.100.200", "192.0.0.192", "fd00:ec2::254"],
    "link-local": ["169.254.169.254", "fe80::1", "fe80::1%eth0"],
    "site-local": ["fec0::1"],
    "multicast": ["224.0.0.1", "239.255.255.250", "232.1.1.1", "ff02::1", "ff0e::1"],
    "reserved": ["240.0.0.1", "255.255.255.255", "192.0.0.8", "198.18.0.1", "198.19.255.255", "4000::1", "5f00::1"],
    "documentation": ["192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1", "3fff::1"],
    "IPv4-mapped": ["::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:a00:1"],
    "IPv4-compatible": ["::127.0.0.1", "::8.8.8.8"],
    "NAT64": ["64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::808:808"],
    "6to4 and Teredo": ["2002:7f00:1::1", "2002:808:808::1", "2001:0:4136:e378::1"],
    "discard": ["100::1"],
}


@pytest.mark.parametrize("text", PUBLIC)
def test_addresses_of_the_internet_are_public(text):
    assert is_public(ip_address(text))


@pytest.mark.parametrize("text", [text for texts in NOT_PUBLIC.values() for text in texts])
def test_every_other_address_is_not(text):
    assert not is_public(ip_address(text))


@pytest.mark.parametrize(
    "host",
    [
        "2130706433",
        "017700000001",
        "0x7f000001",
        "0x7F.1",
        "127.1",
        "127.0.1",
        "0177.0.0.1",
        "127.0.0.01",
        "1.2.3.4.5",
        "256.1.1.1",
        "0x7f.0x0.0x0.0x1",
        "127.0.0.0x1",
        "127.0.0.1.",
        "0x",
        "example.0x1",
        ":::1",
        "::1%",
    ],
)
def test_addresses_that_are_not_spelled_out_are_refused(host):
    with pytest.raises(ValueError, match="does not appear to be"):
        literal_address(host)


@pytest.mark.parametrize(
    "host", ["example.com", "1.example.com", "0x7f.com", "localhost", "cafe", "a1", "xn--bcher-kva"]
)
def test_names_are_no_addresses(host):
    assert literal_address(host) is None


@pytest.mark.parametrize(
    ("host", "address"), [("127.0.0.1", "127.0.0.1"), ("[::1]", "::1"), ("2001:DB8::1", "2001:db8::1")]
)
def test_addresses_are_read(host, address):
    assert str(literal_address(host)) == address


def test_an_allowed_network_opens_itself_and_nothing_beside_it():
    policy = AddressPolicy(networks=["10.1.0.0/16", "fd00:1::/32"])
    assert policy.allows_address(ip_address("10.1.2.3"))
    assert policy.allows_address(ip_address("fd00:1::5"))
    assert policy.allows_address(ip_address("8.8.8.8"))
    assert not policy.allows_address(ip_address("10.2.0.1"))
    assert not policy.allows_address(ip_address("127.0.0.1"))
    assert not policy.allows_address(ip_address("::ffff:10.2.0.1"))


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("img.example.com", True),
        ("IMG.Example.COM.", True),
        ("a.b.cdn.example.org", True),
        ("cdn.example.org", False),
        ("evilcdn.example.org", False),
        ("example.com", False),
        ("img.example.com.evil.net", False),
        ("127.0.0.1", False),
    ],
)
def test_an_allow_list_of_hosts_is_exact_unless_it_starts_with_a_dot(host, allowed):
    assert AddressPolicy(hosts=["img.example.com", ".cdn.example.org"]).allows_host(host) is allowed


def test_without_an_allow_list_any_host_may_be_named():
    assert AddressPolicy().allows_host("anything.test")
