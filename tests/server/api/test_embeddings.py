"""POST /v1/embeddings with the official client's expectations, and what it refuses."""

import base64
import struct

import httpx
import openai
import pytest
import torch
from torch.nn.functional import normalize

from covervlm.server.clip.encoder.encoder import ClipEncoder
from covervlm.server.demo import clip_path
from tests.server.api.clip_app import clip_client, error, scenes, urls


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with clip_client(tmp_path_factory.mktemp("data")) as client:
        yield client


@pytest.fixture(scope="module")
def encoder():
    return ClipEncoder(str(clip_path()), device="cpu")


def image(url: str) -> dict:
    return {"type": "image_url", "image_url": {"url": url}}


def test_texts_and_images_come_back_in_order_as_the_encoder_embeds_them(client, encoder):
    pictures, sent = [s.image for s in scenes(2)], urls(2)
    body = {"model": "demo-clip", "input": [image(sent[0]), "a red star", image(sent[1]), "a blue ring"]}
    answer = client.post("/v1/embeddings", json=body).json()
    pixels = encoder.embed_pixels([encoder.preprocess(p) for p in pictures])
    texts = encoder.embed_texts(["a red star", "a blue ring"])
    expected = torch.stack([pixels[0], texts[0], pixels[1], texts[1]])
    ours = torch.tensor([entry["embedding"] for entry in answer["data"]])
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(normalize(ours, dim=1), ours)
    assert [entry["index"] for entry in answer["data"]] == [0, 1, 2, 3]
    tokens = sum(len(ids) for ids in encoder.tokenize(["a red star", "a blue ring"]))
    assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}


def test_base64_is_little_endian_float32_of_the_same_vector(client):
    body = {"model": "demo-clip", "input": "a star"}
    floats = client.post("/v1/embeddings", json=body).json()["data"][0]["embedding"]
    packed = client.post("/v1/embeddings", json=body | {"encoding_format": "base64"}).json()["data"][0]["embedding"]
    data = base64.b64decode(packed)
    assert list(struct.unpack(f"<{len(data) // 4}f", data)) == floats


def test_the_model_may_be_left_out(client):
    named = client.post("/v1/embeddings", json={"model": "demo-clip", "input": "a star"}).json()
    assert client.post("/v1/embeddings", json={"input": "a star"}).json() == named


def test_the_openai_client_reads_them(client):
    def forward(request: httpx.Request) -> httpx.Response:
        answer = client.post(request.url.path, content=request.content, headers={"Content-Type": "application/json"})
        return httpx.Response(answer.status_code, content=answer.content, headers={"Content-Type": "application/json"})

    official = openai.OpenAI(
        base_url="http://test/v1", api_key="none", http_client=httpx.Client(transport=httpx.MockTransport(forward))
    )
    answer = official.embeddings.create(model="demo-clip", input=["a star", "a ring"])
    plain = client.post("/v1/embeddings", json={"model": "demo-clip", "input": ["a star", "a ring"]}).json()
    for ours, theirs in zip(plain["data"], answer.data, strict=True):
        assert theirs.embedding == pytest.approx(ours["embedding"], abs=1e-6)
    with pytest.raises(openai.NotFoundError):
        official.embeddings.create(model="text-embedding-3-small", input="a star")


@pytest.mark.parametrize(
    ("change", "status", "param", "code"),
    [
        ({"model": "gpt"}, 404, "model", "model_not_found"),
        ({"input": []}, 400, "input", "invalid_value"),
        ({"input": [1, 2, 3]}, 400, "input", "invalid_value"),
        ({"input": ["a star", [1, 2, 3]]}, 400, "input[1]", "invalid_value"),
        ({"input": [1, "x"]}, 400, "input[1]", "invalid_type"),
        ({"input": {"type": "text"}}, 400, "input.text", "missing_required_parameter"),
        ({"input": [{"type": "audio"}]}, 400, "input[0]", "invalid_type"),
        ({"input": [True]}, 400, "input[0]", "invalid_type"),
        ({"modality": "audio"}, 400, "modality", "invalid_value"),
        ({"modality": "image", "input": "a star"}, 400, "input", "invalid_image"),
        ({"input": ["fine", "star " * 40]}, 400, "input[1]", "context_length_exceeded"),
        ({"dimensions": 8}, 400, "dimensions", "unsupported_parameter"),
        ({"encoding_format": "hex"}, 400, "encoding_format", "invalid_value"),
        ({"input": [image("data:image/png;base64,AAAA")]}, 400, "input[0].image_url.url", "invalid_image"),
        ({"surprise": 1}, 400, "surprise", "unknown_parameter"),
    ],
)
def test_what_cannot_be_embedded_is_refused_by_name(client, change, status, param, code):
    detail = error(client.post("/v1/embeddings", json={"model": "demo-clip", "input": "a star"} | change), status)
    assert (detail["param"], detail["code"]) == (param, code)


def test_images_come_in_every_spelling_that_clients_have(client):
    def vector(**body):
        return client.post("/v1/embeddings", json=body).json()["data"][0]["embedding"]

    [url] = urls(1)
    detail = error(client.post("/v1/embeddings", json={"input": ["x", {"image": "nonsense"}]}), 400)
    assert detail["param"] == "input[1].image"
    expected = vector(input=[image(url)])
    for spelled in (url, [url], image(url), {"image": url}, [{"image": url}]):
        assert vector(input=spelled) == expected
    assert vector(input=[url.partition(",")[2]], modality="image") == expected
    answer = client.post("/v1/embeddings", json={"input": url})
    assert answer.json()["usage"]["prompt_tokens"] == 0
    assert error(client.post("/v1/embeddings", json={"input": url, "modality": "text"}), 400)["param"] == "input"
    assert vector(input={"text": "a star"}) == vector(input="a star")


def test_token_ids_of_this_models_tokenizer_are_the_text_and_others_are_refused(client, encoder):
    texts = ["a red star", "a ring"]
    ids = encoder.tokenize(texts)
    by_text = client.post("/v1/embeddings", json={"input": texts}).json()
    assert client.post("/v1/embeddings", json={"input": ids}).json() == by_text
    [alone] = client.post("/v1/embeddings", json={"input": ids[0]}).json()["data"]
    assert alone["embedding"] == pytest.approx(by_text["data"][0]["embedding"], abs=1e-6)
    for foreign in (ids[0][1:], ids[0][:-1], [ids[0][0], 10**6, ids[0][-1]], [17, 2046, 9]):
        detail = error(client.post("/v1/embeddings", json={"input": [ids[1], foreign]}), 400)
        assert detail["param"] == "input[1]"
        assert "send the text itself" in detail["message"]


def test_the_models_own_dimensions_may_be_named(client, encoder):
    body = {"model": "demo-clip", "input": "a star", "dimensions": encoder.dimensions}
    assert client.post("/v1/embeddings", json=body).status_code == 200
