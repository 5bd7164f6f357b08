"""`covervlm chat`: one answer, a conversation from a file, and one at a terminal."""

import io
import json
from dataclasses import replace

import pytest

from covervlm.server.core.errors import EngineError
from covervlm.server.core.generation import GenerationChunk
from tests.server.api.scripted import prompt_report
from tests.server.media.video_files import KINDS, encoded, numbered


@pytest.fixture
def say(served_engine, monkeypatch):
    """say(*answers): what the server's model answers from now on, in turn."""

    def say(*answers):
        left = list(answers)

        def script(request):
            answer = left.pop(0)
            if isinstance(answer, Exception):
                return [answer]
            words = answer.split(" ")
            chunks = [GenerationChunk(0, f" {word}", 1) for word in words]
            return [
                replace(chunks[0], prompt=prompt_report(request)),
                *chunks[1:],
                GenerationChunk(0, "", 0, (), "stop"),
            ]

        monkeypatch.setattr(served_engine, "script", script)
        served_engine.requests.clear()
        return served_engine.requests

    return say


@pytest.fixture
def typed(monkeypatch):
    """typed(*lines): what is on stdin, of a person where it is a `terminal`."""

    def typed(*lines, terminal=False):
        stdin = io.StringIO("".join(f"{line}\n" for line in lines))
        stdin.isatty = lambda: terminal
        monkeypatch.setattr("sys.stdin", stdin)

    return typed


def test_one_question_is_answered_and_the_command_ends(served, say, run, photo):
    requests = say("a red circle")
    assert run("chat", "--url", served, photo, "What is it?", "--keep", "30") == (0, "a red circle\n", "")
    assert requests[0].pruning.keep_tokens == 30
    assert requests[0].sampling.temperature == 0


@pytest.mark.parametrize(
    ("ending", "rate", "frames"), [("mp4", [], 10), ("MP4", ["--fps", "5"], 2), ("gif", ["--fps", "5"], 2)]
)
def test_a_video_is_a_clip_at_the_rate_that_is_asked_for(served, say, run, tmp_path, ending, rate, frames):
    clip = tmp_path / f"clip.{ending}"
    kind = KINDS["gif"] if ending == "gif" else {}
    clip.write_bytes(encoded([numbered(i) for i in range(10)], **kind))
    requests = say("a red circle")
    assert run("chat", "--url", served, clip, "What happens?", *rate) == (0, "a red circle\n", "")
    assert len(requests[0].images[0].frames) == frames


def test_a_gif_is_a_picture_where_no_rate_is_asked_for(served, say, run, tmp_path):
    (tmp_path / "clip.gif").write_bytes(encoded([numbered(i) for i in range(10)], **KINDS["gif"]))
    requests = say("a red circle")
    assert run("chat", "--url", served, tmp_path / "clip.gif", "What is it?")[0] == 0
    assert requests[0].images[0].image.size == (64, 48)


def test_a_conversation_may_go_on_about_a_clip(served, say, typed, run, photo, tmp_path):
    (tmp_path / "clip.mp4").write_bytes(encoded([numbered(i) for i in range(10)]))
    requests = say("a red circle", "a blue star")
    typed("What is it?", f"/image {tmp_path / 'clip.mp4'}", "What happens?")
    assert run("chat", "--url", served, photo) == (0, "a red circle\na blue star\n", "")
    assert [len(getattr(request.images[0], "frames", ())) for request in requests] == [0, 10]


def test_a_model_of_its_own_answers_too(scripted, run, photo):
    assert run("chat", photo, "What is it?") == (0, "a red circle\n", "")
    assert not scripted.started


def test_an_answer_as_json_has_all_of_it(served, say, report, photo):
    say("a red circle")
    answer = report("chat", "--url", served, photo, "What is it?", "--keep", "30")
    assert (answer["text"], answer["finish_reason"], answer["usage"]["prompt_tokens"]) == ("a red circle", "stop", 40)
    assert answer["images"][0]["kept"] == 30
    assert answer["first_token_seconds"] > 0
    assert "raw" not in answer


def test_lines_are_a_conversation_with_the_picture_in_its_first_message(served, say, typed, run, photo):
    requests = say("a circle", "a red one", "none", "a star")
    typed(
        "What is it?",
        "",
        "Which color?",
        "/keep 5",
        "/method uniform",
        "And now?",
        "/keep all",
        "Again?",
        "/quit",
        "No?",
    )
    assert run("chat", "--url", served, photo) == (0, "a circle\na red one\nnone\na star\n", "")
    last = requests[-1]
    said = ["".join(part for part in message.content if isinstance(part, str)) for message in last.messages]
    assert said == ["What is it?", " a circle", "Which color?", " a red one", "And now?", " none", "Again?"]
    assert [len(request.images) for request in requests] == [1, 1, 1, 1]
    policies = [(r.pruning.method, r.pruning.keep_tokens, r.pruning.keep_ratio) for r in requests]
    assert policies == [("mmtok", None, None)] * 2 + [("uniform", 5, None), ("uniform", None, 1.0)]


@pytest.mark.parametrize("demo", [False, True])
def test_questions_are_asked_on_their_own_where_that_is_wanted_and_of_the_demo(
    served, say, scripted, typed, run, photo, demo
):
    requests = scripted.requests if demo else say("a red circle", "a red circle")
    typed("What is it?", "Which color?")
    where = [] if demo else ["--url", served, "--forget"]
    assert run("chat", *where, photo) == (0, "a red circle\na red circle\n", "")
    assert [(len(request.messages), len(request.images)) for request in requests] == [(1, 1), (1, 1)]


def test_another_picture_begins_anew(served, say, typed, run, photo, folder):
    requests = say("a circle", "a star")
    typed("What is it?", f"/image {folder}/00.png", "And this?")
    assert run("chat", "--url", served, photo)[0] == 0
    assert len(requests[1].messages) == 1
    assert requests[1].images[0].digest != requests[0].images[0].digest


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["/dance"], "'/dance' is not a command; the commands are /keep N"),
        (["/keep 0"], "is not a command"),
        (["/image /no/such.png"], "/no/such.png: No such file or directory"),
        (["Hello?"], "The engine is out of memory."),
    ],
)
def test_in_a_file_the_first_mistake_is_the_last(served, say, typed, run, photo, lines, words):
    requests = say(EngineError("The engine is out of memory."))
    typed(*lines, "Not asked.")
    status, out, err = run("chat", "--url", served, photo)
    assert (status, out) == (1, "")
    assert words in err
    assert err.count("\n") == 1
    assert len(requests) <= 1


def test_at_a_terminal_a_mistake_is_told_and_the_conversation_goes_on(served, say, typed, run, photo):
    requests = say(EngineError("The engine is out of memory."), "a circle")
    typed("Hello?", "/dance", "What is it?", terminal=True)
    status, out, err = run("chat", "--url", served, photo)
    assert status == 0
    assert "a circle\n" in out
    assert "out of memory" in err
    assert "/dance" in err
    # The refused question is no part of the conversation.
    assert [len(request.messages) for request in requests] == [1, 1]


def test_an_interrupt_at_a_terminal_stops_the_answer_only(served, say, typed, run, photo, monkeypatch):
    from covervlm.clients.streaming import Stream

    requests = say("a circle", "a red one")
    original, interrupts = Stream.__iter__, iter([True, False])

    def interrupted(self):
        pieces = original(self)
        yield next(pieces)
        if next(interrupts):
            raise KeyboardInterrupt
        yield from pieces

    monkeypatch.setattr(Stream, "__iter__", interrupted)
    typed("What is it?", "Which color?", terminal=True)
    status, out, _ = run("chat", "--url", served, photo)
    assert status == 0
    assert "a (stopped)\n" in out
    assert "a red one\n" in out
    assert [len(request.messages) for request in requests] == [1, 1]


def test_each_answer_of_a_conversation_is_a_line_of_json(served, say, typed, run, photo):
    say("a circle", "a red one")
    typed("What is it?", "Which color?")
    status, out, _ = run("chat", "--url", served, photo, "--json")
    assert status == 0
    assert [json.loads(line)["text"] for line in out.splitlines()] == ["a circle", "a red one"]


def test_text_alone_is_talked_about_without_a_picture(served, say, typed, run):
    requests = say("hello yourself")
    typed("Hello")
    assert run("chat", "--url", served) == (0, "hello yourself\n", "")
    assert requests[0].images == ()


SCHEMA = {"type": "object", "properties": {"color": {"type": "string"}}, "required": ["color"]}


@pytest.fixture
def schema(tmp_path):
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA))
    return path


def test_an_answer_by_a_schema_is_in_the_report_as_what_it_says(served, say, report, run, photo, schema):
    requests = say('{"color": "red"}', '{"color": "red"}')
    answer = report("chat", "--url", served, photo, "What is it?", "--schema", schema)
    assert (answer["parsed"], answer["text"]) == ({"color": "red"}, '{"color": "red"}')
    assert json.loads(requests[0].sampling.grammar.text) == SCHEMA
    assert not requests[0].sampling.grammar.lenient
    assert run("chat", "--url", served, photo, "What?", "--schema", schema) == (0, '{"color": "red"}\n', "")


def test_an_answer_that_does_not_follow_its_schema_is_a_failure(served, say, run, photo, schema):
    say("a red circle")
    status, out, err = run("chat", "--url", served, photo, "What is it?", "--schema", schema, "--json")
    assert (status, out) == (1, "")
    assert "does not follow its schema" in err


@pytest.mark.parametrize(("text", "words"), [("{", "cannot be read as JSON"), ("[]", "which is an object")])
def test_a_file_that_is_no_schema_is_wrong_usage(run, photo, tmp_path, text, words):
    (tmp_path / "wrong.json").write_text(text)
    status, _, err = run("chat", photo, "What?", "--schema", tmp_path / "wrong.json")
    assert status == 2
    assert words in err
