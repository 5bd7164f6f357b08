"""Requests drawn from the OpenAPI schema, within and beyond it: no 5xx, and every answer is what the schema says."""

import contextlib
import random
from collections import Counter

import httpx
import hypothesis
import pytest
from hypothesis import HealthCheck, Phase, Verbosity
from hypothesis import strategies as st
from PIL import Image

from covervlm.server import create_app
from covervlm.server.settings import Settings
from tests.server.api.heartbeat import LONGEST, heartbeat
from tests.server.api.live import running
from tests.server.api.scripted import data_url

schemathesis = pytest.importorskip("schemathesis", reason="part of the extra 'dev'")
GenerationMode = schemathesis.GenerationMode
openapi = pytest.importorskip("schemathesis.specs.openapi.checks")
CHECKS = [
    schemathesis.checks.not_a_server_error,
    openapi.status_code_conformance,
    openapi.content_type_conformance,
    openapi.response_schema_conformance,
    openapi.negative_data_rejection,
]
STATUSES = {200, 201, 202, 400, 404, 405, 409, 413, 429}
IMAGES = [data_url(Image.new("RGB", size, "red")) for size in ((1, 1), (9, 4))]


def plausible(body, rng, name=""):
    """The body with a model that is served, images that are images, and little to generate: so that more gets through.

    Only strings become other strings, and numbers smaller ones: what fits the schema still does.
    """
    match body:
        case dict():
            told = {key: plausible(value, rng, key) for key, value in body.items()}
            return {"max_tokens": 4, **told} if "messages" in told else told
        case list():
            return [plausible(value, rng, name) for value in body]
        case str() if name == "model":
            return rng.choice(("demo", "demo:16", "demo-clip"))
        case str() if name in ("url", "images"):
            return rng.choice(IMAGES)
        case str() if name == "templates":
            return "a {} thing"
        case int() if name in ("max_tokens", "max_completion_tokens") and body > 8:
            return 8
    return body


def told(case, rng, session):
    """The case, every other time about things that there are."""
    if rng.random() < 0.5:
        if "stream" in (case.path_parameters or {}):
            case.path_parameters["stream"] = session
        if case.meta.generation.mode == GenerationMode.POSITIVE:
            case.body = plausible(case.body, rng)
    return case


def examples(run, strategy, number):
    """Call `run` with `number` examples, the same ones each time; with none where the strategy has none."""
    settings = hypothesis.settings(
        max_examples=number,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
    )
    with contextlib.suppress(hypothesis.errors.Unsatisfiable):  # a GET without parameters cannot go against its schema
        settings(hypothesis.given(strategy)(run))()


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("number", "at_least"),
    [
        (3, 100),
        pytest.param(60, 2000, marks=pytest.mark.long),
        pytest.param(160, 5000, marks=[pytest.mark.exhaustive, pytest.mark.timeout(3600)]),
    ],
)
def test_no_request_of_the_schema_or_beyond_it_is_answered_otherwise_than_documented(
    tmp_path, number, at_least, capsys
):
    counts: Counter[int] = Counter()

    def ask(case):
        answer = case.call()
        counts[answer.status_code] += 1
        assert answer.status_code in STATUSES, answer.text
        case.validate_response(answer, checks=CHECKS)

    # The embedded engine with the demo model, so that what only an engine trips over shows as well.
    app = create_app(Settings(data_dir=tmp_path, threads=1, remote_media=False))
    with running(app) as server, heartbeat(server) as beat:
        url = "http://{}:{}".format(*server.address)
        body = {"classes": ["red", "blue"], "horizon": 5}
        session = httpx.post(f"{url}/v1/streams", json=body, timeout=60).json()["id"]
        operations = [found.ok() for found in schemathesis.openapi.from_url(f"{url}/openapi.json").get_all_operations()]
        for operation in operations:
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                drawn = st.tuples(operation.as_strategy(generation_mode=mode), st.integers(0, 2**32))
                examples(ask, drawn.map(lambda pair: told(pair[0], random.Random(pair[1]), session)), number)
        assert httpx.get(f"{url}/ready").status_code == 200
    answers = ", ".join(f"{count} x {status}" for status, count in sorted(counts.items()))
    with capsys.disabled():
        print(f"\nschema: {counts.total()} cases over {len(operations)} operations: {answers}")
        print(f"the loop's longest stall: {beat.stall * 1000:.0f} ms of work, {beat.late * 1000:.0f} ms by the clock")
    assert beat.stall < LONGEST
    assert len(operations) > 25
    assert counts.total() >= at_least
    assert {200, 400, 404} <= set(counts), "too little got through"
