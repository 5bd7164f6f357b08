"""VLMEvalKit's requests, and the classes of docs/harnesses.md by which harnesses ask a model in their own process."""

import base64
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import httpx
import pytest
from PIL import Image

from covervlm.server.demo import example_scenes
from tests.e2e.documented import sections

SCENES = example_scenes()
RECIPES = Path(__file__).parents[2] / "docs" / "harnesses.md"


@pytest.fixture
def asked(tmp_path):
    """A body as VLMEvalKit's LMDeployAPI posts it: text and JPEG in the order of the benchmark's prompt."""
    Image.open(SCENES[0].path).convert("RGB").save(tmp_path / "picture.jpg")
    picture = base64.b64encode((tmp_path / "picture.jpg").read_bytes()).decode("ascii")
    url = {"url": f"data:image/jpeg;base64,{picture}"}
    content = [{"type": "image_url", "image_url": url}, {"type": "text", "text": SCENES[0].question}]
    return {
        "model": "demo",
        "messages": [{"role": "system", "content": "Answer briefly."}, {"role": "user", "content": content}],
        "n": 1,
        "max_tokens": 64,
        "temperature": 0.0,
    }


@pytest.fixture
def post(url):
    def post(body):
        return httpx.post(
            f"{url}/v1/chat/completions", json=body, headers={"Authorization": "Bearer sk-123456"}, timeout=280
        )

    return post


def test_an_options_dict_of_vlmevalkit_prunes(post, asked):
    del asked["messages"][0]
    whole, pruned = post(asked), post(asked | {"vision_pruning": {"keep_tokens": 64}})
    assert whole.json()["usage"]["prompt_tokens"] - pruned.json()["usage"]["prompt_tokens"] == 512
    assert pruned.json()["choices"][0]["message"]["content"].strip() == SCENES[0].answer


def test_its_system_prompt_and_the_other_wrappers_detail_are_taken(post, asked):
    asked["messages"][1]["content"][0]["image_url"]["detail"] = "low"
    del asked["n"]
    assert post(asked | {"vision_pruning": {"keep_tokens": 64}}).status_code == 200


def test_its_default_of_tokens_is_refused_by_name_where_the_context_is_shorter(post, asked):
    refused = post(asked | {"max_tokens": 16384})
    assert refused.status_code == 400
    assert (refused.json()["error"]["param"], refused.json()["error"]["code"]) == (
        "max_tokens",
        "context_length_exceeded",
    )


@pytest.fixture
def recipe(monkeypatch):
    """recipe(section, module, base): the class that a section defines, over a stand-in for a harness's base class."""

    def recipe(section, module, base):
        parts = module.split(".")
        for end in range(1, len(parts) + 1):
            monkeypatch.setitem(sys.modules, ".".join(parts[:end]), ModuleType(".".join(parts[:end])))
        setattr(sys.modules[module], base.__name__, base)
        [block] = [block for block in sections(RECIPES, "python") if block.section == section]
        defined = {}
        exec(compile(block.text, block.place, "exec"), defined)
        return defined["CoverVLM"]

    return recipe


def test_vlmevalkit_asks_the_model_in_its_process(recipe):
    class BaseModel:
        pass

    harness = recipe("VLMEvalKit without a server", "vlmeval.vlm.base", BaseModel)("demo", keep_tokens=64)
    with harness.model:
        for scene in SCENES:
            message = [{"type": "image", "value": str(scene.path)}, {"type": "text", "value": scene.question}]
            assert harness.generate_inner(message, dataset="GQA") == scene.answer
    assert isinstance(harness, BaseModel)


def test_lmms_eval_asks_the_model_in_its_process(recipe):
    class lmms:
        pass

    harness = recipe("lmms-eval without a server", "lmms_eval.api.model", lmms)("demo", keep_tokens="64", batch_size=1)

    def messages(scene):
        content = [{"type": "image", "url": Image.open(scene.path)}, {"type": "text", "text": scene.question}]
        return [{"role": "user", "content": content}]

    harness.task_dict = {"scenes": {"test": SCENES}}
    requests = [
        SimpleNamespace(args=("", messages, {"max_new_tokens": 16, "until": ["\n\n"]}, number, "scenes", "test"))
        for number in range(len(SCENES))
    ]
    with harness.model:
        answers = harness.generate_until(requests)
    assert [answer.strip() for answer in answers] == [scene.answer for scene in SCENES]
