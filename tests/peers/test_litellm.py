"""litellm asks the server as it asks any OpenAI-compatible one."""

import litellm
import pytest


@pytest.fixture
def options(base_url):
    return {"api_base": base_url, "api_key": "sesame", "temperature": 0, "num_retries": 0}


def test_a_budget_rides_in_extra_body(options, messages, scene):
    pruning = {"vision_pruning": {"keep_tokens": 64}}
    pruned = litellm.completion("hosted_vllm/demo", messages, extra_body=pruning, **options)
    whole = litellm.completion("hosted_vllm/demo", messages, **options)
    assert pruned.choices[0].message.content.strip() == scene.answer
    assert pruned.choices[0].finish_reason == "stop"
    assert whole.usage.prompt_tokens - pruned.usage.prompt_tokens == 512


@pytest.mark.parametrize("provider", ["openai", "hosted_vllm"])
def test_a_budget_rides_in_the_models_name(options, messages, scene, provider):
    answer = litellm.completion(f"{provider}/demo:64", messages, **options)
    assert answer.choices[0].message.content.strip() == scene.answer
    assert answer.usage.prompt_tokens < 100


def test_a_stream_gives_the_same_answer(options, messages):
    whole = litellm.completion("hosted_vllm/demo:64", messages, **options)
    chunks = list(
        litellm.completion(
            "hosted_vllm/demo:64", messages, stream=True, stream_options={"include_usage": True}, **options
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens


def test_embeddings_have_unit_length(options):
    del options["temperature"]
    answer = litellm.embedding("openai/demo-clip", input=["a red star", "a blue ring"], **options)
    vectors = [entry["embedding"] for entry in answer.data]
    assert [sum(x * x for x in vector) for vector in vectors] == pytest.approx([1, 1], abs=1e-4)


def test_refusals_are_litellms_own_exceptions(options, messages):
    with pytest.raises(litellm.AuthenticationError):
        litellm.completion("hosted_vllm/demo", messages, **{**options, "api_key": "wrong"})
    with pytest.raises(litellm.NotFoundError):
        litellm.completion("hosted_vllm/other", messages, **options)
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "array"}}}
    with pytest.raises(litellm.BadRequestError, match="tools"):
        litellm.completion("hosted_vllm/demo", messages, tools=[tool], **options)
