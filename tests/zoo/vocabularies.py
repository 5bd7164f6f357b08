"""Tokenizers of the checkpoints that people serve, from the vocabularies that packages ship.

Llama 2, which is Vicuna's too, and Mistral: Mistral's SentencePiece models in the form of Llama 2's published
tokenizer.json. Llama 3: its special tokens and pipeline on tekken's byte pairs. Qwen, from 2 on, and
InternVL3: Qwen's byte pairs.
"""

import base64
import json
import os
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers.convert_slow_tokenizer import TikTokenConverter, generate_merges
from transformers.utils.sentencepiece_model_pb2_new import ModelProto

PACKAGES = Path(__file__).parents[2] / ".venv-zoo"
"""Where constraints-zoo.txt is installed, its files to be read and nothing to be imported from."""

_LLAMA_3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_WORDS = _LLAMA_3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")
_QWEN_2_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_QWEN_SPECIALS = (
    *(*_QWEN_2_SPECIALS, "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>"),
    *("<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
    *("<|image_pad|>", "<|video_pad|>"),
)
_QWEN_ADDED = (
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"),
    *("<|repo_name|>", "<|file_sep|>"),
)
_QWEN_3_ADDED = ("<tool_response>", "</tool_response>", "<think>", "</think>")
_INTERNVL_SPECIALS = (
    *("<img>", "</img>", "<IMG_CONTEXT>", "<quad>", "</quad>"),
    *("<ref>", "</ref>", "<box>", "</box>", "<video>"),
)


def shipped(pattern: str) -> Path:
    """The one file of the packages that the pattern matches."""
    found = sorted(PACKAGES.glob(pattern))
    if not found:
        raise FileNotFoundError(
            f"{PACKAGES / pattern}: run `make {PACKAGES.name}/.ready`, which fetches the vocabularies"
        )
    return found[0]


def llama_2() -> Tokenizer:
    return _sentencepiece("tokenizer.model.v1", ["<image>", "<pad>"])


def mistral_v2() -> Tokenizer:
    return _sentencepiece("*.model.v2")


def mistral_v3() -> Tokenizer:
    return _sentencepiece("*.model.v3")


def mistral_v7() -> Tokenizer:
    return _sentencepiece("*.model.v7")


def mistral_v7_multimodal() -> Tokenizer:
    return _sentencepiece("*.model.v7m1")


def llama_3(size: int = 128_000) -> Tokenizer:
    tokenizer = _byte_pairs(_tekken("240718", size), _LLAMA_3_WORDS)
    reserved = [f"<|reserved_special_token_{number}|>" for number in range(251)]
    named = {0: "<|begin_of_text|>", 1: "<|end_of_text|>", 6: "<|start_header_id|>", 7: "<|end_header_id|>"}
    named |= {9: "<|eot_id|>"}
    rest = iter(reserved)
    names = [named.get(place) or next(rest) for place in range(256)]
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in [*names, "<image>", "<pad>"]])
    begin = tokenizer.token_to_id("<|begin_of_text|>")
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single="<|begin_of_text|> $A", pair=None, special_tokens=[("<|begin_of_text|>", begin)]
            ),
        ]
    )
    return tokenizer


def tekken() -> Tokenizer:
    return _byte_pairs(_tekken("240911", 130_072), _tekken_file("240911")["config"]["pattern"])


def qwen_2(size: int = 151_643) -> Tokenizer:
    """As LLaVA-OneVision has it."""
    return _with(_qwen(size), [*_QWEN_2_SPECIALS, "<image>", "<video>"])


def qwen_2_5(size: int = 151_643) -> Tokenizer:
    return _with(_qwen(size), _QWEN_SPECIALS, _QWEN_ADDED)


def qwen_3(size: int = 151_643) -> Tokenizer:
    return _with(_qwen(size), _QWEN_SPECIALS, [*_QWEN_ADDED, *_QWEN_3_ADDED])


def internvl_3(size: int = 151_643) -> Tokenizer:
    return _with(qwen_2_5(size), _INTERNVL_SPECIALS)


def _qwen(size: int) -> Tokenizer:
    lines = shipped("dashscope/resources/qwen.tiktoken").read_bytes().splitlines()[:size]
    tokenizer = _byte_pairs(
        {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, lines)}, _QWEN_WORDS
    )
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def _with(tokenizer: Tokenizer, special: Sequence[str], added: Sequence[str] = ()) -> Tokenizer:
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in special])
    tokenizer.add_tokens([AddedToken(name, normalized=False, special=False) for name in added])
    return tokenizer


VOCABULARIES: dict[str, Callable[[], Tokenizer]] = {
    build.__name__: build
    for build in (llama_2, mistral_v2, mistral_v3, mistral_v7, mistral_v7_multimodal, llama_3, tekken, qwen_2_5)
}
SMALL: dict[str, Callable[[], Tokenizer]] = {
    f"{build.__name__}_small": partial(build, 24_000) for build in (llama_3, qwen_2, qwen_2_5, qwen_3, internvl_3)
}
"""The same with their most frequent byte pairs alone: what loads ten times in a test session must load fast."""


@cache
def vocabulary(name: str) -> Tokenizer:
    """One of VOCABULARIES or SMALL; built once for all sessions, since merges take seconds to work out."""
    file = PACKAGES / "built" / f"{name}-{Path(__file__).stat().st_mtime_ns}.json"
    if not file.exists():
        file.parent.mkdir(exist_ok=True)
        mine = file.with_suffix(f".{os.getpid()}")
        (VOCABULARIES | SMALL)[name]().save(str(mine))
        for old in file.parent.glob(f"{name}-*.json"):
            old.unlink(missing_ok=True)
        mine.replace(file)
    return Tokenizer.from_file(str(file))


def _sentencepiece(model: str, added: list[str] | None = None) -> Tokenizer:
    """As the Llama-2 family publishes it: spaces are "▁", what has no piece is spelt in bytes."""
    pieces = _pieces(shipped(f"mistral_common/data/{model}"))
    vocabulary = {piece: place for place, (piece, _, _) in enumerate(pieces)}
    merges = generate_merges(vocabulary, {piece: score for piece, score, _ in pieces})
    tokenizer = Tokenizer(BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    control = [piece for piece, _, kind in pieces if kind in (2, 3)]
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in [*control, *(added or [])]])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    return tokenizer


def _pieces(model: Path) -> list[tuple[str, float, int]]:
    """Every piece with its score and SentencePiece's kind: 1 normal, 2 unknown, 3 control, 4 user-defined, 6 byte."""
    return [(piece.piece, piece.score, piece.type) for piece in ModelProto.FromString(model.read_bytes()).pieces]


def _byte_pairs(ranks: dict[bytes, int], words: str) -> Tokenizer:
    class Converter(TikTokenConverter):
        @staticmethod
        def load_tiktoken_bpe(_: Any) -> dict[bytes, int]:
            return ranks

    tokenizer = Converter(ranks).tokenizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


@cache
def _tekken_file(version: str) -> dict[str, Any]:
    return json.loads(shipped(f"mistral_common/data/tekken_{version}.json").read_text())


def _tekken(version: str, size: int) -> dict[bytes, int]:
    return {base64.b64decode(entry["token_bytes"]): entry["rank"] for entry in _tekken_file(version)["vocab"][:size]}
