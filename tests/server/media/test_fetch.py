"""Fetching over http(s): real connections within the loopback range, names from a stub of the resolver."""

# ruff: noqa: SIM117 (a server and what fetches from it read better one inside the other)
import asyncio
import re
import ssl
from pathlib import Path

import httpx
import pytest

from covervlm.server.core.errors import InvalidRequest
from covervlm.server.media.addresses import AddressPolicy
from covervlm.server.media.kinds import VIDEO
from tests.server.media.remote import OK, Names, fetching, redirect, refusal, serving

CERTIFICATES = Path(__file__).parents[1] / "certificates"


async def test_the_body_comes_from_the_address_of_the_name_with_the_names_host_header():
    names = Names(images_test=[["127.0.0.1"]])
    async with serving(OK) as (server, port), fetching(resolve=names) as fetch:
        assert await fetch(f"http://images.test:{port}/a.png?b=c#d", 1000) == b"image"
    [head] = server.heads
    assert head.startswith("GET /a.png?b=c HTTP/1.1\r\n")
    assert f"\r\nHost: images.test:{port}\r\n" in head
    assert names.asked == {"images.test": 1}


async def test_nothing_about_the_server_or_earlier_answers_is_sent(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    cookie = b"HTTP/1.1 200 OK\r\nSet-Cookie: a=b\r\nContent-Length: 5\r\n\r\nimage"
    async with serving(cookie) as (server, port), fetching() as fetch:
        for _ in range(2):
            assert await fetch(f"http://127.0.0.1:{port}/", 1000) == b"image"
    for head in server.heads:
        sent = {line.split(":")[0].lower() for line in head.splitlines()[1:] if line}
        assert sent == {"host", "accept", "accept-encoding", "connection", "user-agent"}


REFUSED_HOSTS = [
    "127.0.0.1",
    "127.1",
    "2130706433",
    "0x7f000001",
    "0x7f.1",
    "127.0.0.1.",
    "[::1]",
    "[::ffff:127.0.0.1]",
    "[::]",
    "0.0.0.0",
    "169.254.169.254",
    "[fe80::1]",
    "[64:ff9b::7f00:1]",
    "10.0.0.1",
    "localhost",
    "inside.test",
    "mapped.test",
    "mixed.test",
    "nat64.test",
    "nothing.test",
    "unknown.test",
    "garbage.test",
]


@pytest.mark.parametrize("host", REFUSED_HOSTS)
async def test_hosts_without_public_addresses_are_refused_in_the_same_words_and_never_connected_to(host):
    names = Names(
        localhost=[["127.0.0.1", "::1"]],
        inside_test=[["10.1.2.3"]],
        mapped_test=[["::ffff:127.0.0.1"]],
        mixed_test=[["8.8.8.8", "127.0.0.1"]],
        nat64_test=[["64:ff9b::7f00:1"]],
        nothing_test=[[]],
        garbage_test=[["not an address"]],
    )

    class NoConnection(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request):
            raise AssertionError(f"connected to {request.url}")

    async with fetching(AddressPolicy(), resolve=names, transport=NoConnection()) as fetch:
        error = await refusal(fetch, f"http://{host}:8000/a.png")
    assert str(error) == "The host in the image's URL has no public address; send the image as a data URL."
    assert error.code == "invalid_image_url"


async def test_a_name_that_resolves_differently_a_moment_later_changes_nothing():
    """DNS rebinding: the second answer would be inside. The connection goes to the first, which was checked."""
    names = Names(rebind_test=[["127.0.0.2"], ["127.0.0.1"]])
    policy = AddressPolicy(networks=["127.0.0.2/32"])
    async with serving(b"HTTP/1.1 200 OK\r\n\r\nINSIDE") as (inside, port):
        async with serving(OK, "127.0.0.2", port) as (outside, _), fetching(policy, resolve=names) as fetch:
            assert await fetch(f"http://rebind.test:{port}/", 1000) == b"image"
            assert names.asked == {"rebind.test": 1}
            await refusal(fetch, f"http://rebind.test:{port}/")
    assert (len(outside.heads), len(inside.heads)) == (1, 0)


async def test_redirects_are_followed_with_each_place_checked():
    names = Names(a_test=[["127.0.0.1"]], b_test=[["127.0.0.2"]], inside_test=[["127.0.0.3"]])
    policy = AddressPolicy(networks=["127.0.0.1/32", "127.0.0.2/32"])
    places = {}
    async with serving(lambda path: places[path]) as (first, port):
        places |= {
            "/relative": redirect("/image"),
            "/other": redirect(f"http://b.test:{port}/image", 307),
            "/inside": redirect(f"http://inside.test:{port}/image"),
            "/file": redirect("file:///etc/passwd"),
            "/secret": redirect(f"http://user:secret@b.test:{port}/image"),
            "/malformed": redirect("http://[:::]/"),
            "/unjoinable": redirect("http:////[80fe"),
            "/image": OK,
        }
        async with serving(OK, "127.0.0.2", port) as (second, _), serving(OK, "127.0.0.3", port) as (inside, _):
            async with fetching(policy, resolve=names) as fetch:
                assert await fetch(f"http://a.test:{port}/relative", 1000) == b"image"
                assert await fetch(f"http://a.test:{port}/other", 1000) == b"image"
                assert "no public address" in str(await refusal(fetch, f"http://a.test:{port}/inside"))
                assert "http and https" in str(await refusal(fetch, f"http://a.test:{port}/file"))
                assert "user name" in str(await refusal(fetch, f"http://a.test:{port}/secret"))
                assert "is malformed" in str(await refusal(fetch, f"http://a.test:{port}/malformed"))
                assert "is malformed" in str(await refusal(fetch, f"http://a.test:{port}/unjoinable"))
    assert f"Host: b.test:{port}" in second.heads[0]
    assert (len(first.heads), len(second.heads), len(inside.heads)) == (8, 1, 0)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(("hops", "followed"), [(0, True), (3, True), (4, False), (1000, False)])
async def test_redirects_are_counted(status, hops, followed):
    def answer(path):
        left = int(path[1:])
        return redirect(f"/{left - 1}", status) if left else OK

    async with serving(answer) as (server, port), fetching() as fetch:
        if followed:
            assert await fetch(f"http://127.0.0.1:{port}/{hops}", 1000) == b"image"
        else:
            assert "more than 3 times" in str(await refusal(fetch, f"http://127.0.0.1:{port}/{hops}"))
    assert len(server.heads) == min(hops, 3) + 1


async def test_hosts_outside_the_allow_list_are_not_even_looked_up():
    names = Names(img_test=[["127.0.0.1"]], evil_test=[["127.0.0.1"]])
    policy = AddressPolicy(networks=["127.0.0.0/8"], hosts=["img.test"])
    async with serving(lambda path: OK if path == "/" else redirect(f"http://evil.test{path}")) as (_, port):
        async with fetching(policy, resolve=names) as fetch:
            assert await fetch(f"http://IMG.test:{port}/", 1000) == b"image"
            assert "does not fetch images from this URL's host" in str(
                await refusal(fetch, f"http://evil.test:{port}/")
            )
            assert "does not fetch images from this URL's host" in str(
                await refusal(fetch, f"http://img.test:{port}/away")
            )
    assert names.asked["evil.test"] == 0


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://user:secret@127.0.0.1/a.png", "user name"),
        ("http://user@127.0.0.1/a.png", "user name"),
        ("http:///a.png", "names no host"),
        ("http://", "names no host"),
        ("http://exa mple.com/", "no public address|malformed|could not"),
        ("http://[::1/", "malformed"),
        ("http://127.0.0.1:99999/", "malformed"),
        ("http://0177.0.0.1/", "malformed"),
        ("http://\x00/", "malformed"),
        ("http://xn--/", "malformed"),
        ("http://[80fe::1%\ufffdeth0]/", "malformed"),
        ("http://xn--a.test/", "malformed|no public address"),
        ("http://" + "a" * 70_000 + "/", "malformed"),
        ("http://\ud800.test/", "malformed"),
        ("gopher://127.0.0.1/", "http and https URLs only; send this one as a data URL"),
    ],
)
async def test_urls_that_cannot_be_fetched_say_why(url, words):
    async with fetching(AddressPolicy(), resolve=Names()) as fetch:
        assert re.search(words, str(await refusal(fetch, url)))


async def test_the_next_address_is_tried_where_one_takes_no_connection():
    async with serving(OK) as (_, port):
        async with fetching(resolve=Names(two_test=[["127.0.0.2", "127.0.0.1"]])) as fetch:
            assert await fetch(f"http://two.test:{port}/", 1000) == b"image"
        async with fetching(resolve=Names(one_test=[["127.0.0.2"]])) as fetch:
            assert "could not be fetched" in str(await refusal(fetch, f"http://one.test:{port}/"))


@pytest.mark.parametrize("status", [204, 206, 304, 400, 401, 403, 404, 500, 503])
async def test_other_statuses_are_told(status):
    async with serving(f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n".encode()) as (_, port), fetching() as fetch:
        assert f"status {status}" in str(await refusal(fetch, f"http://127.0.0.1:{port}/"))


async def test_tls_is_verified_against_the_name_though_the_connection_goes_to_the_address():
    seen = []
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(CERTIFICATES / "images.test.pem", CERTIFICATES / "images.test.key")
    server_side.sni_callback = lambda connection, name, context: seen.append(name)
    trusted = ssl.create_default_context(cafile=CERTIFICATES / "images.test.pem")
    names = Names(images_test=[["127.0.0.1"]], other_test=[["127.0.0.1"]])
    async with serving(OK, tls=server_side) as (server, port):
        async with fetching(resolve=names, tls=trusted) as fetch:
            assert await fetch(f"https://images.test:{port}/", 1000) == b"image"
            await refusal(fetch, f"https://other.test:{port}/")
            await refusal(fetch, f"https://127.0.0.1:{port}/")
        async with fetching(resolve=names) as fetch:
            await refusal(fetch, f"https://images.test:{port}/")
    assert len(server.heads) == 1
    assert seen[:2] == ["images.test", "other.test"]


async def test_one_owner_waits_for_servers_that_say_nothing_while_others_fetch():
    begun, opened = 0, asyncio.Event()

    async def say_nothing(writer):
        nonlocal begun
        begun += 1
        await opened.wait()
        writer.write(OK)

    async with serving(lambda path: say_nothing if path == "/silent" else OK) as (_, port), fetching() as fetch:
        silent = [asyncio.ensure_future(fetch(f"http://127.0.0.1:{port}/silent", 1000)) for _ in range(100)]
        while begun < 32:
            await asyncio.sleep(0)
        others = [fetch(f"http://127.0.0.1:{port}/", 1000, owner="somebody else") for _ in range(40)]
        assert await asyncio.gather(*others) == [b"image"] * 40
        assert begun == 32
        opened.set()
        assert await asyncio.gather(*silent) == [b"image"] * 100


async def test_a_video_is_asked_for_and_refused_as_one():
    async with serving(OK) as (server, port), fetching() as fetch:
        assert await fetch(f"http://127.0.0.1:{port}/", 1000, kind=VIDEO) == b"image"
        assert "accept: video/*\r\n" in server.heads[0].lower()
        with pytest.raises(InvalidRequest, match="The video has more than 4 bytes") as refused:
            await fetch(f"http://127.0.0.1:{port}/", 4, kind=VIDEO)
    assert refused.value.code == "video_too_large"
