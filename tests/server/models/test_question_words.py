import json
from pathlib import Path

import pytest

from covervlm.server.models.processor import all_words, visual_words

CASES = json.loads((Path(__file__).parents[2] / "golden" / "text_and_padding.json").read_text())["keywords"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["question"][:30] or "empty")
def test_the_words_of_a_question_are_those_of_the_published_program(case):
    assert " ".join(visual_words(case["question"])) == case["words"]


def test_stop_words_are_dropped_in_any_case():
    assert visual_words("THE Cat AND a dOG Were At Home") == ["Cat", "dOG", "Home"]


def test_a_question_of_stop_words_keeps_its_text_without_the_answer_format():
    assert visual_words("What is it?\nAnswer the question using a single word or phrase.") == ["What", "is", "it?"]


def test_words_are_runs_of_word_characters_in_any_script():
    assert visual_words("Où est l'café-crème? 東京 タワー") == ["Où", "est", "l", "café", "crème", "東京", "タワー"]


@pytest.mark.parametrize("question", ["", "   ", "\n"])
def test_a_blank_question_has_no_words(question):
    assert visual_words(question) == []


def test_all_words_keeps_stop_words():
    assert all_words("Question: What is the bus-stop?") == ["Question", "What", "is", "the", "bus", "stop"]
