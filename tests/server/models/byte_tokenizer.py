"""A byte-level tokenizer without merges: a token for each byte, and special ones."""

from collections.abc import Sequence

from tokenizers.pre_tokenizers import ByteLevel
from transformers import Qwen2Tokenizer


def byte_tokenizer(specials: Sequence[str], **named: str) -> Qwen2Tokenizer:
    """named: special tokens by the names under which transformers' processors look for them."""
    vocabulary = {character: i for i, character in enumerate(sorted(ByteLevel.alphabet()))}
    return Qwen2Tokenizer(
        vocab=vocabulary,
        merges=[],
        unk_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        extra_special_tokens=list(specials),
        **named,
    )
