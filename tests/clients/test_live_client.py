"""The clients against a real server over the demo model, beside the openai package."""

import asyncio
import base64
import subprocess
import sys

import numpy
import openai
import pytest
from PIL import Image

from covervlm import clients
from covervlm.clients import AsyncClient, Client, assistant, system, user

BLOCKED = (
    "covervlm.server",
    "covervlm.kernels",
    "covervlm.pruners",
    "torch",
    "transformers",
    "numpy",
    "pydantic",
    "pydantic_settings",
    "fastapi",
    "starlette",
    "uvicorn",
    "numba",
)


@pytest.fixture(scope="module")
def client(url):
    with Client(url, retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def reference(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def data_url(scene):
    return "data:image/png;base64," + base64.b64encode(scene.path.read_bytes()).decode()


@pytest.fixture(scope="module")
def openai_answer(reference, scene, data_url):
    """openai_answer(**vision_pruning): what the openai package is told."""

    def ask(**pruning):
        content = [{"type": "image_url", "image_url": {"url": data_url}}, {"type": "text", "text": scene.question}]
        return reference.chat.completions.create(
            model="demo",
            messages=[{"role": "user", "content": content}],
            temperature=0,
            extra_body={"vision_pruning": pruning} if pruning else None,
        )

    return ask


def same(answer, expected):
    """Whether our answer says what openai's says."""
    block = expected.model_extra["vision_pruning"]
    details = expected.usage.prompt_tokens_details
    assert answer.text == expected.choices[0].message.content
    assert answer.finish_reason == expected.choices[0].finish_reason
    assert answer.model == expected.model
    assert answer.usage.prompt_tokens == expected.usage.prompt_tokens
    assert answer.usage.completion_tokens == expected.usage.completion_tokens
    assert answer.usage.total_tokens == expected.usage.total_tokens
    assert answer.usage.image_tokens == details.image_tokens
    assert [(i.total, i.kept, i.method) for i in answer.images] == [
        (i["total"], i["kept"], i["method"]) for i in block["images"]
    ]
    # The tower does not run for an image that it has seen.
    assert answer.seconds.keys() | {"tower"} == block["seconds"].keys() | {"tower"}


@pytest.mark.parametrize("pruning", [{}, {"keep_tokens": 64}, {"keep_ratio": 0.25, "method": "uniform"}])
def test_answers_are_those_of_the_openai_package(client, scene, openai_answer, pruning):
    expected = openai_answer(**pruning)
    same(client.chat(scene.path, scene.question, temperature=0, **pruning), expected)


def test_a_stream_gives_the_same_answer(client, scene, openai_answer):
    with client.stream(scene.path, scene.question, keep_tokens=64, temperature=0) as stream:
        pieces = list(stream)
    same(stream.answer, openai_answer(keep_tokens=64))
    assert "".join(pieces) == stream.answer.text


async def test_the_async_client_gives_the_same_answers(url, scene, openai_answer):
    expected = openai_answer(keep_tokens=64)
    async with AsyncClient(url, retries=0) as client:
        stream = client.stream(scene.path, scene.question, keep_tokens=64, temperature=0)
        answer, pruned, models = await asyncio.gather(
            client.chat(scene.path, scene.question, keep_tokens=64, temperature=0),
            client.prune(scene.path, scene.question, keep_tokens=64),
            client.models(),
        )
        pieces = [piece async for piece in stream]
    same(answer, expected)
    same(stream.answer, expected)
    assert "".join(pieces) == answer.text
    assert pruned.prompt_tokens == answer.usage.prompt_tokens
    assert models[0].id == "demo"


def test_every_kind_of_source_is_the_same_picture(client, scene, data_url):
    image = Image.open(scene.path).convert("RGB")
    sources = [scene.path, str(scene.path), scene.path.read_bytes(), data_url, image, numpy.asarray(image)]
    kept = {client.prune(source, scene.question, keep_tokens=16).indices for source in sources}
    assert len(kept) == 1


def test_prune_tells_what_a_chat_would_keep(client, scene):
    result = client.prune(scene.path, scene.question, keep_tokens=64)
    answer = client.chat(scene.path, scene.question, keep_tokens=64, return_indices=True, temperature=0)
    assert (result.total, result.kept, result.grid) == (576, 64, (24, 24))
    assert result.indices == answer.images[0].indices
    assert list(result.indices) == sorted(set(result.indices))
    assert result.prompt_tokens == answer.usage.prompt_tokens
    assert 0 < result.coverage < 1
    assert result.seconds["media"] > 0


def test_a_coverage_budget_has_its_bounds(client, scene):
    free = client.prune(scene.path, scene.question, coverage=0.5)
    assert free.coverage >= 0.5
    bounded = client.prune(scene.path, scene.question, coverage=0.99, max_keep=5)
    assert bounded.kept == 5
    assert client.prune(scene.path, scene.question, coverage=0.01, min_keep=33).kept == 33


def test_an_overlay_lights_exactly_the_kept_patches(client, scene):
    result = client.prune(scene.path, scene.question, keep_tokens=64)
    picture = numpy.asarray(Image.open(scene.path).convert("RGB"))
    overlay = numpy.asarray(result.overlay(scene.path))
    assert overlay.shape == picture.shape
    side = picture.shape[0] // 24
    bright = []
    for place in range(576):
        row, column = divmod(place, 24)
        middle = (slice(row * side + 2, (row + 1) * side - 2), slice(column * side + 2, (column + 1) * side - 2))
        if numpy.array_equal(overlay[middle], picture[middle]) and picture[middle].any():
            bright.append(place)
    assert tuple(bright) == result.indices


def test_an_overlay_of_a_wide_picture_leaves_what_the_model_does_not_see_dark(client, scene):
    wide = Image.new("RGB", (672, 336), "white")
    wide.paste(Image.open(scene.path).convert("RGB").resize((336, 336)), (168, 0))
    result = client.prune(wide, scene.question, keep_ratio=1.0)
    assert result.box == (168, 0, 504, 336)
    overlay = numpy.asarray(result.overlay(wide)).astype(int)
    assert overlay[:, :168].max() < 100
    assert overlay[:, 504:].max() < 100
    assert numpy.array_equal(overlay[2:12, 170:180], numpy.asarray(wide)[2:12, 170:180])


def test_an_answer_without_indices_has_no_overlay(client, scene):
    answer = client.chat(scene.path, scene.question, keep_tokens=64)
    with pytest.raises(ValueError, match="return_indices"):
        answer.images[0].overlay(scene.path)


def test_several_images_and_a_count_for_each(client, scene):
    answer = client.chat([scene.path, scene.path], "Which?", keep_tokens=[3, 5], max_tokens=2)
    assert [image.kept for image in answer.images] == [3, 5]
    assert answer.usage.image_tokens == 8
    assert answer.usage.completion_tokens <= 2


def test_a_conversation_is_openais(client, reference, scene, data_url):
    messages = [system("Be short."), user(scene.question, scene.path), assistant(scene.answer), user("Where is it?")]
    expected = reference.chat.completions.create(model="demo:64", messages=messages, temperature=0)
    answer = client.chat_messages(messages, model="demo:64", temperature=0)
    same(answer, expected)
    stream = client.stream_messages(messages, model="demo:64", temperature=0)
    assert "".join(stream) == expected.choices[0].message.content
    assert answer.images[0].kept == 64


def test_text_alone_is_answered(client):
    answer = client.chat(None, "Hello", max_tokens=3)
    assert answer.images == ()
    assert answer.usage.image_tokens == 0


def test_fields_of_the_body_can_be_added(client, scene):
    answer = client.chat(scene.path, scene.question, extra_body={"n": 2, "ignore_eos": True}, max_tokens=4)
    assert len(answer.raw["choices"]) == 2
    assert answer.usage.completion_tokens == 8
    assert answer.finish_reason == "length"


def test_models_are_those_of_the_openai_package(client, reference):
    assert [model.id for model in client.models()] == [model.id for model in reference.models.list()]
    assert client.models()[0] == clients.Model("demo", client.models()[0].context_length, 576, None)


@pytest.mark.parametrize(
    ("options", "kind", "param", "code"),
    [
        ({"method": "guess"}, clients.BadRequestError, "vision_pruning.method", "invalid_value"),
        ({"keep_tokens": 0}, clients.BadRequestError, "vision_pruning.keep_tokens", "invalid_value"),
        ({"temperature": 9}, clients.BadRequestError, "temperature", "invalid_value"),
        ({"model": "gpt-4o"}, clients.NotFoundError, "model", "model_not_found"),
    ],
)
def test_refusals_name_the_field(client, scene, options, kind, param, code):
    with pytest.raises(kind) as caught:
        client.chat(scene.path, scene.question, **options)
    assert (caught.value.param, caught.value.code) == (param, code)
    assert caught.value.request_id
    with pytest.raises(kind) as caught:
        next(iter(client.stream(scene.path, scene.question, **options)))
    assert (caught.value.param, caught.value.code) == (param, code)


def test_data_that_is_no_image_is_refused_by_its_place(client):
    with pytest.raises(clients.BadRequestError) as caught:
        client.chat(b"hello", "What?")
    assert caught.value.param == "messages[0].content[0].image_url.url"


def test_an_option_that_there_is_not_is_a_type_error(client):
    with pytest.raises(TypeError, match="keep_token'"):
        client.chat(None, "Hello", keep_token=64)


def test_nobody_at_the_address_is_a_connection_error():
    with Client("http://127.0.0.1:9", retries=0) as client, pytest.raises(clients.APIConnectionError):
        client.models()


def test_the_client_needs_no_part_of_the_server(url, scene, tmp_path):
    program = f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if any(name == blocked or name.startswith(blocked + ".") for blocked in {BLOCKED!r}):
            raise ImportError(name + " is not installed")
sys.meta_path.insert(0, Blocked())
from covervlm.clients import Client
client = Client({url!r})
print(client.chat({str(scene.path)!r}, {scene.question!r}, keep_tokens=64, temperature=0).text)
client.prune({str(scene.path)!r}, {scene.question!r}, keep_tokens=64).overlay({str(scene.path)!r}).save("overlay.png")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == scene.answer
    assert Image.open(tmp_path / "overlay.png").size == Image.open(scene.path).size
