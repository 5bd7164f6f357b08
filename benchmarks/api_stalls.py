"""How long the API keeps the event loop from answering others, beside a data folder as full as quotas allow.

    python benchmarks/api_stalls.py                 1,000 jobs of 1,000 images, 99 classifiers of 10,000 classes

Server and client share one event loop. A task on it asks to be woken every millisecond; the longest it had to wait
while a request was answered is the stall. So the client's own reading of the answer counts as well.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path

import httpx
import torch
from torch.nn.functional import normalize

from covervlm.server import create_app
from covervlm.server.clip.classifier_file import ClassifierFile
from covervlm.server.clip.encoder.encoder import ClipEncoder
from covervlm.server.clip.methods.contracts import Head
from covervlm.server.core.caller import ANONYMOUS
from covervlm.server.demo import clip_path
from covervlm.server.engines.registry import build_engine
from covervlm.server.serving import spare_what_is_loaded
from covervlm.server.settings import Settings
from covervlm.server.store import Store
from covervlm.server.store.database import Database

TICK = 0.001


def classifier(encoder: ClipEncoder, classes: int) -> ClassifierFile:
    names = [f"a class with the number {i}" for i in range(classes)]
    proxies = normalize(torch.randn(encoder.dimensions, classes), dim=0)
    return ClassifierFile(names, Head(proxies, 0.01), encoder.fingerprint)


def fill(folder: Path, file: ClassifierFile, jobs: int, images: int, classifiers: int) -> None:
    """Jobs that cluster `images` images each, finished, and classifiers."""
    store = Store(Database(folder))
    plane = [[round(float(x), 5) for x in row] for row in torch.randn(images, 2)]
    result = {"labels": list(range(images)), "projection": plane, "method": "multi_map"}
    for _ in range(jobs):
        job = store.add_job(ANONYMOUS, "clustering", "multi_map")
        store.finish_job(job.id, "succeeded", result=result)
    data = file.pack()
    for number in range(classifiers):
        store.add(ANONYMOUS, "classifier", file.description(), data, name=f"c{number}", method="inmap")
    store.close()


async def stall(request: httpx.Request, client: httpx.AsyncClient) -> tuple[float, float, httpx.Response]:
    """Seconds until the answer, and the longest wait of the task that wants to be woken every millisecond."""
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        while True:
            asked = time.perf_counter()
            await asyncio.sleep(TICK)
            longest = max(longest, time.perf_counter() - asked - TICK)

    ticking = asyncio.create_task(tick())
    await asyncio.sleep(10 * TICK)
    start = time.perf_counter()
    response = await client.send(request)
    seconds = time.perf_counter() - start
    await asyncio.sleep(0)
    ticking.cancel()
    return seconds, longest, response


async def measure(folder: Path, file: ClassifierFile, options: argparse.Namespace) -> None:
    settings = Settings(data_dir=folder, threads=1)
    app = create_app(settings, build_engine(settings))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server", timeout=600) as client,
    ):
        spare_what_is_loaded()
        names = [f"class {i}" for i in range(options.classes)]
        session = await client.post("/v1/streams", json={"classes": ["red", "blue"], "horizon": 9})
        observe = f"/v1/streams/{session.json()['id']}/observe"
        large = {"images": ["data:image/png;base64," + "A" * 1_000_000] * options.megabytes}  # refused once decoded
        put = "/v1/classifiers/new/file"
        rows: list[tuple[str, list[tuple[str, str, dict]]]] = [
            ("GET /v1/jobs", [("GET", "/v1/jobs", {})]),
            ("GET /v1/jobs?limit=1000", [("GET", "/v1/jobs?limit=1000", {})]),
            ("PUT a classifier", [("PUT", put, {"content": file.pack()}), ("DELETE", put.removesuffix("/file"), {})]),
            ("GET all classifiers", [("GET", "/v1/classifiers", {})]),
            ("POST 2,048 texts to embed", [("POST", "/v1/embeddings", {"json": {"input": names[:2048]}})]),
            ("POST images without a key", [("POST", observe, {"json": large})]),
            ("POST images with a key", [("POST", observe, {"json": large, "headers": {"Idempotency-Key": "k"}})]),
            ("GET /metrics", [("GET", "/metrics", {})]),
        ]
        for what, requests in rows:
            seconds, stalls = [], []
            for _ in range(options.rounds):
                for number, (method, path, content) in enumerate(requests):
                    took, longest, response = await stall(client.build_request(method, path, **content), client)
                    if number == 0:
                        seconds.append(took)
                        stalls.append(longest)
            print(
                f"{what:28} {response.status_code}  median {1000 * statistics.median(seconds):7.1f} ms"
                f"  longest stall: median {1000 * statistics.median(stalls):6.1f}, worst {1000 * max(stalls):6.1f} ms"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--images", type=int, default=1000, help="of each job")
    parser.add_argument("--classifiers", type=int, default=99)
    parser.add_argument("--classes", type=int, default=10_000, help="of each classifier")
    parser.add_argument("--megabytes", type=int, default=40, help="of images that are observed")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    file = classifier(ClipEncoder(str(clip_path()), device="cpu"), options.classes)
    with tempfile.TemporaryDirectory() as folder:
        fill(Path(folder), file, options.jobs, options.images, options.classifiers)
        asyncio.run(measure(Path(folder), file, options))


if __name__ == "__main__":
    main()
