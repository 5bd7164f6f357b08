"""A picture so narrow that resizing would blow it up is refused by its header on every route, by its place."""

import pytest
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from covervlm.server.media.decoding import Encoded
from covervlm.server.models.pictures import crop_cost
from tests.server.api.clip_app import clip_client, urls
from tests.server.api.scripted import ScriptedEngine, data_url

PROCESSOR = CLIPImageProcessorPil(size={"shortest_edge": 336})
THIN = data_url(Image.new("L", (1, 4000)))
SESSIONS = "/v1/streams"


class Engine(ScriptedEngine):
    def check_image(self, width, height):
        crop_cost(width, height, PROCESSOR)


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with clip_client(tmp_path_factory.mktemp("data"), Engine()) as client:
        yield client


def part(url):
    return {"type": "image_url", "image_url": {"url": url}}


def chat(*pictures):
    return {"model": "demo", "messages": [{"role": "user", "content": [*map(part, pictures)]}]}


def counted(*pictures):
    sources = [{"type": "base64", "media_type": "image/png", "data": url.partition(",")[2]} for url in pictures]
    content = [{"type": "image", "source": source} for source in sources]
    return {"model": "demo", "messages": [{"role": "user", "content": content}]}


def message(*pictures):
    return counted(*pictures) | {"max_tokens": 4}


def response(*pictures):
    content = [{"type": "input_image", "image_url": url} for url in pictures]
    return {"model": "demo", "input": [{"role": "user", "content": content}]}


def classify(*pictures):
    return {"images": pictures, "classes": ["circle", "star"]}


BODIES = {
    "/v1/chat/completions": (chat, "messages[0].content[1].image_url.url"),
    "/v1/prune": (chat, "messages[0].content[1].image_url.url"),
    "/tokenize": (chat, "messages[0].content[1].image_url.url"),
    "/v1/messages": (message, "messages[0].content[1].source.data"),
    "/v1/messages/count_tokens": (counted, "messages[0].content[1].source.data"),
    "/v1/responses": (response, "input[0].content[1].image_url"),
    "/v1/embeddings": (lambda *pictures: {"input": [part(url) for url in pictures]}, "input[1].image_url.url"),
    "/v1/classify": (classify, "images[1]"),
    "/v1/classifiers": (lambda *pictures: {"name": "c", **classify(*pictures)}, "images[1]"),
    "/v1/projections": (lambda *pictures: {"name": "p", "method": "kda", "images": pictures}, "images[1]"),
    "/v1/clusterings": (
        lambda *pictures: {"images": pictures, "aspect": "color", "words": ["red", "blue"]},
        "images[1]",
    ),
    SESSIONS: (lambda *pictures: {"images": pictures}, "images[1]"),
}


@pytest.mark.parametrize("path", BODIES)
def test_every_route_refuses_it_and_names_its_place_before_it_is_decoded(client, path, monkeypatch):
    body, param = BODIES[path]
    if path == SESSIONS:
        opened = client.post(SESSIONS, json={"classes": ["circle", "star"], "horizon": 10}).json()
        path += f"/{opened['id']}/observe"
    whole = urls(1)[0]
    decoded = []
    monkeypatch.setattr(Encoded, "decoded", lambda image: decoded.append(image.width) or Image.new("RGB", (336, 336)))
    refused = client.post(path, json=body(whole, THIN))
    error = refused.json()["error"]
    assert refused.status_code == 400
    if path.startswith("/v1/messages"):  # whose errors have a message alone
        assert error["message"].startswith(f"{param}: The image of 1 x 4000 pixels is too narrow")
    else:
        assert (error["param"], error["code"]) == (param, "image_too_large"), error
        assert "1 x 4000" in error["message"]
    assert 1 not in decoded
