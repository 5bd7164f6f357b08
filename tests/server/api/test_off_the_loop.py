"""The data folder is used in threads alone: while the disk is slow, the event loop answers others."""

import asyncio
import hashlib
import io

import numpy as np
import pytest

from covervlm.server.api.routes.streams import ObserveRequest
from covervlm.server.store.database import Database
from tests.server.api.clip_app import SHAPES, clip_client, error, finished, urls

DISK = ("__init__", "close", "transaction", "row", "rows", "write_blob", "read_blob", "forget_blob", "truncate_log")


@pytest.fixture
def on_the_loop(monkeypatch):
    """Names of the database's methods that were called in a thread whose event loop was running."""
    seen: list[str] = []

    def watched(name):
        plain = getattr(Database, name)

        def call(*args, **kwargs):
            try:
                asyncio.get_running_loop()
            except RuntimeError:
                pass
            else:
                seen.append(name)
            return plain(*args, **kwargs)

        return call

    for name in DISK:
        monkeypatch.setattr(Database, name, watched(name))
    return seen


def npy(rows: int) -> bytes:
    file = io.BytesIO()
    np.save(file, np.random.default_rng(rows).normal(size=(rows, 64)).astype(np.float32))
    return file.getvalue()


def test_no_route_asks_the_disk_on_the_event_loop(tmp_path, on_the_loop):
    """Every operation of the API that keeps something is called once."""
    called = set()
    with clip_client(tmp_path) as client:

        def call(method: str, path: str, /, *, names: dict[str, str] | None = None, **kwargs):
            called.add((method.lower(), path))
            answer = client.request(method, path.format(**names or {}), **kwargs)
            assert answer.is_success, (method, path, answer.text)
            return answer

        fits, files = "/v1/classifiers", "/v1/classifiers/{name}/file"
        sessions, jobs = "/v1/streams", "/v1/jobs"
        upload = call("POST", "/v1/embeddings/uploads", content=npy(9)).json()["id"]
        body = {"name": "mine", "classes": SHAPES, "uploads": [upload], "parameters": {"iterations": 3}}
        job = call("POST", fits, json=body).json()["id"]
        call("DELETE", "/v1/embeddings/uploads/{upload}", names={"upload": upload})
        finished(client, job)
        called.add(("get", "/v1/jobs/{job}/events"))
        call("GET", f"{jobs}/{{job}}", names={"job": job})
        call("GET", jobs)
        call("GET", fits)
        call("GET", f"{fits}/{{name}}", names={"name": "mine"})
        file = call("GET", files, names={"name": "mine"}).content
        call("PUT", files, names={"name": "copy"}, content=file)
        call("DELETE", f"{fits}/{{name}}", names={"name": "copy"})
        call("POST", "/v1/classify", json={"images": urls(1), "classifier": "mine"})
        call("POST", f"{fits}/{{name}}/explain", names={"name": "mine"}, json={"image": urls(1)[0], "words": ["red"]})
        body = {"name": "space", "method": "kda", "images": urls(2), "parameters": {"epochs": 1}}
        finished(client, call("POST", "/v1/projections", json=body).json()["id"])
        call("GET", "/v1/projections")
        call("GET", "/v1/projections/{name}", names={"name": "space"})
        for way in ("", "/demo-clip/space"):
            assert client.get(f"/v1/models{way}").is_success
        assert client.post("/v1/embeddings", json={"model": "demo-clip/space", "input": "x"}).is_success
        file = call("GET", "/v1/projections/{name}/file", names={"name": "space"}).content
        call("PUT", "/v1/projections/{name}/file", names={"name": "copy"}, content=file)
        call("DELETE", "/v1/projections/{name}", names={"name": "space"})
        session = call("POST", sessions, json={"classes": SHAPES, "horizon": 5}).json()["id"]
        named = {"names": {"stream": session}}
        call("POST", f"{sessions}/{{stream}}/observe", **named, json={"images": urls(1)})
        call("GET", sessions)
        call("GET", f"{sessions}/{{stream}}", **named)
        snapshot = call("GET", f"{sessions}/{{stream}}/snapshot", **named).content
        call("PUT", f"{sessions}/{{stream}}/snapshot", **named, content=snapshot)
        call("DELETE", f"{sessions}/{{stream}}", **named)
        body = {"images": urls(2), "aspect": "shape", "words": SHAPES, "method": "clip_kmeans"}
        job = call("POST", "/v1/clusterings", json=body).json()["id"]
        finished(client, job)
        call("GET", f"{jobs}/{{job}}/points", names={"job": job})
        call("DELETE", f"{jobs}/{{job}}", names={"job": job}, params={"forget": True})
        call("GET", "/metrics")
        documented = {
            (method, path)
            for path, operations in client.app.openapi()["paths"].items()
            for method in operations
            if path.startswith(
                ("/v1/classify", "/v1/classifiers", "/v1/streams", "/v1/jobs", "/v1/clusterings", "/v1/projections")
            )
        }
        assert documented <= called
    assert on_the_loop == []


def test_jobs_come_in_pages_in_openais_style(tmp_path):
    with clip_client(tmp_path) as client:
        body = {"classes": SHAPES, "images": urls(1), "parameters": {"iterations": 2}}
        jobs = []
        for number in range(5):
            jobs.append(client.post("/v1/classifiers", json=body | {"name": f"c{number}"}).json()["id"])
            finished(client, jobs[-1])

        def page(**params) -> tuple[list[str], bool]:
            answer = client.get("/v1/jobs", params=params).json()
            ids = [job["id"] for job in answer["data"]]
            assert all(job["result"] is None for job in answer["data"])
            ends = (ids[0], ids[-1]) if ids else (None, None)
            assert (answer["object"], answer["first_id"], answer["last_id"]) == ("list", *ends)
            return ids, answer["has_more"]

        assert page() == (jobs, False)
        assert page(limit=2) == (jobs[:2], True)
        assert page(limit=2, after=jobs[1]) == (jobs[2:4], True)
        assert page(limit=2, after=jobs[3]) == (jobs[4:], False)
        assert page(limit=3, order="desc") == (jobs[:1:-1], True)
        assert page(after=jobs[2], order="desc") == (jobs[1::-1], False)
        assert page(after="job_unknown") == ([], False)
        for wrong in ({"limit": 0}, {"limit": 1001}, {"order": "random"}):
            assert error(client.get("/v1/jobs", params=wrong), 400)["param"] == next(iter(wrong))


def test_a_body_is_told_from_others_as_by_its_whole_json_only_where_it_has_a_key(tmp_path, monkeypatch):
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA", "detail": "low"}}
    for images in (["a"], ["é\n", part, "b"], [part]):
        body = ObserveRequest.model_validate({"images": images, "top": 7})
        assert body.digest() == hashlib.sha256(body.model_dump_json().encode()).hexdigest()
    hashed = []
    plain = ObserveRequest.digest
    monkeypatch.setattr(ObserveRequest, "digest", lambda self: hashed.append(len(self.images)) or plain(self))
    with clip_client(tmp_path) as client:
        session = client.post("/v1/streams", json={"classes": SHAPES, "horizon": 5}).json()["id"]
        path = f"/v1/streams/{session}/observe"
        assert client.post(path, json={"images": urls(2)}).json()["observed"] == 2
        assert hashed == []
        assert client.post(path, json={"images": urls(1)}, headers={"Idempotency-Key": "k"}).json()["observed"] == 3
        assert hashed == [1]
