"""Every file of the corpora, whether a seed or a find that was mended, is read within the bounds and as expected."""

import importlib
from pathlib import Path

import pytest

from tests.fuzz.bounds import TooLarge, TooSlow, bounded

CORPUS = Path(__file__).parent / "corpus"
FILES = sorted(path.relative_to(CORPUS) for path in CORPUS.glob("*/*"))


@pytest.mark.parametrize("file", FILES, ids=str)
def test_the_bytes_are_read_or_refused_as_they_should_be(file):
    harness = importlib.import_module(f"tests.fuzz.fuzz_{file.parent}")
    bounded(harness.target, (CORPUS / file).read_bytes())


def test_every_harness_has_a_corpus_and_every_corpus_a_harness():
    harnesses = {path.stem.removeprefix("fuzz_") for path in Path(__file__).parent.glob("fuzz_*.py")}
    assert {file.parent.name for file in FILES} == harnesses


def test_the_bounds_hold_a_parser_to_time_and_memory():
    with pytest.raises(TooSlow):
        bounded(lambda data: sum(range(3 * 10**7)), b"")
    with pytest.raises(TooLarge):
        bounded(lambda data: bytearray(100 * 2**20), b"")
