import asyncio
from dataclasses import replace

import httpx
import pytest

from covervlm.server.app import create_app
from covervlm.server.asking.agent import Agent
from covervlm.server.asking.asker import EndpointAsker, EngineAsker, NoAnswer
from covervlm.server.core.caller import Caller
from covervlm.server.settings import Settings
from tests.server.api.scripted import ScriptedEngine


async def stuck(request):
    await asyncio.Event().wait()


async def broken(request):
    raise NoAnswer("no answer in it")


async def test_the_model_itself_answers_from_a_handful_of_tokens(engine, ask, answer, scene):
    request = ask(scene(0), "What color is the star?", pruning={"keep_tokens": 64, "guide": "agent"})
    report = await Agent(EngineAsker(engine), tokens=16, timeout=30)(request)
    cheap = await answer(engine, ask(scene(0), "What color is the star?", pruning={"keep_tokens": 16}))
    assert report.answer == cheap.text.strip()
    assert report.prompt_tokens == cheap.prompt.prompt_tokens
    assert report.completion_tokens == cheap.choices[0].count
    assert report.error is None


async def test_an_endpoint_answers_over_the_openai_api(engine, ask, answer, scene):
    app = create_app(Settings(), engine)
    asker = EndpointAsker("http://agent/v1", "demo:16", None, transport=httpx.ASGITransport(app))
    request = ask(scene(1), "Describe the image.", pruning={"keep_tokens": 64, "guide": "agent"})
    report = await Agent(asker, tokens=16, timeout=30)(request)
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


@pytest.mark.parametrize(("ask_agent", "error"), [(stuck, "timeout"), (broken, "failed")])
async def test_a_failing_agent_becomes_a_report(ask_agent, error, ask):
    report = await Agent(ask_agent, tokens=16, timeout=0.01)(ask(None, "hello"))
    assert (report.answer, report.error) == ("", error)


async def test_a_refusing_endpoint_becomes_a_report(ask):
    refuse = httpx.MockTransport(lambda request: httpx.Response(503, json={"error": {}}))
    asker = EndpointAsker("http://agent/v1", "m", "key", transport=refuse)
    report = await Agent(asker, tokens=16, timeout=5)(ask(None, "hello"))
    assert report.error == "failed"


@pytest.mark.parametrize("body", [[], {}, {"choices": []}, {"choices": [{"message": None}]}, "words"])
async def test_an_endpoint_that_answers_no_completion_becomes_a_report(body, ask):
    transport = httpx.MockTransport(lambda request: httpx.Response(200, json=body))
    asker = EndpointAsker("http://agent/v1", "m", None, transport=transport)
    assert (await Agent(asker, tokens=16, timeout=5)(ask(None, "hello"))).error == "failed"


async def test_the_turn_of_a_first_pass_counts_for_the_requests_caller(ask):
    engine, request = ScriptedEngine(), replace(ask(None, "hello"), caller=Caller("me"))
    await engine.start()
    await Agent(EngineAsker(engine), tokens=16, timeout=5)(request)
    assert engine.requests[0].caller is request.caller


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
