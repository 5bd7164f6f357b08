"""The words of a question that guide a selection (arXiv 2508.18264, as its released program extracts them)."""

import re

_WORD = re.compile(r"\b\w+\b")
_ANSWER_FORMATS = (
    "Answer the question using a single word or phrase.",
    "Answer with the option's letter from the given choices directly.",
)
_STOPPED = """
a an the is are was were be been being have has had do does did
it they he she we you i what where when why how who which
and or but so if then question answer
to for with by from at into onto upon
"""
_STOP_WORDS = frozenset(_STOPPED.split())


def all_words(text: str) -> list[str]:
    """Every word of `text` in order: runs of letters, digits and underscores."""
    return _WORD.findall(text)


def visual_words(question: str) -> list[str]:
    """The words of `question` that can name something visible, in order, their case kept.

    The two fixed instructions of the VQA benchmarks and the stop words are left out. If nothing else is there, the
    text's own whitespace-separated words are returned; none for an empty text. Image placeholders are not recognised:
    pass the text without them.
    """
    for instruction in _ANSWER_FORMATS:
        question = question.replace(instruction, "")
    words = [word for word in all_words(question) if word.lower() not in _STOP_WORDS]
    return words or question.split()
