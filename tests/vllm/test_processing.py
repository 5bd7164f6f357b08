"""The front end's side of pruning: layouts, placeholder counts and the user's words, without a running engine."""

import pytest
from PIL import Image
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.exceptions import VLLMValidationError
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.processing import ProcessorInputs
from vllm.multimodal.processing.context import TimingContext

from covervlm.server.core.generation import Message
from covervlm.server.engines.vllm.plugin.question import UserTurns
from covervlm.server.models.processor import ChatProcessor

SIZES = [(336, 336), (64, 64), (90, 60), (100, 30), (20, 90), (33, 60), (56, 84), (640, 200)]
TURNS = ["is there a star ?", "yes", "what color is the circle ?", "red", "how many squares are there ?"]


@pytest.fixture(scope="module", params=["demo", "llava_next", "llava_onevision", "internvl", "qwen2_5_vl", "qwen3_vl"])
def processor(request, checkpoints):
    arguments = AsyncEngineArgs(model=str(checkpoints[request.param]), dtype="float32", enforce_eager=True)
    return MULTIMODAL_REGISTRY.create_processor(arguments.create_engine_config().model_config)


def apply(processor, images, option, question="what color is the circle ?"):
    chat = ChatProcessor(processor.info.get_hf_processor(), processor.placeholders)
    token = processor.info.get_hf_processor().image_token
    ids = chat.tokenizer(token * len(images) + question).input_ids
    items = processor.info.parse_mm_data({"image": images})
    inputs = ProcessorInputs(ids, items, hf_processor_mm_kwargs={} if option is None else {"vision_prune": option})
    return processor.apply(inputs, TimingContext(enabled=False))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_layout_has_as_many_tokens_as_vllm_gives_the_image(processor, size):
    unpruned = apply(processor, [Image.new("RGB", size)], None)
    layout = processor.layout(*size, {})
    assert layout.total == unpruned["mm_placeholders"]["image"][0].get_num_embeds()
    assert layout.prunable == sum(len(set(part.rows.tolist())) for part in layout.parts) <= layout.total


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_placeholders_are_as_many_as_will_be_kept(processor, size):
    for option in ({"keep_tokens": 3}, {"keep_ratio": 0.5}, {"keep_tokens": 10_000}, {"method": "none"}):
        [placeholder] = apply(processor, [Image.new("RGB", size)], option)["mm_placeholders"]["image"]
        layout = processor.layout(*size, {})
        budget = option.get("keep_tokens") or round(option.get("keep_ratio", 1) * layout.prunable)
        kept = layout.total if budget >= layout.prunable else layout.kept(budget)
        assert placeholder.get_num_embeds() == kept


def test_two_images_have_counts_of_their_own_and_one_may_stay_whole(processor):
    images = [Image.new("RGB", (90, 60)), Image.new("RGB", (64, 64), "red")]
    whole = [processor.layout(*image.size, {}).total for image in images]
    few, all_of_it = apply(processor, images, {"keep_tokens": [2, 10_000]})["mm_placeholders"]["image"]
    assert (few.get_num_embeds(), all_of_it.get_num_embeds()) == (processor.layout(90, 60, {}).kept(2), whole[1])


def test_cache_keys_separate_what_is_kept_and_nothing_else(processor):
    image = [Image.new("RGB", (90, 60), "blue")]

    def key(option, question="what color is the circle ?"):
        return apply(processor, image, option, question)["mm_hashes"]["image"][0]

    other = "how many squares are there ?"
    assert key({"keep_tokens": 2}) == key({"keep_tokens": 2})
    assert key({"keep_tokens": 2}) != key({"keep_tokens": 2}, other)
    assert key({"keep_tokens": 2}) != key({"keep_tokens": 3})
    assert key({"keep_tokens": 2}) != key({"keep_tokens": 2, "method": "vision_coverage"})
    assert key({"keep_tokens": 2, "method": "divprune"}) == key({"keep_tokens": 2, "method": "divprune"}, other)
    assert key({"keep_tokens": 2, "question": other}) == key({"keep_tokens": 2, "question": other}, other)
    assert key({"keep_tokens": 10_000}) == key(None) == key(None, other) == key({"method": "none"})


def test_the_users_turns_are_told_from_the_template(processor):
    chat = ChatProcessor(processor.info.get_hf_processor(), processor.placeholders)
    for count in (1, 3, 5):
        messages = [Message("user" if i % 2 == 0 else "assistant", (text,)) for i, text in enumerate(TURNS[:count])]
        turns = UserTurns(chat).texts(chat.tokenize(messages))
        assert [turn.split() for turn in turns] == [text.split() for text in TURNS[:count:2]]


@pytest.mark.parametrize("option", [{"coverage": 0.5}, {"keep_tokens": 0}, {"keep_tokens": [1, 1]}, {"tokens": 3}, []])
def test_a_bad_option_is_a_validation_error(processor, option):
    with pytest.raises(VLLMValidationError):
        apply(processor, [Image.new("RGB", (64, 64))], option)
