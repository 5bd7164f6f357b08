"""llama-index asks the server as it asks any OpenAI-compatible one, with pictures among its blocks."""

import asyncio
import base64

import openai
import pytest
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike


@pytest.fixture
def llm(base_url):
    def llm(model="demo", **options):
        options = {"api_key": "sesame", "is_chat_model": True, "temperature": 0, "max_retries": 0} | options
        return OpenAILike(model=model, api_base=base_url, context_window=1024, **options)

    return llm


@pytest.fixture
def asked(scene):
    return [ChatMessage(role="user", blocks=[ImageBlock(url=scene.picture), TextBlock(text=scene.question)])]


def test_a_budget_rides_in_extra_body(llm, asked, scene):
    budget = {"extra_body": {"vision_pruning": {"keep_tokens": 64}}}
    pruned, whole = llm(additional_kwargs=budget).chat(asked), llm().chat(asked)
    assert pruned.message.content.strip() == scene.answer
    assert pruned.raw.choices[0].finish_reason == "stop"
    assert whole.raw.usage.prompt_tokens - pruned.raw.usage.prompt_tokens == 512


def test_a_picture_may_be_bytes_and_the_budget_in_the_models_name(llm, scene):
    picture = base64.b64decode(scene.picture.partition(",")[2])
    asked = [ChatMessage(role="user", blocks=[ImageBlock(image=picture), TextBlock(text=scene.question)])]
    answer = llm("demo:64").chat(asked)
    assert answer.message.content.strip() == scene.answer
    assert answer.raw.usage.prompt_tokens < 100


def test_a_stream_gives_the_same_answer(llm, asked):
    whole = llm("demo:64").chat(asked)
    chunks = list(llm("demo:64").stream_chat(asked))
    assert "".join(chunk.delta or "" for chunk in chunks) == whole.message.content
    assert chunks[-1].message.content == whole.message.content


def test_many_are_asked_at_once(llm, asked):
    model = llm("demo:64")
    alone = model.chat(asked).message.content

    async def together():
        return await asyncio.gather(*(model.achat(asked) for _ in range(4)))

    assert [answer.message.content for answer in asyncio.run(together())] == [alone] * 4


def test_a_function_is_called_about_a_picture(llm, asked):
    def look(closely: bool) -> str:
        """Looks at it."""
        return "A star."

    model = llm("demo:16", is_function_calling_model=True)
    tool = FunctionTool.from_defaults(look)
    answer = model.chat_with_tools([tool], chat_history=asked, tool_required=True)
    [call] = model.get_tool_calls_from_response(answer)
    assert call.tool_name == "look"
    assert isinstance(call.tool_kwargs["closely"], bool)


def test_a_text_is_completed(llm):
    completed = llm("demo", is_chat_model=False, max_tokens=4).complete("A red")
    assert completed.raw.usage.completion_tokens <= 4
    assert completed.text


def test_refusals_are_the_openai_packages_exceptions(llm, asked):
    with pytest.raises(openai.NotFoundError):
        llm("other").chat(asked)
    with pytest.raises(openai.AuthenticationError):
        llm(api_key="wrong").chat(asked)
