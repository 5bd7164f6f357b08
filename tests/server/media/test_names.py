"""Look-ups of host names keep to threads of their own, and one owner to half of them."""

import asyncio
import socket
import threading

import pytest

from covervlm.server.media.names import Names


@pytest.fixture
def slow(monkeypatch):
    """Lets look-ups of *.slow wait until the test ends; how many do."""
    waiting, over, counted = [], threading.Event(), threading.Condition()
    resolve = socket.getaddrinfo

    def getaddrinfo(host, *args, **kwargs):
        if str(host).endswith(".slow"):
            with counted:
                waiting.append(host)
                counted.notify_all()
            over.wait(60)
            raise socket.gaierror
        return resolve(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    def wait_for(number):
        with counted:
            assert counted.wait_for(lambda: len(waiting) >= number, 60)
        return waiting

    yield wait_for
    over.set()


async def test_sixteen_names_that_hang_leave_threads_to_another_owner(slow):
    names = Names(4)
    hanging = [asyncio.ensure_future(names(f"{i}.slow", 80, "attacker")) for i in range(16)]
    await asyncio.to_thread(slow, 2)
    assert "127.0.0.1" in await names("127.0.0.1", 80, "well-behaved")
    assert len(slow(2)) == 2
    # Who leaves does not make room: the threads are taken all the same.
    for call in hanging:
        call.cancel()
    again = asyncio.ensure_future(names("again.slow", 80, "attacker"))
    assert "127.0.0.1" in await names("127.0.0.1", 80, "well-behaved")
    assert len(slow(2)) == 2
    again.cancel()
    names.close()


async def test_a_name_that_does_not_exist_is_an_error_and_frees_its_thread():
    names = Names(2)
    for _ in range(3):
        with pytest.raises((OSError, UnicodeError)):
            await names("a" * 70 + ".invalid", 80, "me")
    assert "127.0.0.1" in await names("127.0.0.1", 80, "me")
    names.close()
