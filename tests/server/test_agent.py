import asyncio
from dataclasses import replace

import httpx
import pytest

from covervlm.server.agent import EndpointAgent, SelfAgent, consult
from covervlm.server.app import create_app
from covervlm.server.settings import Settings


class Stuck:
    async def answer(self, request):
        await asyncio.Event().wait()


class Broken:
    async def answer(self, request):
        raise ValueError("no answer in it")


async def test_the_model_itself_answers_from_a_handful_of_tokens(engine, ask, answer, scene):
    request = ask(scene(0), "What color is the star?", pruning={"keep_tokens": 64, "guide": "agent"})
    report = await consult(SelfAgent(engine, tokens=16), request, timeout=30)
    cheap = await answer(engine, ask(scene(0), "What color is the star?", pruning={"keep_tokens": 16}))
    assert report.answer == cheap.text.strip()
    assert report.prompt_tokens == cheap.prompt.prompt_tokens
    assert report.completion_tokens == cheap.choices[0].count
    assert report.error is None


async def test_an_endpoint_answers_over_the_openai_api(engine, ask, answer, scene):
    app = create_app(Settings(), engine)
    agent = EndpointAgent("http://agent/v1", "demo:16", None, transport=httpx.ASGITransport(app))
    request = ask(scene(1), "Describe the image.", pruning={"keep_tokens": 64, "guide": "agent"})
    report = await consult(agent, request, timeout=30)
    cheap = await answer(engine, ask(scene(1), "Describe the image.", pruning={"keep_tokens": 16}, max_tokens=32))
    assert report.answer == cheap.text.strip()
    assert report.prompt_tokens == cheap.prompt.prompt_tokens


async def test_its_words_change_the_selection(engine, ask, scene):
    request = ask(
        scene(0),
        "Where is it?",
        pruning={"keep_tokens": 8, "guide": "agent", "method": "text_coverage", "return_indices": True},
    )
    without = await engine.prune(request)
    hinted = await engine.prune(replace(request, hint="a yellow star"))
    assert without.images[0].indices != hinted.images[0].indices


@pytest.mark.parametrize(("agent", "error"), [(Stuck(), "timeout"), (Broken(), "failed")])
async def test_a_failing_agent_becomes_a_report(agent, error, ask):
    report = await consult(agent, ask(None, "hello"), timeout=0.01)
    assert (report.answer, report.error) == ("", error)


async def test_a_refusing_endpoint_becomes_a_report(ask):
    refuse = httpx.MockTransport(lambda request: httpx.Response(503, json={"error": {}}))
    report = await consult(
        EndpointAgent("http://agent/v1", "m", "key", transport=refuse), ask(None, "hello"), timeout=5
    )
    assert report.error == "failed"


async def test_the_response_tells_what_the_agent_said_and_cost(engine, scene, png_url):
    app = create_app(Settings(), engine)
    body = {
        "model": "demo",
        "temperature": 0,
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": png_url(scene(0))}},
                    {"type": "text", "text": "What color is the star?"},
                ],
            }
        ],
        "vision_pruning": {"keep_tokens": 32, "guide": "agent"},
    }
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        answer = (await client.post("/v1/chat/completions", json=body)).json()
        metrics = (await client.get("/metrics")).text
    agent = answer["vision_pruning"]["agent"]
    assert agent["answer"]
    assert agent["error"] is None
    assert agent["prompt_tokens"] < answer["usage"]["prompt_tokens"]
    assert answer["vision_pruning"]["seconds"]["agent"] == pytest.approx(agent["seconds"], abs=1e-5)
    assert 'covervlm_agent_passes_total{outcome="answered"} 1.0' in metrics


async def test_a_request_goes_on_without_an_agent_that_fails(engine, scene, png_url):
    app = create_app(Settings(agent_url="http://127.0.0.1:9/v1", agent_timeout=2.0), engine)
    content = [
        {"type": "image_url", "image_url": {"url": png_url(scene(0))}},
        {"type": "text", "text": "What color is the star?"},
    ]
    bodies = [
        {
            "model": "demo",
            "temperature": 0,
            "messages": [{"role": "user", "content": content}],
            "vision_pruning": {"keep_tokens": 32, "guide": guide, "return_indices": True},
        }
        for guide in ("agent", "last_user")
    ]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        failed, plain = [(await client.post("/v1/chat/completions", json=body)).json() for body in bodies]
    assert failed["vision_pruning"]["agent"]["error"] == "failed"
    assert failed["vision_pruning"]["images"][0]["indices"] == plain["vision_pruning"]["images"][0]["indices"]
    assert failed["choices"] == plain["choices"]
