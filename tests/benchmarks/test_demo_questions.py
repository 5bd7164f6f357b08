"""What `covervlm tune` is given of the demo's scenes."""

import sys

import demo_questions
from evaluation.question_sets import question_set
from PIL import Image

from covervlm.server.cli.questions import read_questions


def test_the_file_has_the_questions_with_their_pictures_answers_and_kinds(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["demo_questions.py", str(tmp_path / "new"), "--count", "8"])
    demo_questions.main()
    items = question_set("standard", 8, split="tuning")
    read = read_questions(tmp_path / "new" / "questions.jsonl", None, "kind")
    assert [(one.text, one.answer, one.group) for one in read] == [(i.question, i.answer, i.kind) for i in items]
    assert {Image.open(one.image).size for one in read} == {(336, 336)}
