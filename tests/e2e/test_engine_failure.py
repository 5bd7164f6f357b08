"""What an orchestrator sees of a server whose engine is gone: alive, not ready, and every request answered."""

import pytest
from starlette.testclient import TestClient

from covervlm.server import create_app
from covervlm.server.demo import model_path
from covervlm.server.engines.embedded.engine import TransformersEngine, TransformersEngineConfig
from covervlm.server.settings import Settings
from tests.server.api.clip_app import wait_for
from tests.server.api.scripted import chat_body


@pytest.mark.parametrize("stream", [False, True])
def test_a_dead_engine_is_a_503_and_not_ready(stream):
    engine = TransformersEngine(TransformersEngineConfig(str(model_path()), threads=1))
    body = chat_body("Hello", max_tokens=2, stream=stream)

    def dies():
        raise SystemExit

    with TestClient(create_app(Settings(), engine)) as client:
        assert client.post("/v1/chat/completions", json=body).status_code == 200
        assert client.get("/ready").status_code == 200
        engine._worker._drop_dead = dies
        for _ in range(2):
            refused = client.post("/v1/chat/completions", json=body)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_unavailable")
            assert int(refused.headers["retry-after"]) > 0
        wait_for(lambda: client.get("/ready").status_code == 503)
        assert client.get("/health").status_code == 200
        assert "covervlm_ready 0.0" in client.get("/metrics").text
