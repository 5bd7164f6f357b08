"""Text and log probabilities of a checkpoint with a SentencePiece tokenizer: both engines alike, and as in vLLM."""

import pytest
import pytest_asyncio
from conftest import Engines
from transformers import AutoTokenizer
from vllm import SamplingParams as VllmSamplingParams

from covervlm.server.core.generation import GenerationRequest, Message, SamplingParams
from covervlm.server.engines.embedded.engine import TransformersEngine, TransformersEngineConfig
from covervlm.server.engines.vllm.engine import VllmEngine, VllmEngineConfig
from tests.zoo.checkpoints import ZOO

QUESTIONS = ["What is this?", "Wie heißt das Tier 🦜 in Zürich?", "これは何ですか", "Count.", "Why  not?"]


@pytest_asyncio.fixture(scope="session")
async def vicuna(tmp_path_factory):
    """vLLM's attention on a CPU has no heads narrower than 32."""
    path = tmp_path_factory.mktemp("vicuna")
    ZOO["llava-1.5-vicuna"].save(path, hidden_size=128)
    vllm = VllmEngine(VllmEngineConfig(str(path), vllm_args="--enforce-eager --max-model-len 1024"))
    await vllm.start()
    reference = TransformersEngine(TransformersEngineConfig(str(path), threads=1))
    await reference.start()
    yield Engines(path, vllm, reference)
    await vllm.stop()
    await reference.stop()


def ask(question, **sampling):
    params = SamplingParams(**{"temperature": 0.0, "max_tokens": 16, "logprobs": True, "ignore_eos": True} | sampling)
    return GenerationRequest("test", (Message("user", (question,)),), params)


def data(answer):
    return b"".join(bytes(entry.bytes) for chunk in answer.chunks for entry in chunk.logprobs)


async def test_both_engines_stream_the_same_text_with_the_space_before_the_first_word(vicuna, answer):
    first = []
    for question in QUESTIONS:
        mine, theirs = [await answer(engine, ask(question)) for engine in (vicuna.vllm, vicuna.reference)]
        assert mine.text == theirs.text
        assert data(mine) == data(theirs)
        assert [token for token, _ in mine.logprobs] == [token for token, _ in theirs.logprobs]
        assert data(mine).decode(errors="replace").rstrip("\ufffd") == mine.text.rstrip("\ufffd")
        first.append(mine.text[:1])
    assert " " in first


@pytest.mark.parametrize("engine", ["vllm", "reference"])
async def test_a_stop_string_takes_its_tokens_log_probabilities_with_it(vicuna, answer, engine):
    engine = getattr(vicuna, engine)
    whole = await answer(engine, ask(QUESTIONS[0]))
    for word in [token for token, _ in whole.logprobs if len(token) > 1 and "\ufffd" not in token][2:6]:
        got = await answer(engine, ask(QUESTIONS[0], stop=(word,)))
        assert got.text == whole.text[: whole.text.index(word)]
        assert data(got).decode(errors="replace").startswith(got.text)
        assert len(got.logprobs) <= [token for token, _ in whole.logprobs].index(word)


async def test_text_is_what_vllm_itself_answers(vicuna, answer):
    """With the space before the first word, which a SentencePiece tokenizer's decoder drops without the prompt."""
    llm, tokenizer = vicuna.vllm._llm, AutoTokenizer.from_pretrained(vicuna.checkpoint)
    params = VllmSamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
    first = []
    for number, question in enumerate(QUESTIONS):
        ids = tokenizer(f"USER: {question} ASSISTANT:").input_ids
        async for output in llm.generate({"prompt_token_ids": ids}, params, f"own-{number}"):
            whole = output.outputs[0]
        got = await answer(vicuna.vllm, ask(question))
        assert got.text == whole.text or "\ufffd" in whole.text
        first.append(whole.text[:1])
        assert tokenizer.decode(whole.token_ids, skip_special_tokens=True) in (whole.text, whole.text[1:])
    assert " " in first


async def test_hot_samples_have_the_bytes_of_their_text(vicuna, answer):
    for seed in range(6):
        sampling = {"temperature": 2.0, "seed": seed, "max_tokens": 60, "top_logprobs": 2, "frequency_penalty": 2.0}
        got = await answer(vicuna.vllm, ask(QUESTIONS[0], **sampling))
        text = data(got).decode(errors="replace")
        assert text.startswith(got.text)
        assert text[len(got.text) :] in ("", "\ufffd", "\ufffd\ufffd")
