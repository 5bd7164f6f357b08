"""A LLaVA-style architecture that this package does not know is one module and one line of the registry."""

import pytest
import torch
from transformers import (
    AutoProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)

from covervlm.server.core.generation import GenerationRequest, ImagePart, Message, PruningPolicy, SamplingParams
from covervlm.server.demo import model_path
from covervlm.server.engines.embedded.engine import TransformersEngine, TransformersEngineConfig
from covervlm.server.models import registry
from covervlm.server.models.llava import Llava, LlavaAdapter

QUESTION = "Which color does the star have?"


# The module: what both engines must know, and the adapter of the embedded one. Features of several layers are joined.


class VipLlava(Llava):
    """Every word guides, and the objective is sharper, to have facts of its own."""

    every_word = True
    pruner_params = {"tau_text": 0.05}  # noqa: RUF012


class VipLlavaAdapter(LlavaAdapter):
    describes = VipLlava


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    monkeypatch.setitem(registry.ARCHITECTURES, "VipLlavaForConditionalGeneration", (__name__, "VipLlava"))
    torch.manual_seed(0)
    processor = AutoProcessor.from_pretrained(model_path())
    tokenizer = processor.tokenizer
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.3,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    config = VipLlavaConfig(
        vision_config=vision, text_config=text, image_token_index=image_id, vision_feature_layer=[-2, 1, 3]
    )
    model = VipLlavaForConditionalGeneration(config).eval()
    torch.nn.init.normal_(model.model.multi_modal_projector.linear_2.weight, std=0.3)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(tmp_path)
    processor.image_processor.size = {"shortest_edge": 32}
    processor.image_processor.crop_size = {"height": 32, "width": 32}
    processor.patch_size = 8
    processor.save_pretrained(tmp_path)
    return tmp_path, model, AutoProcessor.from_pretrained(tmp_path)


async def test_it_answers_as_transformers_does_and_prunes_by_its_own_facts(checkpoint, reference, answer, noise):
    path, model, processor = checkpoint
    image = noise(50, 40)
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    expected = reference(model, processor, [{"role": "user", "content": content}], [image], 10)

    def ask(**pruning):
        sampling = SamplingParams(temperature=0.0, max_tokens=10, logprobs=True)
        message = Message("user", (ImagePart(image, "one"), QUESTION))
        return GenerationRequest("test", (message,), sampling, PruningPolicy(**pruning))

    engine = TransformersEngine(TransformersEngineConfig(str(path), threads=1))
    await engine.start()
    try:
        whole = await answer(engine, ask())
        pruned = await answer(engine, ask(keep_tokens=5))
        words = engine._adapter.question_embeddings(QUESTION)
    finally:
        await engine.stop()
    assert whole.choices[0].tokens == [processor.tokenizer.decode([token]) for token in expected.tokens]
    assert whole.prompt.prompt_tokens - pruned.prompt.prompt_tokens == 16 - 5
    ids = processor.tokenizer(f" Question {QUESTION.rstrip('?')}", add_special_tokens=False).input_ids
    assert torch.equal(words, model.get_input_embeddings()(torch.tensor(ids)))
