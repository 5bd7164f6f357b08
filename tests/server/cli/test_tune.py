"""`covervlm tune`: what it asks a scripted model, what it recommends, and what it does not ask twice."""

import argparse
import json

import pytest

from covervlm.clients import APIConnectionError, Client
from covervlm.server.cli import serve
from covervlm.server.core.errors import EngineError, InvalidRequest
from covervlm.server.core.generation import GenerationChunk
from tests.server.api.scripted import prompt_report

ENOUGH = 32
"""Vision tokens from which on the scripted model answers as it does unpruned."""
TOLERANT = ["--tolerance", "30", "--budgets", "16,32,64,9999"]
"""What 24 questions are enough for."""


@pytest.fixture
def model(served_engine, monkeypatch):
    """model(answer): the server's model answers answer(request); gives its requests."""

    def answer(request):
        kept = prompt_report(request).images[0].kept
        return " Red" if kept == 576 else "red\n" if kept >= ENOUGH else "blue"

    def script(answer=answer):
        def steps(request):
            said = answer(request)
            if isinstance(said, Exception):
                return [said]
            return [GenerationChunk(0, said, 1, (), "stop", prompt_report(request))]

        monkeypatch.setattr(served_engine, "script", steps)
        served_engine.requests.clear()
        return served_engine.requests

    return script


@pytest.fixture
def asked(folder, tmp_path):
    """asked(answer=..., kind=...): a file with two questions about each picture; a list gives each its own value."""

    def write(**fields):
        rows = [
            {"image": str(path), "question": question}
            for question in ("Which color?", "And now?")
            for path in sorted(folder.glob("*.png"))
        ]
        for number, row in enumerate(rows):
            row |= {name: value[number] if isinstance(value, list) else value for name, value in fields.items()}
        path = tmp_path / "questions.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        return path

    return write


@pytest.fixture
def out(tmp_path):
    return tmp_path / "tuned.md"


def answered(requests):
    """Of these, the requests for an answer: not those that make the model read one, nor those that are timed."""
    plain = [one for one in requests if not one.template.continue_final_message and one.pruning.keep_tokens != 1]
    return [one for one in plain if one.messages[0].role != "system"]


def settings(path):
    """What `covervlm serve --config` makes of a file."""
    parser = argparse.ArgumentParser()
    serve.add_arguments(parser)
    return serve.settings_of(parser.parse_args(["--config", str(path)]))


def test_the_smallest_budget_that_does_is_recommended_and_served(served, model, run, asked, out):
    requests = model()
    status, printed, err = run("tune", "--url", served, asked(), "-o", out, *TOLERANT)
    assert (status, err) == (0, "")
    assert "Keep 32 vision tokens with mmtok: 0.0 points of agreement are lost" in printed
    assert printed.strip() in out.read_text()
    kept = settings(out.with_suffix(".toml"))
    assert (kept.method, kept.keep_tokens) == ("mmtok", 32)
    rows = [line.strip("| ").split(" | ") for line in out.read_text().splitlines() if line.startswith("| ")]
    assert [row[1] for row in rows[2:]] == ["all", "64", "32", "16"]
    assert [row[7] for row in rows[2:]] == ["586", "74", "42", "26"]
    assert [row[2] for row in rows[2:]] == ["24", "24", "24", "12, stopped"]
    assert {request.sampling.temperature for request in requests if request.pruning.keep_tokens != 1} == {0}


def test_without_a_budget_that_does_nothing_is_set(served, model, run, asked, out):
    model()
    status, printed, _ = run("tune", "--url", served, asked(), "-o", out, "--budgets", "64")
    assert status == 0
    assert "No budget loses fewer than 2 points of agreement with 95 % confidence." in printed
    assert "would need 180 questions; there are 24." in printed
    assert settings(out.with_suffix(".toml")).keep_tokens is None


def test_with_true_answers_the_loss_is_one_of_accuracy(served, model, run, asked, out):
    """Where the unpruned model is wrong, nothing can be lost."""
    model()
    truth = asked(answer="green", kind=["a", "b"] * 12)
    status, printed, _ = run("tune", "--url", served, truth, "-o", out, "--by", "kind", *TOLERANT)
    assert status == 0
    assert "Keep 16 vision tokens with mmtok: 0.0 points of accuracy are lost" in printed
    assert "| mmtok | 16 | 24 | 0.0 (0.0 to 13.8) | 0.0 (0.0 to 13.8) | 0.0 (0.0 to 13.8) | 0.0 |" in printed
    assert "| a | 12 | 0.0 |" in printed
    assert "| b | 12 | 0.0 |" in printed


def test_what_was_answered_is_not_asked_again_whatever_ended_the_command(served, model, run, asked, out):
    requests = model()
    arguments = ["tune", "--url", served, asked(), "-o", out, "--methods", "uniform,mmtok", *TOLERANT]
    _, first, _ = run(*arguments)
    whole = len(answered(requests))
    kept = out.with_suffix(".answers.jsonl")
    *lines, timed = kept.read_bytes().splitlines(keepends=True)
    kept.write_bytes(b"".join([*lines[:-1], lines[-1][:-10]]))
    requests.clear()
    _, again, _ = run(*arguments)
    assert len(answered(requests)) == 1
    requests.clear()
    assert run(*arguments)[0] == 0
    assert requests == []
    assert len(kept.read_text().splitlines()) == 1 + whole + 1
    assert "pace" in json.loads(timed)
    assert first.splitlines()[0] == again.splitlines()[0]


def test_answers_of_another_run_are_not_mixed_in(served, model, run, asked, out):
    model()
    arguments = ["tune", "--url", served, asked(), "-o", out, *TOLERANT]
    run(*arguments)
    status, _, err = run(*arguments, "--max-tokens", "5")
    assert status == 2
    assert "has answers of another run" in err


def test_pictures_that_fail_are_told_in_the_end_and_left_out(served, model, run, asked, tmp_path, out):
    model()
    path = asked()
    path.write_text(path.read_text() + '\n{"image": "gone.png", "question": "Which color?"}\n')
    status, printed, err = run("tune", "--url", served, path, "-o", out, *TOLERANT)
    assert status == 1
    assert f"{tmp_path / 'gone.png'}: No such file or directory" in err
    assert "Keep 32 vision tokens" in printed
    assert "| none | all | 24 |" in printed


@pytest.mark.parametrize(
    ("image", "question", "reason"),
    [
        ("http://127.0.0.1:1/a.png", "Which color?", "the image at http://127.0.0.1:1/a.png cannot be fetched"),
        ("a\0.png", "Which color?", "embedded null byte"),
        ("00.png", "half \ud800", "surrogates not allowed"),
    ],
)
def test_a_row_that_cannot_be_sent_does_not_end_the_others(
    served, model, run, asked, folder, out, image, question, reason
):
    model()
    path = asked()
    image = str(folder / image) if question.startswith("half") else image
    path.write_text(path.read_text() + "\n" + json.dumps({"image": image, "question": question}))
    status, printed, err = run("tune", "--url", served, path, "-o", out, *TOLERANT)
    assert status == 1
    assert reason in err
    assert "1 of the pictures could not be used" in err
    assert "| none | all | 24 |" in printed


def test_a_command_that_loses_its_server_says_how_it_goes_on(served, model, run, asked, out, monkeypatch):
    def lost(*_, **__):
        raise APIConnectionError("The connection to the server failed: refused.", reached=False)

    model()
    arguments = ["tune", "--url", served, asked(), "-o", out, *TOLERANT]
    with monkeypatch.context() as patched:
        patched.setattr(Client, "chat", lost)
        status, printed, err = run(*arguments)
    assert (status, printed) == (1, "")
    kept, error = err.splitlines()
    assert kept == f"What was answered is in {out.with_suffix('.answers.jsonl')}; the same command goes on from there."
    assert "Is a server running there?" in error
    assert run(*arguments)[0] == 0


def test_a_small_budget_that_passes_below_one_that_fails_is_explained(served, model, run, asked, out):
    model(lambda request: "blue" if prompt_report(request).images[0].kept == 64 else "red")
    status, printed, _ = run("tune", "--url", served, asked(), "-o", out, "--tolerance", "90", "--budgets", "16,64")
    assert status == 0
    assert printed.startswith("No budget loses fewer than 90 points")
    assert "a larger budget of the same method is not below it: mmtok with 16." in printed


def test_a_server_that_breaks_at_every_question_recommends_nothing(served, model, run, asked, out):
    model(lambda request: EngineError("The engine broke."))
    status, printed, err = run("tune", "--url", served, asked(), "-o", out)
    assert (status, printed) == (1, "")
    assert "12 of the pictures could not be used" in err


def test_a_method_that_does_not_exist_ends_the_command(served, model, run, asked, out):
    def answer(request):
        refused = InvalidRequest("There is no method nonsense.", param="vision_pruning.method")
        return refused if request.pruning.prunes else "red"

    model(answer)
    status, _, err = run("tune", "--url", served, asked(), "-o", out, "--methods", "mmtok")
    assert (status, err) == (1, "covervlm tune: error: There is no method nonsense.\n")


def test_a_folder_is_asked_the_same_questions_about_every_picture(served, model, run, folder, out):
    requests = model()
    words = ["Which color?", "How many, and where?"]
    arguments = ["--questions", *words, "-o", out, *TOLERANT]
    assert run("tune", "--url", served, folder, *arguments)[0] == 0
    unpruned = [request for request in answered(requests) if not request.pruning.prunes]
    assert sorted(request.messages[0].text for request in unpruned) == sorted(words * 12)


def test_parquet_is_read_as_json_lines_are(served, model, run, asked, tmp_path, out):
    pytest.importorskip("pyarrow")
    import pyarrow.parquet

    model()
    rows = [json.loads(line) for line in asked(answer=7).read_text().splitlines()]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "questions.parquet")
    status, printed, _ = run("tune", "--url", served, tmp_path / "questions.parquet", "-o", out, *TOLERANT)
    assert status == 0
    assert "points of accuracy" in printed


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        ("", [], "there are no questions"),
        ("{}", [], "line 1: `image` should be a text"),
        ('{"image": "a.png", "question": "?"}\n{"image": "a.png"}', [], "line 2: `question` should be a text"),
        ('{"image": "a.png", "question": "?"}\nnonsense', [], "line 2: Expecting value"),
        ("[]", [], "line 1: should be an object"),
        ('{"image": "a.png", "question": "?", "answer": ["b"]}', [], "`answer` should be a text or a number"),
        ('{"image": "a.png", "question": "?"}', ["--by", "kind"], "there is no `kind`, which --by names"),
        ('{"image": "a.png", "question": "?"}', ["--questions", "x"], "--questions are for a folder"),
    ],
)
def test_what_is_no_file_of_questions_is_refused_by_line(run, tmp_path, out, lines, options, message):
    path = tmp_path / "questions.jsonl"
    path.write_text(lines)
    status, _, err = run("tune", path, "-o", out, *options)
    assert status == 2
    assert message in err
    assert err.count("\n") == 1


def test_names_and_places_that_cannot_be_used_are_refused(run, tmp_path, folder, out):
    (tmp_path / "questions.csv").touch()
    assert "questions are a .jsonl or .parquet file" in run("tune", tmp_path / "questions.csv", "-o", out)[2]
    assert "a folder takes --questions" in run("tune", folder, "-o", out)[2]
    assert "the name of a report ends in .md" in run("tune", folder, "-o", tmp_path / "out.txt")[2]


@pytest.mark.parametrize("points", ["0", "-1", "100", "nan", "two"])
def test_points_that_are_no_tolerance_are_refused(run, folder, out, points):
    status, _, err = run("tune", folder, "-o", out, f"--tolerance={points}")
    assert status == 2
    assert f"'{points}' are no points above 0 and below 100" in err


def test_budgets_and_methods_that_prune_nothing_are_refused_before_anything_is_asked(run, folder, out):
    for budgets in ("0", "16,,32", "many"):
        status, _, err = run("tune", folder, "-o", out, "--budgets", budgets)
        assert status == 2
        assert f"'{budgets}' are no whole numbers above 0" in err
    status, _, err = run("tune", folder, "--questions", "What?", "-o", out, "--methods", "mmtok,none")
    assert status == 2
    assert "none prunes nothing, and is asked anyway" in err


def test_a_file_in_another_encoding_is_refused_by_line(run, tmp_path, out):
    path = tmp_path / "questions.jsonl"
    path.write_bytes(
        b'{"image": "a.png", "question": "?"}\n' + '{"image": "a.png", "question": "größer?"}'.encode("latin-1")
    )
    status, _, err = run("tune", path, "-o", out)
    assert status == 2
    assert "line 2: 'utf-8' codec can't decode" in err


def test_a_report_without_a_folder_is_refused_before_anything_is_asked(run, asked, tmp_path):
    status, _, err = run("tune", asked(), "-o", tmp_path / "gone" / "tuned.md")
    assert status == 2
    assert "there is no folder" in err


def test_long_answers_lose_the_share_of_their_tokens_that_is_not_agreed_on(
    served, served_engine, monkeypatch, model, run, asked, out
):
    """As a whole no pruned answer agrees; nine words do, but neither the tenth nor, after it, the end."""
    said = "a red bus stands beside a blue car and"

    def steps(request):
        text = f"{said} dogs" if request.pruning.prunes else f"{said} cats"
        return [GenerationChunk(0, text, 11, (), "stop", prompt_report(request))]

    requests = model()
    monkeypatch.setattr(served_engine, "script", steps)
    status, printed, _ = run("tune", "--url", served, asked(answer="a car"), "-o", out, *TOLERANT)
    assert status == 0
    assert "24 of 24 unpruned answers have more than 8 tokens" in printed
    assert "only the words before the first that differs count" in printed
    assert "points of agreement" in printed
    rows = [line.strip("| ").split(" | ") for line in printed.splitlines() if line.startswith("| mmtok")]
    assert {row[3].split()[0] for row in rows} == {"0.0"}
    assert {row[4].split()[0] for row in rows} == {f"{100 * 9 / 11:.1f}"}
    assert {row[6] for row in rows} == {f"{100 * 2 / 11:.1f}"}
    assert any(request.template.continue_final_message for request in requests)


def test_a_log_of_lmms_eval_is_asked_about_its_pictures(served, model, run, folder, tmp_path, out):
    requests = model()
    rows = [
        {"doc_id": f"{number:02}", "input": "Which color?\n", "target": "red", "filtered_resps": "red"}
        for number in range(12)
    ]
    log = tmp_path / "20260806_102223_samples_mme.jsonl"
    log.write_text("\n".join(map(json.dumps, rows)))
    status, printed, err = run("tune", "--url", served, log, "--pictures", folder, "-o", out, *TOLERANT)
    assert (status, err) == (0, "")
    assert "| mmtok | 32 | 12 | 100.0" in printed
    assert "points of accuracy" in printed or "No budget loses" in printed
    assert {request.messages[0].text for request in answered(requests)} == {"Which color?\n"}
    assert out.with_suffix(".svg").read_text().startswith("<svg ")


def test_budgets_that_prune_nothing_are_refused(served, model, run, asked, out):
    model()
    status, _, err = run("tune", "--url", served, asked(), "-o", out, "--budgets", "576,1000")
    assert status == 2
    assert "the pictures have 576 vision tokens at most; name a smaller budget" in err
