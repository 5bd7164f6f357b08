"""The demo models' tokenizers: byte-level BPE that lower-cases, in which every word of the questions is one token."""

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from demo_model.questions import NUMBERS, article, ask
from demo_model.scenes import COLOR_NAMES, SHAPES, make_scene
from demo_model.splits import FIRST_SEED

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% if message['content'] is string %}{{ message['content'] + ' ' }}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' ' }}{% endfor %}"
    "{% endif %}{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""LLaVA-1.5's chat format: `USER: <image>\\nquestion ASSISTANT:`."""

CAPTIONS = {
    "pair": ["a photo of {a} {c} {s}", "{a} {c} {s}", "a picture of {a} {c} {s}", "an image of {a} {c} {s}"],
    "shape": ["a photo of a {s}", "a {s}", "a picture of a {s}", "an image of a {s}"],
    "color": ["a photo of {a} {c} object", "{a} {c} object", "a photo of something {c}", "an image of {a} {c} thing"],
}
"""What the CLIP text tower is trained on, by what the caption names."""


def _train(
    specials: list[str], corpus: list[str], *, unknown: str, min_frequency: int, prefix_space: bool
) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token=unknown))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        min_frequency=min_frequency,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[AddedToken(token, normalized=False, special=True) for token in specials],
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def llava_tokenizer() -> PreTrainedTokenizerFast:
    """The language model's tokenizer; text outside the training vocabulary round-trips letter by letter."""
    corpus = []
    for i in range(300):
        for q in ask(make_scene(FIRST_SEED["vision"] + i), np.random.default_rng(i)):
            corpus.append(f"USER: \n{q.text} ASSISTANT: {q.answer}")
    others = ["yes", "no", "top", "bottom", "left", "right", "center", "a", "an", "and"]
    words = [*SHAPES, *COLOR_NAMES, *NUMBERS, *others]
    corpus += [" " + word for word in words] * 50
    specials = ["<unk>", "<s>", "</s>", "<pad>", "<image>"]
    tokenizer = _train(specials, corpus, unknown="<unk>", min_frequency=2, prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="left",
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
        extra_special_tokens={"image_token": "<image>"},
        chat_template=CHAT_TEMPLATE,
    )


def clip_tokenizer() -> PreTrainedTokenizerFast:
    """CLIP's conventions: `<|endoftext|>` has the highest id, which is where the text tower pools."""
    corpus = [
        caption.format(a=article(c), c=c, s=s)
        for captions in CAPTIONS.values()
        for caption in captions
        for c in COLOR_NAMES
        for s in SHAPES
    ]
    tokenizer = _train(["<|pad|>"], corpus, unknown="<|pad|>", min_frequency=1, prefix_space=True)
    start, end = "<|startoftext|>", "<|endoftext|>"
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in (start, end)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (start, end)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=start,
        eos_token=end,
        unk_token="<|pad|>",
        pad_token="<|pad|>",
        model_max_length=24,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )
