"""`covervlm extract`: a folder becomes a table, whatever ends the command on the way."""

import csv
import json
import signal
import subprocess
import sys

import pytest
from PIL import Image

from covervlm.server.cli import extract
from covervlm.server.core.errors import EngineError, InvalidRequest
from covervlm.server.core.generation import GenerationChunk
from tests.server.api.scripted import prompt_report

SCHEMA = {
    "type": "object",
    "properties": {
        "size": {"type": "array", "items": {"type": "integer"}, "description": "How large is it?"},
        "note": {"type": ["string", "null"]},
        "even": True,
    },
}
COLUMNS = ["image", *SCHEMA["properties"]]


def facts(request):
    """What the scripted model sees: it differs from picture to picture."""
    image = request.images[0].image
    number = sum(image.resize((1, 1)).getpixel((0, 0)))
    return {
        "size": [*image.size, number],
        "note": None if number % 3 == 0 else f'a "{number}",\nor so',
        "even": number % 2 == 0,
    }


@pytest.fixture
def script(served_engine, monkeypatch):
    """script(answer): the server's model answers with the JSON of answer(request), where that is no text already."""

    def say(answer=facts):
        def steps(request):
            made = answer(request)
            if isinstance(made, Exception):
                return [made]
            text = made if isinstance(made, str) else json.dumps(made)
            return [GenerationChunk(0, text, 1, (), "stop", prompt_report(request))]

        monkeypatch.setattr(served_engine, "script", steps)
        served_engine.requests.clear()
        return served_engine.requests

    return say


@pytest.fixture
def schema(tmp_path):
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA))
    return path


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.csv"


def table(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def expected(folder, requests, without=None):
    """The table's rows, by what the requests showed."""
    seen = {request.images[0].image.tobytes(): facts(request) for request in requests}
    rows = []
    for path in sorted(path for path in folder.glob("*.png") if path.name != without):
        one = seen[Image.open(path).convert("RGB").tobytes()]
        rows.append([str(path), json.dumps(one["size"]), one["note"] or "", json.dumps(one["even"])])
    return rows


def test_every_picture_is_a_row_and_every_property_a_column(served, script, run, folder, schema, out):
    requests = script()
    assert run("extract", "--url", served, folder, "--schema", schema, "-o", out, "--keep-tokens", 30) == (0, "", "")
    first, *rows = table(out)
    assert first == COLUMNS
    assert sorted(rows) == expected(folder, requests)
    assert len(rows) == len(requests) == 12
    sampling = requests[0].sampling
    held = json.loads(sampling.grammar.text)
    assert held == {**SCHEMA, "required": list(SCHEMA["properties"]), "additionalProperties": False}
    assert (sampling.grammar.lenient, sampling.temperature, requests[0].pruning.keep_tokens) == (False, 0, 30)
    assert json.dumps(held["properties"]) in requests[0].messages[0].text


def test_the_question_may_be_ones_own(served, script, run, folder, schema, out):
    requests = script()
    run("extract", "--url", served, folder / "00.png", "--schema", schema, "-o", out, "--question", "Read it.")
    assert [request.messages[0].text for request in requests] == ["Read it."]


def test_each_property_may_be_asked_for_by_its_description_and_words_as_words(
    served, script, run, folder, tmp_path, out
):
    def answer(request):
        grammar = request.sampling.grammar
        if grammar.kind == "choice":
            assert json.loads(grammar.text) == ["red", "dark red", " red", " dark red"]
            return " dark red"
        (name,) = json.loads(grammar.text)["properties"]
        return {name: facts(request)[name]}

    properties = {**SCHEMA["properties"], "color": {"enum": ["red", "dark red"], "description": "Which color?"}}
    (tmp_path / "schema.json").write_text(json.dumps({**SCHEMA, "properties": properties}))
    requests = script(answer)
    arguments = ["--schema", tmp_path / "schema.json", "-o", out, "--one-by-one"]
    assert run("extract", "--url", served, folder, *arguments) == (0, "", "")
    asked = {request.messages[0].text for request in requests}
    assert asked == {"How large is it?", "What is the note?", "What is the even?", "Which color?"}
    assert sorted(table(out)[1:]) == [[*row, "dark red"] for row in expected(folder, requests)]


KILLED = """
import os, signal
from covervlm.server.cli import main, table
add, added = table.CsvTable.add, []
def counted(self, row):
    add(self, row)
    added.append(row)
    if len(added) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
table.CsvTable.add = counted
main({arguments})
"""
"""Ends itself after five rows, as the system may end it at any moment."""


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("cut", [0, 3])
def test_what_was_killed_goes_on_without_asking_for_a_row_again(
    served, script, run, folder, schema, tmp_path, suffix, cut
):
    parquet = pytest.importorskip("pyarrow.parquet") if suffix == ".parquet" else None
    out = tmp_path / f"out{suffix}"
    rows = out if suffix == ".csv" else tmp_path / "out.parquet.rows"
    arguments = ["extract", "--url", served, folder, "--schema", schema, "-o", out]
    requests = script()
    program = KILLED.format(arguments=[str(argument) for argument in arguments], rows=str(rows))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(table(rows)) == 1 + 5
    with rows.open("r+b") as file:
        file.truncate(rows.stat().st_size - cut)
    asked = len(requests)
    assert asked <= 5 + extract.AT_ONCE
    assert run(*arguments) == (0, "", "")
    # By pictures, since the server may see the killed program's last requests only now.
    assert len({request.images[0].digest for request in requests[asked:]}) == 12 - 5 + (cut > 0)
    if suffix == ".csv":
        assert sorted(table(out)[1:]) == expected(folder, requests)
    else:
        names = parquet.read_table(out).column("image").to_pylist()
        assert sorted(names) == [str(path) for path in sorted(folder.glob("*.png"))]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "'=1"])
def test_no_text_is_a_formula_of_a_spreadsheet(served, script, run, folder, schema, out, monkeypatch, text):
    monkeypatch.chdir(folder)
    picture = folder / f"{text.strip().replace('(', '').replace(')', '')}.png"
    picture.write_bytes((folder / "00.png").read_bytes())
    requests = script(lambda request: {"size": [-1], "note": text, "even": -1})
    arguments = ["extract", "--url", served, "--schema", schema, "-o", out, "--", picture.name]
    try:
        assert run(*arguments) == (0, "", "")
        assert table(out)[1:] == [[f"'{picture.name}", "[-1]", f"'{text}", "-1"]]
        assert (run(*arguments), len(requests)) == ((0, "", ""), 1)
    finally:
        picture.unlink()


def test_a_finished_table_is_left_as_it_is(served, script, run, folder, schema, out):
    requests = script()
    arguments = ["extract", "--url", served, folder, "--schema", schema, "-o", out]
    run(*arguments)
    before, asked = out.read_bytes(), len(requests)
    assert run(*arguments) == (0, "", "")
    assert (out.read_bytes(), len(requests)) == (before, asked)


def test_pictures_that_cannot_be_used_are_listed_and_asked_about_again(
    served, script, run, folder, broken, schema, out
):
    requests = script()
    arguments = ["extract", "--url", served, broken, "--schema", schema, "-o", out]
    status, printed, err = run(*arguments)
    assert (status, printed) == (1, "")
    assert f"{broken}/03b.png: " in err
    assert f"{broken}/zz.jpg: The data is not an image" in err
    assert err.endswith("2 of the pictures could not be used\n")
    assert sorted(table(out)[1:]) == expected(broken, requests, without="03b.png")
    (broken / "zz.jpg").rename(out.parent / "zz.jpg")
    try:
        assert run(*arguments)[2].count("\n") == 2
    finally:
        (out.parent / "zz.jpg").rename(broken / "zz.jpg")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ('{"size": [', "does not follow its schema"),
        (EngineError("The answer had to be abandoned."), "The answer had to be abandoned."),
        (InvalidRequest("The prompt is too long.", param="messages"), "The prompt is too long."),
    ],
)
def test_one_bad_answer_costs_its_picture_alone(served, script, run, folder, schema, out, answer, words):
    bad = Image.open(folder / "04.png").convert("RGB").tobytes()
    script(lambda request: answer if request.images[0].image.tobytes() == bad else facts(request))
    status, _, err = run("extract", "--url", served, folder, "--schema", schema, "-o", out)
    assert (status, len(table(out))) == (1, 12)
    assert f"{folder}/04.png: " in err
    assert words in err


def test_what_would_be_refused_for_any_picture_ends_the_command(served, script, run, folder, schema, out):
    requests = script(lambda request: InvalidRequest("No answer can be held to this.", param="response_format"))
    status, _, err = run("extract", "--url", served, folder, "--schema", schema, "-o", out)
    assert (status, err) == (1, "covervlm extract: error: No answer can be held to this.\n")
    assert len(requests) < 12 or extract.AT_ONCE >= 12
    assert table(out) == [COLUMNS]


@pytest.mark.parametrize(
    ("schema_text", "name", "words"),
    [
        ('{"type": "object"}', "out.csv", "which become the columns"),
        (json.dumps(SCHEMA), "out.txt", "ends in .csv or .parquet"),
        (json.dumps(SCHEMA), "other.csv", "is a table of other columns: a, b"),
        ("[]", "out.csv", "holds no JSON schema"),
    ],
)
def test_what_is_wrong_with_the_arguments_is_told_before_anything_is_asked(
    served, script, run, folder, tmp_path, schema_text, name, words
):
    requests = script()
    (tmp_path / "schema.json").write_text(schema_text)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    status, _, err = run(
        "extract", "--url", served, folder, "--schema", tmp_path / "schema.json", "-o", tmp_path / name
    )
    assert (status, requests) == (2, [])
    assert words in err
    assert (tmp_path / "other.csv").read_text() == "a,b\n1,2\n"


def test_parquet_without_pyarrow_is_told(served, run, folder, schema, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    status, _, err = run("extract", "--url", served, folder, "--schema", schema, "-o", tmp_path / "out.parquet")
    assert status == 2
    assert "pip install pyarrow" in err


def test_parquet_has_the_rows_of_the_csv_with_their_types(served, script, run, folder, schema, out):
    parquet = pytest.importorskip("pyarrow.parquet")
    script()
    for path in (out, out.with_suffix(".parquet")):
        assert run("extract", "--url", served, folder, "--schema", schema, "-o", path) == (0, "", "")
    read = parquet.read_table(out.with_suffix(".parquet"))
    assert [str(field.type) for field in read.schema] == ["string", "string", "string", "bool"]
    rows = [[row["image"], row["size"], row["note"] or "", json.dumps(row["even"])] for row in read.to_pylist()]
    assert sorted(rows) == sorted(table(out)[1:])
    assert [path.name for path in out.parent.glob("out.parquet*")] == ["out.parquet"]


def test_a_property_may_not_take_the_place_of_the_pictures_name(served, run, folder, tmp_path):
    (tmp_path / "image.json").write_text(json.dumps({"type": "object", "properties": {"image": {"type": "string"}}}))
    out = tmp_path / "out.csv"
    status, _, err = run("extract", "--url", served, folder, "--schema", tmp_path / "image.json", "-o", out)
    assert (status, out.exists()) == (2, False)
    assert "`image` names the picture" in err
