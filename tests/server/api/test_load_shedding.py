"""What requests in flight hold is counted, bounded, and given back."""

import asyncio
import base64
import contextlib
import io
import json
import threading

import pytest
from PIL import Image
from starlette.testclient import TestClient

from covervlm.server import create_app
from covervlm.server.core.caller import ANONYMOUS, Caller, Callers, InFlight
from covervlm.server.core.errors import EngineOverloaded, InvalidRequest
from covervlm.server.core.generation import GenerationChunk
from covervlm.server.core.tasks import all_or_none
from covervlm.server.media import images
from covervlm.server.media.decoding import ImageLimits
from covervlm.server.media.images import ImageLoader
from covervlm.server.settings import Settings
from tests.server.api.scripted import Gate, ScriptedEngine, chat_body, data_url, prompt_report

SECONDS = 20
PICTURE = data_url(Image.new("RGB", (100, 100), "red"))
PIXELS = 4 * 100 * 100


def test_bytes_are_held_until_their_request_ends():
    inflight = InFlight(100)
    callers = Callers(memory=inflight)
    with callers.request(ANONYMOUS) as first:
        first.hold(60)
        with callers.request(ANONYMOUS) as second:
            second.hold(40)
            with pytest.raises(EngineOverloaded, match="100 bytes"):
                second.hold(1)
            assert inflight.bytes == 100
        assert inflight.bytes == 60
        first.hold(40)
    assert inflight.bytes == 0


def test_a_key_leaves_memory_to_others_and_who_has_none_may_take_it_all():
    memory = InFlight(100)
    callers = Callers(memory=memory)
    with callers.request("greedy") as first, callers.request("greedy") as second:
        first.hold(40)
        second.hold(35)
        with pytest.raises(EngineOverloaded, match="share"):
            second.hold(1)
        with callers.request("other") as other:
            other.check_room(18)
            other.hold(18)
            with pytest.raises(EngineOverloaded, match="share"):
                other.hold(1)
        assert memory.bytes == 75
    assert (memory.bytes, memory.held_by) == (0, {})
    with callers.request(ANONYMOUS) as alone:
        alone.hold(100)


def test_a_request_that_fails_gives_back_too():
    inflight = InFlight(100)
    with contextlib.suppress(ZeroDivisionError), Callers(memory=inflight).request("a") as caller:
        caller.hold(60)
        raise ZeroDivisionError
    assert inflight.bytes == 0


def test_what_is_counted_after_its_request_has_ended_is_an_error_and_counts_nothing():
    inflight = InFlight(100)
    with Callers(memory=inflight).request("a") as caller:
        caller.hold(60)
    with pytest.raises(RuntimeError, match="has ended"):
        caller.hold(1)
    caller.release()
    assert inflight.bytes == 0


def test_what_is_held_for_a_time_is_given_back_once():
    inflight = InFlight(100)
    with Callers(memory=inflight).request("a") as caller:
        caller.hold(10)
        with caller.holding(60):
            assert inflight.bytes == 70
            with pytest.raises(EngineOverloaded), caller.holding(31):
                pass
        assert inflight.bytes == 10
        left = caller.holding(60)
        left.__enter__()
    assert inflight.bytes == 0
    left.__exit__(None, None, None)
    assert inflight.bytes == 0


async def test_a_request_that_is_refused_ends_when_all_its_images_have_let_go(monkeypatch):
    inflight, begun, opened, open_image = InFlight(10**9), threading.Event(), threading.Event(), images.open_image

    def slow(data, limits):
        begun.set()
        assert opened.wait(SECONDS)
        return open_image(data, limits)

    loader = ImageLoader(ImageLimits(10**6, 10**6), threads=2, max_pending=9)

    async def request():
        with Callers(memory=inflight).request("a") as caller:
            await all_or_none([loader.load(PICTURE, param="x", caller=caller), bad()])

    async def bad():
        await asyncio.to_thread(begun.wait, SECONDS)
        raise InvalidRequest("bad")

    monkeypatch.setattr(images, "open_image", slow)
    task = asyncio.create_task(request())
    assert await asyncio.to_thread(begun.wait, SECONDS)
    for _ in range(20):
        await asyncio.sleep(0)
    assert not task.done()
    assert inflight.bytes
    opened.set()
    with pytest.raises(InvalidRequest):
        await task
    assert (len(loader._turns), inflight.bytes) == (0, 0)
    await loader.close()


def size(body):
    return len(json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode())


def post(client, body):
    content = json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()
    return client.post("/v1/chat/completions", content=content, headers={"Content-Type": "application/json"})


def held(client):
    lines = client.get("/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith("covervlm_inflight_bytes ")).split()[1])


@pytest.mark.parametrize("room", [0, 1])
def test_body_and_decoded_pixels_are_counted_to_the_byte(room):
    body = chat_body("What?", PICTURE)
    engine = ScriptedEngine()
    settings = Settings(max_inflight_bytes=size(body) + 2 * len(PICTURE) + PIXELS - 1 + room)
    with TestClient(create_app(settings, engine)) as client:
        response = post(client, body)
        assert held(client) == 0
    if room:
        assert response.status_code == 200
    else:
        assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_overloaded")
        assert int(response.headers["retry-after"]) >= 1
    assert len(engine.requests) == room


def test_a_video_counts_with_all_its_frames():
    frame = io.BytesIO()
    Image.new("RGB", (100, 100)).save(frame, "JPEG")
    encoded = base64.b64encode(frame.getvalue()).decode()
    video = {"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{encoded},{encoded}"}}
    body = {"model": "demo", "messages": [{"role": "user", "content": [video]}]}
    for room, status in [(0, 503), (1, 200)]:
        reading, upright = 2 * len(video["video_url"]["url"]), PIXELS
        settings = Settings(max_inflight_bytes=size(body) + reading + 2 * PIXELS + upright - 1 + room)
        with TestClient(create_app(settings, ScriptedEngine())) as client:
            assert post(client, body).status_code == status


async def test_a_running_request_keeps_its_share_and_others_are_refused_before_they_are_read():
    gate = Gate()
    engine = ScriptedEngine(lambda request: [GenerationChunk(0, "a", 1, prompt=prompt_report(request)), gate])
    body = json.dumps(chat_body("What? " * 1000, PICTURE)).encode()
    left = 2 * len(PICTURE) + 10  # reading the picture takes some of it, for a time
    app = create_app(Settings(max_inflight_bytes=len(body) + PIXELS + left), engine)
    first = asyncio.create_task(send(app, [body]))
    async with asyncio.timeout(SECONDS):
        await gate.reached.wait()
        reads = []
        status, answer = await send(app, [body], declared=len(body), reads=reads)
        assert (status, json.loads(answer)["error"]["code"], reads) == (503, "engine_overloaded", [])
        # Without a declared length it shows as the pieces arrive.
        step = left * 2 // 3
        pieces = [body[i : i + step] for i in range(0, len(body), step)]
        status, answer = await send(app, pieces, reads=reads)
        assert (status, json.loads(answer)["error"]["code"], len(reads)) == (503, "engine_overloaded", 2)
        gate.opened.set()
        assert (await first)[0] == 200
        assert (await send(app, pieces))[0] == 200


async def send(app, pieces, declared=None, reads=None):
    """One chat completion, piece by piece: its status and body."""
    waiting = list(pieces)
    headers = [(b"content-type", b"application/json")]
    headers += [(b"content-length", str(declared).encode())] if declared else []
    sent = []

    async def receive():
        if not waiting:
            await asyncio.Event().wait()
        if reads is not None:
            reads.append(len(waiting))
        return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}

    async def collect(message):
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "path": "/v1/chat/completions",
        "raw_path": b"/v1/chat/completions",
        "query_string": b"",
        "headers": headers,
    }
    await app(scope, receive, collect)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent)


async def test_images_of_one_caller_wait_behind_each_other_and_not_in_front_of_others(monkeypatch):
    loader = ImageLoader(ImageLimits(10**6, 10**6), threads=1, max_pending=100)
    order, opened = [], threading.Event()

    def decode(data, limits):
        opened.wait(SECONDS)
        order.append(data)
        raise InvalidRequest("no image")

    async def load(owner, number):
        url = base64.b64encode(f"{owner} {number}".encode()).decode()
        with contextlib.suppress(InvalidRequest):
            await loader.load(url, param="x", caller=Caller(owner))

    monkeypatch.setattr(images, "open_image", decode)
    greedy = [asyncio.create_task(load("greedy", i)) for i in range(20)]
    while len(loader._turns) < 20:
        await asyncio.sleep(0)
    single = asyncio.create_task(load("single", 0))
    while len(loader._turns) < 21:
        await asyncio.sleep(0)
    opened.set()
    await asyncio.gather(*greedy, single)
    await loader.close()
    assert order.index(b"single 0") <= 2
    assert [data for data in order if data.startswith(b"greedy")] == [f"greedy {i}".encode() for i in range(20)]


def test_a_decoder_without_memory_is_the_servers_trouble_and_not_the_images(monkeypatch):
    def no_memory(image):
        raise MemoryError

    monkeypatch.setattr("covervlm.server.media.decoding._to_rgb", no_memory)
    with TestClient(create_app(Settings(), ScriptedEngine())) as client:
        response = client.post("/v1/chat/completions", json=chat_body("What?", PICTURE))
        assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_overloaded")
        monkeypatch.undo()
        assert client.post("/v1/chat/completions", json=chat_body("What?", PICTURE)).status_code == 200
