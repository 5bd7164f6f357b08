"""What `covervlm serve` does to its process."""

import asyncio
import gc
import socket
import time

import pytest

from covervlm.server.serving import address, bind, open_to_others, spare_what_is_loaded
from covervlm.server.settings import Settings


async def test_answers_on_a_connection_that_is_kept_do_not_wait_for_an_acknowledgement():
    accepted = asyncio.get_running_loop().create_future()

    def connected(reader, writer):
        accepted.set_result(writer)

    async with await asyncio.start_server(connected, sock=bind(Settings(port=0))) as server:
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
        served = (await accepted).get_extra_info("socket")
        assert served.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        writer.close()


def test_full_collections_do_not_walk_what_was_loaded():
    loaded = [[i] for i in range(1_000_000)]

    def collection():
        begun = time.perf_counter()
        gc.collect()
        return time.perf_counter() - begun

    try:
        before = collection()
        spare_what_is_loaded()
        assert len(gc.get_objects()) < len(loaded)
        assert collection() < before / 2
    finally:
        gc.unfreeze()


def test_a_server_that_others_reach_without_a_key_is_remarked_on():
    assert "--api-key" in (open_to_others(Settings(host="0.0.0.0")) or "")
    assert open_to_others(Settings(host="0.0.0.0", api_key=["k"])) is None
    for host in ("127.0.0.1", "127.3.2.1", "::1", "localhost"):
        assert open_to_others(Settings(host=host)) is None


@pytest.mark.parametrize(
    ("bound", "url", "everywhere"),
    [
        (("0.0.0.0", 8000), "http://127.0.0.1:8000", True),
        (("::", 8000, 0, 0), "http://[::1]:8000", True),
        (("127.0.0.1", 8000), "http://127.0.0.1:8000", False),
        (("fe80::1%eth0", 8000, 0, 2), "http://[fe80::1%eth0]:8000", False),
    ],
)
def test_the_address_that_is_told_can_be_opened(bound, url, everywhere):
    assert address(bound, "http") == (url, everywhere)
