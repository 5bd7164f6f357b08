"""Every route that takes a body: whatever it holds, the answer is no 5xx, and errors are in OpenAI's schema."""

import base64
import copy
import io
import json
import pickle
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from tests.server.api.clip_app import clip_client, error
from tests.server.api.scripted import chat_body, data_url

PIXEL = data_url(Image.new("RGB", (4, 3), "red"))
PART = {"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}}
CHAT = chat_body("What color?", PIXEL, vision_pruning={"keep_tokens": [5], "guide": "none"}, max_tokens=4, stop=["x"])
CHAT |= {"temperature": 0.5, "top_k": 3, "seed": 1, "n": 1, "logprobs": True, "top_logprobs": 2, "user": "u"}
CHAT |= {"stream": True, "stream_options": {"include_usage": True}, "metadata": {"a": "b"}}
CLASSES = {"classes": ["red", "blue"], "templates": ["a {} thing"]}
SHOWN = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL.partition(",")[2]}}
COUNTED = {
    "model": "demo",
    "system": [{"type": "text", "text": "Be brief."}],
    "messages": [{"role": "user", "content": [SHOWN, {"type": "text", "text": "What color?"}]}],
    "output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}},
    "vision_pruning": {"keep_tokens": 5},
}
GOOD = {
    "/v1/chat/completions": CHAT,
    "/v1/messages": {**COUNTED, "max_tokens": 4, "temperature": 0.5, "top_k": 3, "stop_sequences": ["x"]},
    "/v1/messages/count_tokens": COUNTED,
    "/v1/responses": {
        "model": "demo",
        "instructions": "Be brief.",
        "input": [{"role": "user", "content": [{"type": "input_image", "image_url": PIXEL}]}],
        "text": {"format": {"type": "json_schema", "name": "a", "schema": {"type": "object"}}},
        "max_output_tokens": 4,
        "metadata": {"a": "b"},
    },
    "/v1/completions": {
        "model": "demo",
        "prompt": ["a red", "a blue"],
        "max_tokens": 4,
        "logprobs": 1,
        "echo": True,
        "stop": ["x"],
        "n": 1,
    },
    "/tokenize": {"model": "demo", "prompt": "a red star", "add_special_tokens": True, "return_token_strs": True},
    "/detokenize": {"model": "demo", "tokens": [1, 2, 3]},
    "/v1/prune": CHAT,
    "/v1/embeddings": {"model": "demo-clip", "input": ["red", PART], "encoding_format": "float", "dimensions": None},
    "/v1/classify": {"model": "demo-clip", "images": [PIXEL, PART], **CLASSES, "top": 2},
    "/v1/classifiers": {"name": "a", "images": [PIXEL], **CLASSES, "parameters": {"iterations": 3}},
    "/v1/classifiers/{name}/explain": {"image": PIXEL, "label": "red", "words": ["bright"], "neighbours": 2, "top": 1},
    "/v1/projections": {"name": "a", "method": "kda", "images": [PIXEL], "parameters": {"epochs": 1, "dimensions": 2}},
    "/v1/streams": {**CLASSES, "horizon": 5, "parameters": {"beta": 0.5}},
    "/v1/streams/{stream}/observe": {"images": [PIXEL], "top": 2},
    "/v1/clusterings": {"images": [PIXEL, PIXEL], "aspect": "color", "words": ["red", "blue"], "seed": 1},
}
FILES = {
    "/v1/classifiers/{name}/file": "PUT",
    "/v1/projections/{name}/file": "PUT",
    "/v1/embeddings/uploads": "POST",
    "/v1/streams/{stream}/snapshot": "PUT",
}


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with clip_client(tmp_path_factory.mktemp("data")) as client:
        yield client


@pytest.fixture(scope="module")
def session(client):
    return client.post("/v1/streams", json={"classes": ["red", "blue"], "horizon": 5}).json()["id"]


def test_no_route_with_a_body_is_forgotten_here(client):
    paths = client.app.openapi()["paths"]
    bodies = {
        path: method.upper() for path, ways in paths.items() for method, way in ways.items() if "requestBody" in way
    }
    assert bodies == {**dict.fromkeys(GOOD, "POST"), **FILES}


def deep(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


WORTHLESS = {
    "empty": b"",
    "cut off": b'{"model": "demo", "mess',
    "no json": b"hello",
    "not utf-8": b'{"model": "\xff\xfe"}',
    "utf-16": '{"model": "demo"}'.encode("utf-16"),
    "null byte": b'{"model": "de\x00mo"}',
    "control character in a string": b'{"model": "de\nmo"}',
    "null": b"null",
    "a list": b"[]",
    "a string": b'"text"',
    "a number": b"1",
    "NaN": b"NaN",
    "nested a hundred thousand times": b"[" * 100_000,
    "nested in objects": b'{"a":' * 50_000,
    "a number of five thousand digits": b'{"seed": ' + b"9" * 5000 + b"}",
    "trailing text": b"{} {}",
    "single quotes": b"{'model': 'demo'}",
    "html": b"<!doctype html>",
    "a zip": b"PK\x03\x04" + bytes(60),
}


@pytest.mark.parametrize("path", GOOD)
@pytest.mark.parametrize("kind", WORTHLESS)
def test_a_worthless_body_is_a_400(client, session, path, kind):
    url = path.format(stream=session, name="a")
    answer = client.post(url, content=WORTHLESS[kind], headers={"Content-Type": "application/json"})
    assert error(answer, 400)["type"] == "invalid_request_error"


@pytest.mark.parametrize("path", GOOD)
@pytest.mark.parametrize(
    "kind", ["text/plain", "application/xml", "multipart/form-data; boundary=x", "image/png", ";", ""]
)
def test_a_good_body_of_another_type_is_a_400_that_says_which_to_send(client, session, path, kind):
    url = path.format(stream=session, name="a")
    answer = client.post(url, content=json.dumps(GOOD[path]), headers={"Content-Type": kind})
    assert "application/json" in error(answer, 400)["message"]


def leaves(value, way=()):
    """Every place inside a body."""
    yield way
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in entries:
        yield from leaves(inner, (*way, name))


def replaced(body, way, value):
    if not way:
        return value
    body = copy.deepcopy(body)
    inner = body
    for step in way[:-1]:
        inner = inner[step]
    inner[way[-1]] = value
    return body


HOSTILE = [
    "\ud800", "", " ", "\x00", "\x1b[31m\r\n", "\u202e\ufeff", "x" * 200_000, "data:", "data:image/png;base64,\ud800",
    float("nan"), float("inf"), -float("inf"), 10**400, -(10**30), 2**63, -1, 0, 0.5, True, None, {}, [], [None],
    {"\ud800": 1}, {"__proto__": {}}, deep(300), ["\ud800"], [[]],
]  # fmt: skip


@pytest.mark.parametrize("path", GOOD)
def test_no_value_anywhere_in_a_good_body_brings_a_5xx(client, session, path):
    url = path.format(stream=session, name="a")
    failures, statuses = [], set()
    for way in leaves(GOOD[path]):
        for value in HOSTILE:
            content = json.dumps(replaced(GOOD[path], way, value))
            answer = client.post(url, content=content, headers={"Content-Type": "application/json"})
            statuses.add(answer.status_code)
            if answer.status_code >= 500 or '"server_error"' in answer.text:
                failures.append((way, str(value)[:50], answer.text[:300]))
            elif answer.status_code >= 400:
                error(answer, answer.status_code)
    assert not failures
    assert 400 in statuses


def npy(header: bytes, data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    width = "<H" if version == b"\x01\x00" else "<I"
    return b"\x93NUMPY" + version + struct.pack(width, len(header)) + header + data


def shape(text: str, kind: str = "<f4") -> bytes:
    return f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {text}, }}\n".encode()


def tensors_file(header: object, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    return struct.pack("<Q", len(text)) + text + data


def object_array() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([{"a": print}], dtype=object), allow_pickle=True)
    return file.getvalue()


def zipped() -> bytes:
    file = io.BytesIO()
    np.savez(file, a=np.ones((2, 2), np.float32))
    return file.getvalue()


ONE = {"dtype": "F32", "shape": [1, 1], "data_offsets": [0, 4]}
HOSTILE_FILES = {
    "empty": b"",
    "one byte": b"\x00",
    "json": b"{}",
    "noise": np.random.default_rng(0).bytes(500),
    "a pickle": pickle.dumps(np.ones((2, 2))),
    "a torch file": b"PK\x03\x04" + bytes(100),
    "npy of pickled objects": object_array(),
    "npz": zipped(),
    "npy without a header": b"\x93NUMPY",
    "npy of a version to come": npy(shape("(1, 1)"), bytes(4), b"\x09\x00"),
    "npy of a trillion rows": npy(shape("(1000000000000, 512)"), bytes(64)),
    "npy of more rows than integers count": npy(shape("(99999999999999999999, 99999999999999999999)")),
    "npy of negative rows": npy(shape("(-1, -1)"), bytes(4)),
    "npy of no numbers": npy(shape("('a', None)")),
    "npy of objects": npy(shape("(1, 1)", "|O"), bytes(8)),
    "npy of an unknown type": npy(shape("(1, 1)", "<q9"), bytes(8)),
    "npy of strings": npy(shape("(1, 1)", "<U9"), bytes(36)),
    "npy of times": npy(shape("(1, 1)", "<M8[s]"), bytes(8)),
    "npy of complex numbers": npy(shape("(1, 1)", "<c8"), bytes(8)),
    "npy of void": npy(shape("(1, 1)", "|V0")),
    "npy with a header of code": npy(b"__import__('os').system('true')\n"),
    "npy with a header that never closes": npy(b"{'descr': '<f4', 'shape': (((((\n"),
    "npy with a deep header": npy(b"(" * 9000 + b"\n"),
    "npy with a deep header that is valid": npy(b"[" * 500 + b"]" * 500 + b"\n"),
    "npy with a long header": npy(shape("(1, 1)") + b" " * 60_000, bytes(4)),
    "npy with a header of megabytes": npy(b" " * 5_000_000 + shape("(1, 1)"), bytes(4), b"\x02\x00"),
    "npy whose header is said to be longer than it is": b"\x93NUMPY\x02\x00\xff\xff\xff\xff{",
    "npy cut off": npy(shape("(4, 512)"), bytes(100)),
    "npy of NaN": npy(shape("(1, 512)"), struct.pack("<f", float("nan")) * 512),
    "npy of other dimensions": npy(shape("(1, 1)"), bytes(4)),
    "safetensors of a header of exabytes": struct.pack("<Q", 2**63) + b"{}",
    "safetensors of a header longer than the file": struct.pack("<Q", 99_999_999) + b"{}",
    "safetensors of no json": tensors_file(b"nonsense"),
    "safetensors of a deep header": tensors_file(b"[" * 200_000),
    "safetensors of a list": tensors_file([]),
    "safetensors without tensors": tensors_file({}),
    "safetensors of huge shapes": tensors_file({"a": {**ONE, "shape": [2**62, 2**62]}}, bytes(4)),
    "safetensors of negative offsets": tensors_file({"a": {**ONE, "data_offsets": [-4, 0]}}, bytes(4)),
    "safetensors of offsets outside": tensors_file({"a": {**ONE, "data_offsets": [0, 4000]}}, bytes(4)),
    "safetensors that overlap": tensors_file({"a": ONE, "b": ONE}, bytes(4)),
    "safetensors of an unknown type": tensors_file({"a": {**ONE, "dtype": "X99"}}, bytes(4)),
    "safetensors of a rare type": tensors_file({"a": {**ONE, "dtype": "F8_E4M3", "data_offsets": [0, 1]}}, bytes(1)),
    "safetensors with metadata of a number": tensors_file({"__metadata__": {"covervlm": 5}, "a": ONE}, bytes(4)),
}  # fmt: skip


@pytest.mark.parametrize("path", FILES)
@pytest.mark.parametrize("kind", HOSTILE_FILES)
def test_a_hostile_file_is_a_400_in_the_servers_own_words(client, session, path, kind):
    url = path.format(stream=session, name="a")
    answer = client.request(FILES[path], url, content=HOSTILE_FILES[kind])
    detail = error(answer, 400)
    assert detail["code"] == "invalid_tensors"
    assert not any(word in detail["message"] for word in ("Error", "numpy", "torch", "rust", "HeaderToo", "/"))


@pytest.mark.parametrize("kind", [kind for kind in HOSTILE_FILES if kind.startswith("npy")])
def test_hostile_embeddings_in_base64_are_a_400_too(client, kind):

    body = {"name": "never", "classes": ["red", "blue"], "embeddings": base64.b64encode(HOSTILE_FILES[kind]).decode()}
    assert error(client.post("/v1/classifiers", json=body), 400)["code"] == "invalid_tensors"


METADATA = {
    "a list": "[]",
    "a deep list": '{"x": ' + "[" * 900 + "]" * 900 + "}",
    "deeper than can be read": "[" * 100_000,
    "half a surrogate pair": '{"x": "\\ud800"}',
    "NaN": '{"x": NaN}',
    "infinity": '{"x": 1e999}',
    "a number of five thousand digits": '{"x": ' + "9" * 5000 + "}",
    "half a surrogate pair in a class": '{"classes": ["\\ud800", "b"]}',
}


@pytest.mark.parametrize("kind", METADATA)
def test_metadata_that_could_not_be_sent_again_is_refused(client, kind):
    """A classifier's metadata comes back in its card: what JSON cannot spell would break every later answer."""
    good = {"classes": ["a", "b"], "temperature": 0.01, "fingerprint": "x"}
    text = METADATA[kind]
    if text.startswith("{"):
        text = json.dumps(good)[:-1] + ", " + text[1:]
    data = save({"proxies": torch.eye(2)}, metadata={"covervlm": text})
    assert error(client.put("/v1/classifiers/a/file", content=data), 400)["code"] == "invalid_tensors"
    assert client.get("/v1/classifiers").status_code == 200
