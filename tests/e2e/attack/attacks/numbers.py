"""Numbers at the ends of what is allowed: no answer holds null or NaN where a number should be, nor a 500."""

import itertools
import json
from typing import Any

import torch
from safetensors.torch import load, save

from tests.e2e.attack import images
from tests.e2e.attack.attacker import Answer, Attacker
from tests.e2e.attack.attacks.jobs import finished
from tests.e2e.attack.bodies import CLASSES, chat
from tests.e2e.attack.registry import REFUSED, attack
from tests.e2e.attack.schema import Schema, conforming

SERVED = REFUSED | {200, 201, 202, 404, 409}
SESSIONS = "/v1/streams"
SESSION = SESSIONS + "/{stream}"
CLASSIFIER = "/v1/classifiers/{name}"
LEAST = 5e-324


async def observed(attacker: Attacker, schema: Schema, session: str) -> None:
    """Three rounds of pictures, so that what was learned is used; and a look at the session."""
    body = {"images": [images.small_jpeg()] * 4 + [images.tiny_png()], "top": 2}
    for _ in range(3):
        await conforming(attacker, schema, "POST", SESSION + "/observe", body, stream=session)
    await conforming(attacker, schema, "GET", SESSION, stream=session)


async def opened(attacker: Attacker, schema: Schema, horizon: int = 5, **parameters: float) -> str | None:
    body = {"classes": CLASSES, "horizon": horizon, "parameters": parameters}
    answer = await conforming(attacker, schema, "POST", SESSIONS, body)
    return str(answer.json()["id"]) if answer.status == 201 else None


@attack("sessions whose parameters are as large and as small as they may be", answers=SERVED, once=True, limit=60)
async def extreme_sessions(attacker: Attacker) -> None:
    schema = await Schema.of(attacker)
    ends: dict[str, tuple[float, ...]] = {
        "tau_text": (LEAST, 1e-30, 1e-4, 10),
        "tau_vision": (LEAST, 1e-30, 1e-4, 10),
        "beta": (0, 1),
        "learning_rate": (LEAST, 1000),
        "learning_rate_rho": (0, 10_000),
    }
    wishes: list[dict[str, float]] = [{name: value} for name, values in ends.items() for value in values]
    wishes += [
        dict(zip(ends, values, strict=True)) for values in itertools.product(*(v[:1] + v[-1:] for v in ends.values()))
    ]
    for wish in wishes[:40]:
        session = await opened(attacker, schema, horizon=1 if len(wish) > 1 else 10**12, **wish)
        if session is not None:
            await observed(attacker, schema, session)
            await attacker.request("DELETE", f"{SESSIONS}/{session}", counted=False)


@attack("classifiers learned with the smallest temperatures and largest steps", answers=SERVED, once=True, limit=60)
async def extreme_fits(attacker: Attacker) -> None:
    schema = await Schema.of(attacker)
    wishes: list[dict[str, Any]] = [
        {"tau_text": LEAST},
        {"tau_vision": LEAST},
        {"tau_vision": 1e-38},
        {"tau_vision": 1e-30, "sinkhorn": False},
        {"tau_vision": 1e-6, "tau_text": 1e-6},
        {"learning_rate": 1000, "tau_vision": 1e-4},
        {"learning_rate": LEAST},
        {"gamma": 1, "confidence": 0},
        {"gamma": 1, "confidence": 1, "tau_text": 10, "tau_vision": 10},
    ]
    pictures = [images.small_jpeg(), images.tiny_png()]
    for number, wish in enumerate(wishes):
        name = f"extreme-{number}"
        body = {"name": name, "classes": CLASSES, "images": pictures, "parameters": {"iterations": 30, **wish}}
        started = await conforming(attacker, schema, "POST", "/v1/classifiers", body)
        if started.status != 202:
            continue
        state = await finished(attacker, started.json()["id"])
        await conforming(attacker, schema, "GET", "/v1/jobs/{job}", job=state["id"])
        if state["state"] == "succeeded":
            file = await attacker.request("GET", f"/v1/classifiers/{name}/file", counted=False)
            if not all(bool(tensor.isfinite().all()) for tensor in load(file.body).values()):
                attacker.complain(f"{wish} succeeds with proxies that are no numbers")
            labels = {"images": pictures, "classifier": name}
            await conforming(attacker, schema, "POST", "/v1/classify", labels)
            await conforming(attacker, schema, "GET", CLASSIFIER, name=name)
            await attacker.request("DELETE", f"/v1/classifiers/{name}", counted=False)
        elif state["state"] != "failed" or state["error"]["code"] == "internal_error":
            attacker.complain(f"{wish} ends as {state['state']} {state['error']}")


@attack("clusterings with the largest weights and steps", answers=SERVED, once=True, limit=60)
async def extreme_clusterings(attacker: Attacker) -> None:
    schema = await Schema.of(attacker)
    wishes: list[dict[str, float]] = [
        {"concept_weight": 1e6, "reference_weight": 1e6},
        {"learning_rate": 10},
        {"learning_rate": LEAST},
        {"concept_weight": 0, "reference_weight": 0},
    ]
    for wish in wishes:
        pictures = [images.small_jpeg(), images.tiny_png()] * 2
        body = {"images": pictures, "aspect": "color", "words": ["red", "blue"], "parameters": {"epochs": 5, **wish}}
        started = await conforming(attacker, schema, "POST", "/v1/clusterings", body)
        if started.status == 202:
            state = await finished(attacker, started.json()["id"])
            await conforming(attacker, schema, "GET", "/v1/jobs/{job}", job=state["id"])
            if state["state"] != "succeeded" and (state["error"] or {}).get("code") in (None, "internal_error"):
                attacker.complain(f"{wish} ends as {state['state']} {state['error']}")


def changed(snapshot: bytes, **tensors: Any) -> bytes:
    """The snapshot with other tensors."""
    length = int.from_bytes(snapshot[:8], "little")
    metadata = json.loads(snapshot[8 : 8 + length])["__metadata__"]
    return save({**load(snapshot), **tensors}, metadata=metadata)


@attack("snapshots of numbers that no session could have reached", answers=SERVED, once=True, limit=60)
async def hostile_snapshots(attacker: Attacker) -> None:
    schema = await Schema.of(attacker)
    session = await opened(attacker, schema)
    assert session is not None
    good = (await attacker.request("GET", f"{SESSIONS}/{session}/snapshot", counted=False)).body
    state = load(good)
    proxies, rho, count = state["vision_proxies"], state["rho"], state["observed"]
    big = torch.finfo(torch.float32).max
    hostile: dict[str, dict[str, Any]] = {
        "rho 1e30": {"rho": torch.full_like(rho, 1e30)},
        "rho 88": {"rho": torch.full_like(rho, 88.5)},
        "rho -1e30": {"rho": torch.full_like(rho, -1e30)},
        "rho of float64 beyond float32": {"rho": torch.full_like(rho, 1e300, dtype=torch.float64)},
        "proxies of the largest float": {"vision_proxies": torch.full_like(proxies, big)},
        "proxies of zero": {"vision_proxies": torch.zeros_like(proxies)},
        "proxies of infinity": {"vision_proxies": torch.full_like(proxies, float("inf"))},
        "observed infinity": {"observed": torch.tensor(float("inf"))},
        "observed NaN": {"observed": torch.tensor(float("nan"))},
        "observed 2.5": {"observed": torch.tensor(2.5)},
        "observed the largest": {"observed": torch.tensor(2**63 - 1)},
        "observed negative": {"observed": torch.tensor(-1)},
        "observed a list": {"observed": torch.tensor([1, 2])},
        "observed complex": {"observed": torch.tensor(1j)},
        "observed true": {"observed": torch.tensor(True)},
        "rho of integers": {"rho": torch.ones_like(rho, dtype=torch.int64)},
    }
    assert bool(count == 0)
    for what, tensors in hostile.items():
        answer = await attacker.request("PUT", f"{SESSIONS}/{session}/snapshot", changed(good, **tensors))
        if answer.status >= 500:
            attacker.complain(f"{what}: {answer.status}")
        elif answer.status == 200:
            complaints = len(attacker.complaints)
            await observed(attacker, schema, session)
            if len(attacker.complaints) > complaints:
                attacker.complain(f"{what} is restored")
    await attacker.request("PUT", f"{SESSIONS}/{session}/snapshot", good)
    await attacker.request("DELETE", f"{SESSIONS}/{session}", counted=False)


@attack("classifier files of numbers that no fit could have reached", answers=SERVED, once=True, limit=60)
async def hostile_classifiers(attacker: Attacker) -> None:
    schema = await Schema.of(attacker)
    body = {"name": "good", "classes": CLASSES, "images": [images.small_jpeg()], "parameters": {"iterations": 3}}
    started = await conforming(attacker, schema, "POST", "/v1/classifiers", body)
    await finished(attacker, started.json()["id"])
    good = (await attacker.request("GET", "/v1/classifiers/good/file", counted=False)).body
    await attacker.request("DELETE", "/v1/classifiers/good", counted=False)
    proxies = load(good)["proxies"]
    length = int.from_bytes(good[:8], "little")
    about = json.loads(json.loads(good[8 : 8 + length])["__metadata__"]["covervlm"])
    hostile: dict[str, tuple[Any, dict[str, Any]]] = {
        "proxies of the largest float": (torch.full_like(proxies, torch.finfo(torch.float32).max), {}),
        "proxies of zero": (torch.zeros_like(proxies), {}),
        "proxies of NaN": (torch.full_like(proxies, float("nan")), {}),
        "temperature 5e-324": (proxies, {"temperature": LEAST}),
        "temperature 1e-40": (proxies, {"temperature": 1e-40}),
        "temperature 0": (proxies, {"temperature": 0}),
        "temperature -1": (proxies, {"temperature": -1}),
        "temperature 1e308": (proxies, {"temperature": 1e308}),
        "temperature true": (proxies, {"temperature": True}),
        "temperature of 5,000 digits": (proxies, {"temperature": 10**4000}),
    }
    for number, (what, (tensor, changes)) in enumerate(hostile.items()):
        data = save({"proxies": tensor}, metadata={"covervlm": json.dumps({**about, **changes})})
        answer = await attacker.request("PUT", f"/v1/classifiers/h{number}/file", data)
        if answer.status == 201:
            labels = {"images": [images.small_jpeg()], "classifier": f"h{number}"}
            complaints = len(attacker.complaints)
            await conforming(attacker, schema, "POST", "/v1/classify", labels)
            await conforming(attacker, schema, "GET", CLASSIFIER, name=f"h{number}")
            if len(attacker.complaints) > complaints:
                attacker.complain(f"{what} is kept")
            await attacker.request("DELETE", f"/v1/classifiers/h{number}", counted=False)


@attack("answers sampled with numbers at the ends of what is allowed", answers=SERVED, once=True, limit=60)
async def extreme_sampling(attacker: Attacker) -> None:
    schema = await Schema.of(attacker)
    wishes: tuple[dict[str, float], ...] = (
        {"temperature": LEAST},
        {"temperature": 1e-30, "n": 4},
        {"temperature": 2, "repetition_penalty": 100},
        {"temperature": 2, "repetition_penalty": 0.01},
        {"top_p": LEAST, "temperature": 1},
        {"top_p": 0, "temperature": 2},
        {"min_p": 1, "temperature": 2},
        {"presence_penalty": -2, "frequency_penalty": -2, "temperature": LEAST},
        {"seed": -(2**63)},
        {"top_k": 2**62, "temperature": 1},
    )
    for wish in wishes:
        body = chat(images.small_jpeg(), logprobs=True, top_logprobs=20, **wish)
        answer = await conforming(attacker, schema, "POST", "/v1/chat/completions", body)
        check_logprobs(attacker, wish, answer)
    for budget in ({"keep_ratio": LEAST}, {"coverage": LEAST}, {"coverage": 1.0}, {"keep_tokens": 2**62}):
        body = chat(images.small_jpeg(), vision_pruning=budget)
        await conforming(attacker, schema, "POST", "/v1/prune", body)


def check_logprobs(attacker: Attacker, wish: dict[str, float], answer: Answer) -> None:
    if answer.status == 200 and b"null" in answer.body.split(b'"logprobs"', 1)[-1].replace(b'"refusal":null', b""):
        attacker.complain(f"a null among the log probabilities of {wish}")
