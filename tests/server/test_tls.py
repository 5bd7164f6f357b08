"""The TLS options, by real handshakes with the server as `covervlm serve` runs it."""

import contextlib
import socket
import ssl
from pathlib import Path

import httpx
import pytest

from covervlm.server import create_app
from covervlm.server.settings import Settings
from tests.server.api.clip_app import wait_for
from tests.server.api.live import running
from tests.server.api.scripted import ScriptedEngine, chat_body

CERTIFICATES = Path(__file__).parent / "certificates"
CERTIFICATE = CERTIFICATES / "images.test.pem"
NAME = {"sni_hostname": "images.test"}
PLAIN = {"ssl_certfile": CERTIFICATE, "ssl_keyfile": CERTIFICATES / "images.test.key"}
ENCRYPTED = {
    **PLAIN,
    "ssl_keyfile": CERTIFICATES / "images.test.encrypted.key",
    "ssl_keyfile_password": "correct-horse",
}


def serving(**options):
    settings = Settings(log_level="warning", receive_timeout=2, **options)
    return running(create_app(settings, ScriptedEngine()), settings)


def trusting():
    return ssl.create_default_context(cafile=CERTIFICATE)


@pytest.mark.parametrize("options", [PLAIN, ENCRYPTED], ids=["key", "encrypted key"])
def test_a_client_that_trusts_the_certificate_is_answered(options):
    with serving(**options) as server, httpx.Client(verify=trusting()) as client:
        url = "https://{}:{}/v1/chat/completions".format(*server.address)
        answer = client.post(url, json=chat_body("x"), extensions=NAME)
    assert answer.json()["choices"][0]["message"]["content"] == "a red circle"


def test_a_client_that_does_not_trust_it_is_not():
    with serving(**PLAIN) as server:
        url = "https://{}:{}/health".format(*server.address)
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(url)


def test_old_protocols_are_refused():
    context = trusting()
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with serving(**PLAIN) as server:
        connection = socket.create_connection(server.address)
        with connection, pytest.raises(ssl.SSLError):
            context.wrap_socket(connection, server_hostname="images.test")


def test_what_is_no_handshake_is_not_answered_and_the_server_goes_on():
    with serving(**PLAIN) as server:
        with socket.create_connection(server.address) as connection:
            connection.settimeout(30)
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"HTTP/1.1" not in connection.recv(4096)
        with httpx.Client(verify=trusting()) as client:
            assert client.get("https://{}:{}/health".format(*server.address), extensions=NAME).status_code == 200
        wait_for(lambda: not server.server_state.connections)


def test_a_client_that_shakes_hands_and_says_nothing_is_let_go():
    with serving(**PLAIN) as server, socket.create_connection(server.address) as connection:
        connection.settimeout(30)
        with trusting().wrap_socket(connection, server_hostname="images.test") as secured:
            assert secured.version() in ("TLSv1.2", "TLSv1.3")
            with contextlib.suppress(ssl.SSLError, ConnectionError):
                assert secured.recv(1) == b""
        wait_for(lambda: not server.server_state.connections)
