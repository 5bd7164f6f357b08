"""A client that goes away ends its request in the engine, at every stage; nobody else's."""

import asyncio
import json

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse

from covervlm.server import create_app
from covervlm.server.api.body import BodyRoute
from covervlm.server.core.generation import GenerationChunk
from covervlm.server.settings import Settings
from tests.server.api.scripted import Gate, ScriptedEngine, chat_body, prompt_report

SECONDS = 10


class Connection:
    """The ASGI side of one POST, whose client leaves when the test says so."""

    def __init__(self, app, body, path="/v1/chat/completions", *, more=False):
        content = json.dumps(body).encode()
        self.incoming = asyncio.Queue()
        self.incoming.put_nowait({"type": "http.request", "body": content, "more_body": more})
        self.sent = []
        self.got_body = asyncio.Event()
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(b"content-type", b"application/json"), (b"x-request-id", b"r1")],
        }
        self.task = asyncio.create_task(app(scope, self.incoming.get, self._send))

    async def _send(self, message):
        self.sent.append(message)
        if message["type"] == "http.response.body":
            self.got_body.set()

    def leave(self):
        self.incoming.put_nowait({"type": "http.disconnect"})

    async def ended(self):
        await asyncio.wait_for(self.task, SECONDS)


@pytest.fixture
def gate():
    return Gate()


async def leave_at(gate, engine, body, path="/v1/chat/completions"):
    """Send `body`, leave when the engine stands at the gate, and return what had been sent by the end."""
    app = create_app(Settings(), engine)
    connection = Connection(app, body, path)
    await asyncio.wait_for(gate.reached.wait(), SECONDS)
    assert engine.released == []
    connection.leave()
    await connection.ended()
    assert engine.released == ["r1"]
    return connection, app


def cancelled(app):
    """How many cancellations and 499s the app has counted."""
    registry = next(m.kwargs["metrics"] for m in app.user_middleware).registry
    labels = {"route": "/v1/chat/completions", "status": "499"}
    return (
        registry.get_sample_value("covervlm_requests_cancelled_total"),
        registry.get_sample_value("covervlm_http_requests_total", labels),
    )


@pytest.mark.parametrize("stream", [False, True])
async def test_leaving_before_the_first_token_cancels(gate, stream):
    engine = ScriptedEngine(lambda request: [gate])
    connection, app = await leave_at(gate, engine, chat_body("Hello", stream=stream))
    assert connection.sent == []
    assert cancelled(app) == (1, 1)


async def test_leaving_in_the_middle_of_a_whole_answer_cancels(gate):
    engine = ScriptedEngine(lambda request: [GenerationChunk(0, "a", 1, prompt=prompt_report(request)), gate])
    connection, app = await leave_at(gate, engine, chat_body("Hello"))
    assert connection.sent == []
    assert cancelled(app) == (1, 1)


async def test_leaving_in_the_middle_of_a_stream_cancels(gate):
    engine = ScriptedEngine(lambda request: [GenerationChunk(0, "a", 1, prompt=prompt_report(request)), gate])
    connection, app = await leave_at(gate, engine, chat_body("Hello", stream=True))
    assert connection.sent[0]["status"] == 200
    assert b'"content":"a"' in b"".join(m.get("body", b"") for m in connection.sent)
    assert b"[DONE]" not in b"".join(m.get("body", b"") for m in connection.sent)
    assert cancelled(app)[0] == 1


async def test_leaving_a_prune_cancels(gate):
    engine = ScriptedEngine(lambda request: [gate])
    connection, _ = await leave_at(gate, engine, chat_body("Hello"), "/v1/prune")
    assert connection.sent == []


async def test_the_work_of_a_route_ends_when_its_client_leaves():
    """Whatever the route: cancelling is a property of the class, and all that take a body are of it."""
    app, working, ended = FastAPI(), asyncio.Event(), asyncio.Event()
    app.router.route_class = BodyRoute

    @app.post("/work")
    async def work(body: dict[str, int]) -> None:
        working.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    connection = Connection(app, {"a": 1}, "/work")
    await asyncio.wait_for(working.wait(), SECONDS)
    assert not ended.is_set()
    connection.leave()
    with pytest.raises(ClientDisconnect):
        await connection.ended()
    assert ended.is_set()
    served = create_app(Settings(clip_model="demo"), ScriptedEngine()).routes
    taking = [route for route in served if isinstance(route, APIRoute) and route.methods & {"POST", "PUT", "PATCH"}]
    assert len(taking) > 8
    assert all(isinstance(route, BodyRoute) for route in taking)


async def test_a_client_too_slow_to_read_is_let_go_when_it_leaves():
    """The stream stands in `send`, as it does where the client's window is full."""
    engine = ScriptedEngine(
        lambda request: [GenerationChunk(0, "a", 1, prompt=prompt_report(request)), *[GenerationChunk(0, "b", 1)] * 100]
    )
    stuck = asyncio.Event()

    class Slow(Connection):
        async def _send(self, message):
            self.sent.append(message)
            if len(self.sent) == 3:
                stuck.set()
                await asyncio.Event().wait()

    connection = Slow(create_app(Settings(), engine), chat_body("Hello", stream=True))
    await asyncio.wait_for(stuck.wait(), SECONDS)
    assert engine.released == []
    connection.leave()
    await connection.ended()
    assert engine.released == ["r1"]


async def test_the_others_go_on_when_one_leaves():
    gates = {"leaves": Gate(), "stays": Gate()}
    engine = ScriptedEngine(
        lambda request: [
            GenerationChunk(0, "a", 1, prompt=prompt_report(request)),
            gates[request.messages[0].text],
            GenerationChunk(0, "b", 1, finish_reason="stop"),
        ]
    )
    app = create_app(Settings(), engine)
    leaves, stays = (Connection(app, chat_body(name, stream=True)) for name in ("leaves", "stays"))
    await asyncio.gather(*(asyncio.wait_for(gate.reached.wait(), SECONDS) for gate in gates.values()))
    leaves.leave()
    await leaves.ended()
    gates["stays"].opened.set()
    await stays.ended()
    assert stays.sent[-2]["body"] == b"data: [DONE]\n\n"


async def test_an_answer_that_has_begun_is_not_cut_off_for_a_body_that_nobody_waits_for():
    app, rest = create_app(Settings(receive_timeout=0.01), ScriptedEngine()), asyncio.Event()

    @app.post("/slow")
    async def slow() -> StreamingResponse:
        async def pieces():
            yield b"a"
            await rest.wait()
            yield b"b"

        return StreamingResponse(pieces())

    connection = Connection(app, {}, "/slow", more=True)
    await asyncio.wait([connection.task], timeout=0.2)  # the body's time is over
    assert not connection.task.done()
    rest.set()
    await connection.ended()
    assert b"".join(message.get("body", b"") for message in connection.sent) == b"ab"
