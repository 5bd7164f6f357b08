"""langchain-openai asks the server as it asks OpenAI's."""

import asyncio

import openai
import pytest
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings


@pytest.fixture
def chat(base_url):
    def chat(model="demo", **options):
        return ChatOpenAI(
            model=model, base_url=base_url, api_key="sesame", temperature=0, max_retries=0, stream_usage=True, **options
        )

    return chat


@pytest.fixture
def asked(messages):
    return [HumanMessage(content=messages[0]["content"])]


def test_a_budget_rides_in_extra_body(chat, asked, scene):
    pruned = chat(extra_body={"vision_pruning": {"keep_tokens": 64}}).invoke(asked)
    whole = chat().invoke(asked)
    assert pruned.content.strip() == scene.answer
    assert whole.usage_metadata["input_tokens"] - pruned.usage_metadata["input_tokens"] == 512
    assert pruned.response_metadata["finish_reason"] == "stop"


def test_a_stream_gives_the_same_answer(chat, asked):
    whole = chat("demo:64").invoke(asked)
    chunks = list(chat("demo:64").stream(asked))
    assert "".join(chunk.content for chunk in chunks) == whole.content
    assert (
        sum(chunk.usage_metadata["input_tokens"] for chunk in chunks if chunk.usage_metadata)
        == (whole.usage_metadata["input_tokens"])
    )


def test_many_are_asked_at_once(chat, asked):
    model = chat("demo:64")
    alone = model.invoke(asked).content

    async def batch():
        return await model.abatch([asked] * 4)

    assert [answer.content for answer in asyncio.run(batch())] == [alone] * 4


def test_embeddings_have_unit_length(base_url):
    # Other servers than OpenAI's take texts, not token ids.
    embeddings = OpenAIEmbeddings(
        model="demo-clip", base_url=base_url, api_key="sesame", check_embedding_ctx_length=False
    )
    vectors = embeddings.embed_documents(["a red star", "a blue ring"])
    assert [sum(x * x for x in vector) for vector in vectors] == pytest.approx([1, 1], abs=1e-4)


def test_refusals_are_the_openai_packages_exceptions(chat, asked, base_url):
    with pytest.raises(openai.NotFoundError):
        chat("other").invoke(asked)
    with pytest.raises(openai.AuthenticationError):
        ChatOpenAI(model="demo", base_url=base_url, api_key="wrong", max_retries=0).invoke(asked)
