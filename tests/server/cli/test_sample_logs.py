"""Logs of lmms-eval as questions: rows made by the code of its writer, release by release.

`written` does what `save_results_samples` of its EvaluationTracker does to a sample, in the same order.
"""

import hashlib
import json

import pytest
from PIL import Image

from covervlm.server.cli.errors import CommandError
from covervlm.server.cli.questions import read_questions

SUFFIX = "\nAnswer the question using a single word or phrase."


def as_texts(value):
    """lmms-eval's sanitize_list."""
    return [as_texts(one) for one in value] if isinstance(value, list) else str(value)


def written(version, question, target, answer, doc_id, media=()):
    """One line of `*_samples_<task>.jsonl`."""
    doc = {"question_id": 100 + doc_id, "question": question, "category": "color" if doc_id % 2 else "place"}
    sample = {
        "doc_id": doc_id,
        "doc": doc,
        "target": target,
        "arguments": [question + SUFFIX, {"max_new_tokens": 16}, doc_id, "mme", "test"],
        "resps": [[answer]],
        "filtered_resps": [answer],
        "doc_hash": hashlib.sha256(json.dumps(doc).encode()).hexdigest(),
    }
    if version >= (0, 7):
        sample["token_counts"] = [{"input_tokens": 12, "output_tokens": 1, "reasoning_tokens": None}]
    if media:
        sample["input_media"] = list(media)
    sample["mme_score"] = {"question_id": 100 + doc_id, "score": 1.0}
    sample["input"] = sample["arguments"][0]
    sample["resps"], sample["filtered_resps"] = as_texts(sample["resps"]), as_texts(sample["filtered_resps"])
    if version >= (0, 7):
        for name in ("resps", "filtered_resps"):
            if isinstance(sample[name], list) and len(sample[name]) == 1:
                sample[name] = sample[name][0]
        if sample["resps"] == [sample["filtered_resps"]]:
            sample.pop("resps")
    elif version >= (0, 4) and sample["filtered_resps"] in (sample["resps"], sample["resps"][0]):
        sample.pop("resps")
    sample["target"] = str(sample["target"])
    if version >= (0, 4):
        sample.pop("arguments")
        sample.pop("doc")
    else:
        sample["arguments"] = dict(enumerate(sample["arguments"][1]))
    return json.dumps(sample, ensure_ascii=False)


@pytest.fixture
def log(tmp_path):
    def write(*lines):
        path = tmp_path / "20261127_101500_samples_mme.jsonl"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return write


@pytest.fixture
def shots(tmp_path):
    folder = tmp_path / "shots"
    folder.mkdir()
    for name in ("0.png", "1.jpg", "street.png"):
        Image.new("RGB", (8, 8)).save(folder / name)
    return folder


@pytest.mark.parametrize("version", [(0, 3), (0, 4), (0, 6), (0, 7, 2)])
def test_rows_of_every_release_are_questions_about_pictures_called_by_their_id(log, shots, version):
    path = log(written(version, "Wo, 星?", "left", "right", 0), written(version, "Color?", "red", "red", 1))
    first, second = read_questions(path, None, None, shots)
    assert (first.text, first.answer) == ("Wo, 星?" + SUFFIX, "left")
    assert (first.image, second.image) == (str(shots / "0.png"), str(shots / "1.jpg"))


def test_several_true_answers_are_all_right(log, shots):
    (question,) = read_questions(
        log(written((0, 7), "?", ["Dakota", "dakota digital", 7], "dakota", 0)), None, None, shots
    )
    assert question.answer == "Dakota"
    assert question.right("DAKOTA  digital")
    assert question.right("7")
    assert not question.right("Digital")


@pytest.mark.parametrize("target", ["", None, []])
def test_a_hidden_answer_is_none(log, shots, target):
    (question,) = read_questions(log(written((0, 7), "?", target, "dakota", 0)), None, None, shots)
    assert question.answer is None


def test_a_choice_by_likelihood_has_no_answer_in_words(log, shots):
    row = json.loads(written((0, 7), "?", 2, "x", 0)) | {"filtered_resps": [["-1.5", "False"], ["-0.2", "True"]]}
    (question,) = read_questions(log(json.dumps(row)), None, None, shots)
    assert question.answer is None


def test_addresses_of_pictures_are_followed(log, shots):
    url = "https://example.org/a.jpg"
    path = log(written((0, 7, 3), "A?", "a", "a", 8, [url]), written((0, 7, 3), "B?", "b", "b", 9, ["street.png"]))
    assert [question.image for question in read_questions(path, None, None, shots)] == [url, str(shots / "street.png")]
    inline = log(written((0, 7, 3), "A?", "a", "a", 8, ["data:image/png;base64,AAAA"]))
    assert read_questions(inline, None, None)[0].image == "data:image/png;base64,AAAA"


def test_fields_of_the_row_and_of_its_document_name_groups(log, shots):
    path = log(written((0, 3), "A?", "a", "a", 0), written((0, 3), "B?", "b", "b", 1))
    assert [question.group for question in read_questions(path, None, "category", shots)] == ["place", "color"]


@pytest.mark.parametrize(
    ("media", "folder", "message"),
    [
        ((), False, r"line 1: names no picture; give --pictures FOLDER, with 5\.png for this one"),
        ((), True, r"line 1: there is no .*shots/5\.png"),
        (("a.png", "b.png"), True, "line 1: has 2 pictures; only questions about one are asked"),
    ],
)
def test_a_row_without_its_one_picture_is_refused_by_line(log, shots, media, folder, message):
    path = log(written((0, 7, 3), "A?", "a", "a", 5, media))
    with pytest.raises(CommandError, match=message):
        read_questions(path, None, None, shots if folder else None)


def test_a_folder_that_is_none_is_refused(log, tmp_path):
    with pytest.raises(CommandError, match="is no folder of pictures"):
        read_questions(log(written((0, 7), "A?", "a", "a", 5)), None, None, tmp_path / "none")
