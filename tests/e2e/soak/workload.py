"""The soak's requests: a seeded mix of everything that clients do to a server, each with the statuses it may get."""

import asyncio
import contextlib
import json
import random
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable

import httpx
from demo_model.scenes import make_scene
from PIL import Image

from tests.server.api.scripted import chat_body, data_url

KEYS = ("soak-one", "soak-two", "soak-three")
CLASSES = ["circle", "square", "star", "triangle"]
METHODS = ("mmtok", "vision_coverage", "text_coverage", "divprune", "cls_attention", "cdpruner", "random", "uniform")
SIZES = ((336, 336), (96, 64), (64, 200), (500, 400), (24, 24))

Outcome = tuple[str, int]


class Workload:
    """Makes request number i, the same every time, and sends it."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self.urls = [
            data_url(make_scene(70_000_000 + i).image.resize(SIZES[i % len(SIZES)]), "JPEG") for i in range(12)
        ]
        self.outcomes: Counter[Outcome] = Counter()
        self._seconds: list[float] = []
        kinds: list[tuple[int, Callable[[random.Random], Awaitable[int]], set[int]]] = [
            (30, self.whole, {200}),
            (20, self.streamed, {200}),
            (8, self.text, {200}),
            (8, self.left_early, {0, 200}),
            (6, self.left_midway, {0, 200}),
            (5, self.pruned, {200}),
            (4, self.late, {504, 200}),
            (9, self.wrong, {400, 404, 413}),
            (4, self.embedded, {200}),
            (3, self.classified, {200}),
            (1, self.session, {200}),
            (2, self.looked, {200, 401, 404}),
        ]
        self._kinds = [(send, allowed) for weight, send, allowed in kinds for _ in range(weight)]

    async def send(self, number: int) -> None:
        """Raises AssertionError for a status that this kind of request must not get."""
        rng = random.Random(number)
        kind, allowed = rng.choice(self._kinds)
        began = time.perf_counter()
        status = await kind(rng)
        self._seconds.append(time.perf_counter() - began)
        assert status in allowed, (number, kind.__name__, status)
        self.outcomes[kind.__name__, status] += 1

    @property
    def slow(self) -> float:
        """The 95th percentile of all requests' times, in seconds."""
        return statistics.quantiles(self._seconds, n=20)[-1]

    # Answers.

    def _chat(self, rng: random.Random, **fields: object) -> dict[str, object]:
        budget = rng.choice(
            [
                {"keep_tokens": rng.choice([1, 16, 64])},
                {"keep_tokens": 16},
                {"keep_ratio": 0.05},
                {"coverage": 0.6},
                {},
                {},
            ]
        )
        if budget and "coverage" not in budget:
            budget["method"] = rng.choice(METHODS)
        # Only pruned ones fit into the demo model's context together.
        images = [rng.choice(self.urls) for _ in range(rng.choice([1, 2, 3]) if "keep_tokens" in budget else 1)]
        if rng.random() < 0.05:
            images[0] = data_url(Image.effect_noise((64, 64), rng.uniform(10, 90)))
        body = chat_body("What color is the star?", *images, max_tokens=rng.choice([1, 2, 4]), **fields)
        body["model"] = rng.choice(["demo", "demo:16", "demo:64"])
        if budget or rng.random() < 0.5:
            body["vision_pruning"] = budget | {"return_indices": rng.random() < 0.2}
        if rng.random() < 0.2:
            body |= {"n": 2, "temperature": 1.0, "seed": rng.randrange(99)}
        if rng.random() < 0.2:
            body |= {"logprobs": True, "top_logprobs": 5}
        return body

    def _key(self, rng: random.Random) -> dict[str, str]:
        return {"Authorization": f"Bearer {rng.choice(KEYS)}"}

    async def _post(self, rng: random.Random, path: str, body: object, **headers: str) -> httpx.Response:
        return await self._client.post(path, json=body, headers=self._key(rng) | headers)

    async def whole(self, rng: random.Random) -> int:
        return (await self._post(rng, "/v1/chat/completions", self._chat(rng))).status_code

    async def text(self, rng: random.Random) -> int:
        body = chat_body("Describe " + "the image " * rng.randrange(1, 20), max_tokens=3)
        return (await self._post(rng, "/v1/chat/completions", body)).status_code

    async def pruned(self, rng: random.Random) -> int:
        return (await self._post(rng, "/v1/prune", self._chat(rng))).status_code

    async def streamed(self, rng: random.Random) -> int:
        body = self._chat(rng, stream=True, stream_options={"include_usage": True})
        async with self._client.stream("POST", "/v1/chat/completions", json=body, headers=self._key(rng)) as response:
            lines = [line async for line in response.aiter_lines() if line]
        assert response.status_code != 200 or lines[-1] == "data: [DONE]", lines[-1]
        return response.status_code

    # Clients that go away.

    async def left_early(self, rng: random.Random) -> int:
        """At any moment before the answer; the moment is the test's input, not something it waits for."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(rng.uniform(0, 0.5)):
                return await self.whole(rng)
        return 0

    async def left_midway(self, rng: random.Random) -> int:
        """After the first event of a long answer."""
        body = chat_body("Describe the image.", rng.choice(self.urls), stream=True, max_tokens=300, ignore_eos=True)
        body["vision_pruning"] = {"keep_tokens": 16}
        async with self._client.stream("POST", "/v1/chat/completions", json=body, headers=self._key(rng)) as response:
            async for _ in response.aiter_lines():
                break
        return 0

    # Errors.

    async def late(self, rng: random.Random) -> int:
        wish = {"X-Request-Timeout": rng.choice(["0.001", "0.01", "0.05"])}
        body = chat_body("Describe the image.", rng.choice(self.urls), max_tokens=200, ignore_eos=True)
        return (await self._post(rng, "/v1/chat/completions", body, **wish)).status_code

    async def wrong(self, rng: random.Random) -> int:
        body = self._chat(rng)
        match rng.randrange(7):
            case 0:
                body["vision_pruning"] = {"keep_tokens": -1}
            case 1:
                body["model"] = "other"
            case 2:
                body |= {"max_tokens": 10**6, "n": 1}
            case 3:
                body = chat_body("What?", "data:image/png;base64,AAAA")
            case 4:
                body = chat_body("What?", self.urls[0][:-200])
            case 5:
                body = chat_body("What?", *self.urls[:12])
            case 6:
                content = json.dumps(body)[: rng.randrange(1, 400)]
                headers = self._key(rng) | {"Content-Type": "application/json"}
                return (await self._client.post("/v1/chat/completions", content=content, headers=headers)).status_code
        return (await self._post(rng, "/v1/chat/completions", body)).status_code

    # The rest of the API.

    async def embedded(self, rng: random.Random) -> int:
        image = {"type": "image_url", "image_url": {"url": rng.choice(self.urls)}}
        return (await self._post(rng, "/v1/embeddings", {"input": [image, "a red star"]})).status_code

    async def classified(self, rng: random.Random) -> int:
        body = {"images": rng.sample(self.urls, 2), "classes": CLASSES}
        return (await self._post(rng, "/v1/classify", body)).status_code

    async def session(self, rng: random.Random) -> int:
        key = self._key(rng)
        body = {"classes": CLASSES, "horizon": 10}
        opened = await self._client.post("/v1/streams", json=body, headers=key)
        path = f"/v1/streams/{opened.json()['id']}"
        seen = {"images": [rng.choice(self.urls)]}
        observed = await self._client.post(f"{path}/observe", json=seen, headers=key | {"Idempotency-Key": "k"})
        await self._client.delete(path, headers=key)
        return observed.status_code

    async def looked(self, rng: random.Random) -> int:
        path = rng.choice(["/v1/models", "/ready", "/metrics", "/", f"/nowhere/{rng.random()}", "/openapi.json"])
        headers = self._key(rng) if rng.random() < 0.8 else {"Authorization": f"Bearer {rng.random()}"}
        return (await self._client.get(path, headers=headers)).status_code
