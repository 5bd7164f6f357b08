"""Which names of the server a request may give."""

import httpx
import pytest

from covervlm.server import create_app
from covervlm.server.limits.hosts import Hosts
from covervlm.server.settings import Settings
from tests.server.api.live import live_server
from tests.server.api.scripted import ScriptedEngine

OWN = ["localhost", "localhost:8000", "LOCALHOST", "demo.localhost", "127.0.0.1", "127.0.0.1:8000", "127.9.9.9"]
OWN += ["[::1]", "[::1]:8000"]
OTHERS = ["evil.test", "evil.test:8000", "localhost.evil.test", "127.0.0.1.evil.test", "10.0.0.1", "[::2]:80", "", "["]


@pytest.mark.parametrize("arrived_at", ["127.0.0.1", "::1"])
def test_on_loopback_only_this_machines_own_names_are_allowed(arrived_at):
    hosts = Hosts((), local=True)
    assert all(hosts.allow(name, arrived_at) for name in OWN)
    assert not any(hosts.allow(name, arrived_at) for name in OTHERS)


def test_a_server_on_a_network_answers_to_any_name():
    hosts = Hosts((), local=False)
    assert all(hosts.allow(name, "127.0.0.1") for name in OTHERS)


def test_the_operators_names_are_the_only_ones():
    hosts = Hosts(("VLM.example.com", "[::1]"), local=True)
    assert hosts.allow("vlm.example.com:443", "127.0.0.1")
    assert hosts.allow("[::1]:443", "::1")
    assert not hosts.allow("localhost", "127.0.0.1")
    assert Hosts(("*",), local=True).allow("evil.test", "127.0.0.1")


def test_a_page_elsewhere_reaches_a_server_on_loopback_neither_by_name_nor_by_form():
    with live_server(create_app(Settings(log_level="warning"), ScriptedEngine())) as url:
        assert httpx.get(f"{url}/v1/models").status_code == 200
        refused = httpx.get(f"{url}/v1/models", headers={"Host": "evil.test"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "host_not_allowed")
        assert "--allowed-hosts" in refused.json()["error"]["message"]
        for kind in ("text/plain", "text/plain;charset=UTF-8", "multipart/form-data; boundary=x", ""):
            headers = {"Origin": "http://evil.test", "Content-Type": kind}
            refused = httpx.post(f"{url}/v1/embeddings/uploads", content=b"x", headers=headers)
            assert (refused.status_code, refused.json()["error"]["code"]) == (415, "unsupported_media_type")
        own = {"Origin": url, "Content-Type": "application/octet-stream"}
        assert httpx.post(f"{url}/v1/embeddings/uploads", content=b"x", headers=own).status_code == 400
