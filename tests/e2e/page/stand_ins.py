"""What the page's tests put in the server's place: a guard before it, and answers that wait."""

import asyncio
import json
from dataclasses import dataclass, field

from covervlm.server.core.generation import GenerationChunk, GenerationRequest
from tests.server.api.scripted import Gate, prompt_report, red_circle


class Guard:
    """Stands before the app, wants a key where it has one, and remembers what was asked for."""

    def __init__(self, app, key=None):
        self.app = app
        self.key = key
        self.paths: list[str] = []

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http":
            self.paths.append(scope["path"])
            keys = [value.decode() for name, value in scope["headers"] if name == b"authorization"]
            if self.key and scope["path"].startswith("/v1/") and keys != [f"Bearer {self.key}"]:
                error = {"message": "Incorrect API key provided.", "type": "invalid_request_error", "param": None}
                body = json.dumps({"error": error | {"code": "invalid_api_key"}}).encode()
                headers = [(b"content-type", b"application/json")]
                await send({"type": "http.response.start", "status": 401, "headers": headers})
                await send({"type": "http.response.body", "body": body})
                return
        await self.app(scope, receive, send)


@dataclass
class Held:
    """A script that answers "a red", then waits until the test lets it go on."""

    gate: Gate | None = None
    loop: asyncio.AbstractEventLoop | None = None
    requests: list[GenerationRequest] = field(default_factory=list)
    then: Exception | None = None

    def __call__(self, request):
        if request.sampling.temperature != 0:  # the preview
            return red_circle(request)
        self.requests.append(request)
        self.loop, self.gate = asyncio.get_running_loop(), Gate()
        end = self.then or GenerationChunk(0, " circle", 1, (), "stop")
        return [GenerationChunk(0, " a red", 2, prompt=prompt_report(request)), self.gate, end]

    def go_on(self):
        self.loop.call_soon_threadsafe(self.gate.opened.set)
