"""Text and log probabilities of any sequence of tokens, for every real vocabulary."""

import importlib
import itertools
import random
import re
import sys
from types import SimpleNamespace

import pytest
from tokenizers.decoders import DecodeStream

from covervlm.server.core.generation import TokenLogprob
from covervlm.server.engines.detokenizer import Detokenizer, Vocabulary
from tests.zoo.vocabularies import PACKAGES, SMALL, VOCABULARIES, shipped, vocabulary

SENTENCEPIECE = {
    "llama_2": "tokenizer.model.v1",
    "mistral_v2": "*.model.v2",
    "mistral_v3": "*.model.v3",
    "mistral_v7": "*.model.v7",
    "mistral_v7_multimodal": "*.model.v7m1",
}
PROMPT = "USER: What is it? ASSISTANT:"
TEXTS = [
    " The cat sits on a mat.",
    "The cat  sits\n\n    on a mat , they 'll say .",
    " a🦜b 👩‍👩‍👧 日本語 हिन्दी العربية \u200b e\u0301 \x00\t\r\n",
    "<0xE2> <unk> ▁ \ufffd Ġ Ċ <|im_end|x",
    " naïve Ὀδυσσεύς 한국어 𝔘𝔫𝔦𝔠𝔬𝔡𝔢",
]
SMALLER = [name for name in SMALL if name.removesuffix("_small") not in VOCABULARIES]
"""Vocabularies that are here at no full size: they differ from those that are in their added tokens."""
BEYOND = 64
"""Ids that a model's logits may have beyond its tokenizer's."""
BYTES = re.compile("<0x[0-9A-F]{2}>")


@pytest.fixture(scope="session", params=[*VOCABULARIES, *SMALLER])
def tokens(request):
    """One vocabulary: its tokenizer, a stand-in for transformers' around it, and which of its ids are bytes alone."""
    backend = vocabulary(request.param)
    names = [backend.id_to_token(i) for i in range(backend.get_vocab_size())]
    fallback = [i for i, name in enumerate(names) if BYTES.fullmatch(name)]
    partial = fallback or [i for i, name in enumerate(names) if "\ufffd" in backend.decode([i])]
    tokenizer = Wrapped(backend)
    special = {i for i, token in backend.get_added_tokens_decoder().items() if token.special}
    silent = special | set(range(len(names), len(names) + BEYOND))
    return SimpleNamespace(
        name=request.param, backend=backend, tokenizer=tokenizer, partial=partial, fallback=set(fallback), silent=silent
    )


class Wrapped:
    def __init__(self, backend):
        self.backend_tokenizer = backend


def random_sequences(tokens, count=3000):
    """Ids of every kind: words, special tokens, ids beyond the tokenizer's, bytes in and out of order."""
    dice = random.Random(0)
    size = tokens.backend.get_vocab_size()
    for _ in range(count):
        share = dice.choice([0.1, 0.5, 0.95])
        yield [
            dice.choice(tokens.partial) if dice.random() < share else dice.randrange(size + BEYOND)
            for _ in range(dice.randint(1, 40))
        ]


def pieces(tokens, ids, stop=()):
    detokenizer = Detokenizer(tokens.tokenizer, stop)
    out = [detokenizer.feed(token) for token in ids]
    return [*out, detokenizer.flush()]


def whole(tokens, ids):
    """What the tokenizer itself makes of an answer after a prompt."""
    prompt = tokens.backend.encode(PROMPT).ids
    decoded = tokens.backend.decode([*prompt, *ids], skip_special_tokens=True)
    start = tokens.backend.decode(prompt, skip_special_tokens=True)
    assert decoded.startswith(start)
    return decoded[len(start) :]


def ends_unfinished(text, shown):
    """Whether the text is what was shown, or that and the beginning of a character: two U+FFFD for half a surrogate."""
    return text.startswith(shown) and text[len(shown) :] in ("", "\ufffd", "\ufffd\ufffd")


def runs(tokens, ids):
    """(whether they are byte tokens, ids) of each run of a sequence; what makes no text ends no run."""
    shown = [i for i in ids if i not in tokens.silent]
    return [(is_bytes, list(run)) for is_bytes, run in itertools.groupby(shown, lambda i: i in tokens.fallback)]


def spelt(tokens, run):
    return bytes(int(tokens.backend.id_to_token(i)[3:5], 16) for i in run)


def is_text(data):
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_random_sequences_never_fail_and_join_to_what_the_tokenizer_decodes_but_for_incomplete_characters(tokens):
    """An unfinished character at the very end, which the tokenizer shows as U+FFFD, is left out. But for that, exactly.

    With byte fallback the tokenizer makes U+FFFD of every byte of a run that is not UTF-8 as a whole. A stream has
    shown the run's first characters by then, so that it keeps all characters of the run and has U+FFFD for the rest.
    """
    compared = 0
    for ids in random_sequences(tokens):
        joined, expected = "".join(pieces(tokens, ids)), whole(tokens, ids)
        spoilt = [run for is_bytes, run in runs(tokens, ids) if is_bytes and not is_text(spelt(tokens, run))]
        if not spoilt:
            assert ends_unfinished(expected, joined)
            compared += 1
            continue
        # What the tokenizer spoils is set right run by run; all else is its own.
        right = []
        for is_bytes, run in runs(tokens, ids):
            if is_bytes and not is_text(spelt(tokens, run)):
                right.append(spelt(tokens, run).decode(errors="replace"))
            else:
                right.append(whole(tokens, run))
        assert ends_unfinished("".join(right), joined)
    assert compared == 3000 if not tokens.fallback else compared > 300


@pytest.mark.parametrize("text", TEXTS)
def test_the_text_is_that_of_a_stream_that_has_read_the_prompt(tokens, text):
    """As vLLM streams: a DecodeStream that begins with the prompt's tokens."""
    prompt = tokens.backend.encode(PROMPT).ids
    ids = tokens.backend.encode(PROMPT + text).ids[len(prompt) :]
    if tokens.backend.encode(PROMPT + text).ids[: len(prompt)] != prompt:
        ids = tokens.backend.encode(text, add_special_tokens=False).ids
    stream = DecodeStream(prompt, skip_special_tokens=True)
    expected = "".join(stream.step(tokens.backend, i) or "" for i in ids)
    assert "".join(pieces(tokens, ids)) == expected


@pytest.fixture(scope="session")
def sentencepiece():
    """The package itself, from where the vocabularies lie, for this once."""
    sys.path.insert(0, str(PACKAGES))
    try:
        return importlib.import_module("sentencepiece")
    finally:
        sys.path.remove(str(PACKAGES))


@pytest.mark.parametrize("tokens", SENTENCEPIECE, indirect=True)
def test_sentencepiece_reads_random_sequences_alike(tokens, sentencepiece):
    """SentencePiece keeps the characters of a run of bytes too; of what is none it makes more U+FFFD or fewer."""
    model = sentencepiece.SentencePieceProcessor(str(shipped(f"mistral_common/data/{SENTENCEPIECE[tokens.name]}")))
    before = model.encode("a")
    for ids in random_sequences(tokens):
        shown = [i for i in ids if i < model.get_piece_size() and i not in tokens.silent]
        expected = model.decode([*before, *shown])[1:]
        joined = "".join(pieces(tokens, shown))
        assert squeezed(joined).rstrip("\ufffd") == squeezed(expected).rstrip("\ufffd")


def squeezed(text):
    return re.sub("\ufffd+", "\ufffd", text)


@pytest.mark.parametrize("stop", [(), ("e",), ("the", " a"), ("\ufffd",)], ids=repr)
def test_the_bytes_of_the_log_probabilities_are_those_of_the_text(tokens, stop):
    """A token that a stop string cuts in two is there whole; one that gives no character yet waits for it."""
    for ids in random_sequences(tokens, 300):
        vocabulary, detokenizer = Vocabulary(tokens.tokenizer), Detokenizer(tokens.tokenizer, stop)
        text, data = "", b""
        for place, token in enumerate(ids):
            text += detokenizer.feed(token, vocabulary.entry(token, -0.5))
            ended = detokenizer.stopped or place == len(ids) - 1
            text += detokenizer.flush() if ended and not detokenizer.stopped else ""
            entries = detokenizer.logprobs(ended=ended)
            assert all(entry.token == bytes(entry.bytes).decode(errors="replace") for entry in entries)
            data += b"".join(bytes(entry.bytes) for entry in entries)
            if not stop:
                assert ends_unfinished(data.decode(errors="replace"), text)
            if ended:
                break
        if detokenizer.stopped:
            last = bytes(entries[-1].bytes).decode(errors="replace") if entries else ""
            assert data.decode(errors="replace").startswith(text)
            assert len(data.decode(errors="replace")) - len(text) <= max(len(last) - 1, 1)
        else:
            assert ends_unfinished(data.decode(errors="replace"), text)


def test_special_tokens_have_their_name_among_alternatives_and_no_place_in_the_text(tokens):
    vocabulary = Vocabulary(tokens.tokenizer)
    for token, added in tokens.backend.get_added_tokens_decoder().items():
        if added.special:
            assert vocabulary.bytes_of(token) == b""
            assert vocabulary.entry(token, -1.0) == TokenLogprob(added.content, tuple(added.content.encode()), -1.0)
        else:
            assert vocabulary.bytes_of(token).decode() == added.content


def test_ids_beyond_the_tokenizer_make_no_text(tokens):
    beyond = tokens.backend.get_vocab_size() + 3
    assert pieces(tokens, [beyond]) == ["", ""]
    assert Vocabulary(tokens.tokenizer).entry(beyond, -1.0) == TokenLogprob("", (), -1.0)
