"""A model in this process: asked, streamed, in batches; what it is given, what it gives back, and what it refuses."""

import base64
import functools
import http.server
import io
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops
from transformers import AutoModelForImageTextToText, AutoProcessor

import covervlm
from covervlm.clients.overlay import draw_overlay
from covervlm.server.core.errors import InvalidRequest
from covervlm.server.demo import example_scenes, model_path
from covervlm.server.settings import SettingsError

SCENES = example_scenes()
SCENE = SCENES[0]


@pytest.fixture(scope="module")
def model():
    with covervlm.load("demo", threads=1) as model:
        yield model


def test_an_answer_says_what_was_kept_and_why_it_ended(model):
    answer = model.ask(SCENE.path, SCENE.question, keep_tokens=64)
    assert (answer.text.strip(), answer.finish_reason, answer.model) == (SCENE.answer, "stop", "demo")
    assert (answer.images[0].kept, answer.images[0].total, answer.usage.image_tokens) == (64, 576, 64)
    assert model.ask(SCENE.path, SCENE.question, max_tokens=1).finish_reason == "length"


@torch.inference_mode()
def test_it_answers_as_transformers_does(model):
    plain = AutoModelForImageTextToText.from_pretrained(model_path(), dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(model_path())
    for scene in SCENES:
        chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": scene.question}]}]
        text = processor.apply_chat_template(chat, add_generation_prompt=True)
        inputs = processor(images=[Image.open(scene.path).convert("RGB")], text=text, return_tensors="pt")
        expected = plain.generate(**inputs, max_new_tokens=16, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        answer = model.ask(scene.path, scene.question, max_tokens=16, return_token_ids=True)
        assert answer.raw["choices"][0]["token_ids"] == expected.tolist()


def test_every_way_to_give_an_image_is_the_same_image(model):
    data = SCENE.path.read_bytes()
    picture = Image.open(SCENE.path)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=SCENE.path.parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        given = [
            SCENE.path,
            str(SCENE.path),
            data,
            picture,
            np.asarray(picture.convert("RGB")),
            f"data:image/png;base64,{base64.b64encode(data).decode()}",
            f"http://127.0.0.1:{server.server_port}/{SCENE.path.name}",
        ]
        kept = [model.select(image, SCENE.question, keep_tokens=32).indices for image in given]
        server.shutdown()
    assert len(set(kept)) == 1
    assert picture.load() is not None  # the caller's own picture is still open


def test_a_picture_is_turned_upright_as_over_http(model):
    turned = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(SCENE.path).convert("RGB").rotate(90).save(turned, "PNG", exif=exif)
    upright = model.select(SCENE.path, SCENE.question, keep_tokens=32).indices
    assert model.select(turned.getvalue(), SCENE.question, keep_tokens=32).indices == upright
    assert model.select(Image.open(turned), SCENE.question, keep_tokens=32).indices == upright


def test_messages_are_those_of_transformers_and_of_openai(model):
    encoded = base64.b64encode(SCENE.path.read_bytes()).decode()
    text = {"type": "text", "text": SCENE.question}
    spellings = [
        {"type": "image", "image": Image.open(SCENE.path)},
        {"type": "image", "path": str(SCENE.path)},
        {"type": "image", "url": f"data:image/png;base64,{encoded}"},
        {"type": "image", "base64": encoded},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}},
    ]
    for part in spellings:
        answer = model.ask_messages([{"role": "user", "content": [part, text]}], keep_tokens=64)
        assert answer.text.strip() == SCENE.answer
    with pytest.raises(InvalidRequest, match="needs one of image, url, path, base64"):
        model.ask_messages([{"role": "user", "content": [{"type": "image"}, text]}])


def test_a_batch_is_answered_as_one_by_one_and_in_order(model):
    pairs = [(scene.path, scene.question) for scene in SCENES] * 3
    answers = model.ask_batch(pairs, keep_tokens=64)
    assert [answer.text.strip() for answer in answers] == [scene.answer for scene in SCENES] * 3
    assert model.ask_batch([]) == []
    with pytest.raises(InvalidRequest):
        model.ask_batch([*pairs, (b"no picture", "What?")])


def test_more_questions_than_may_wait_are_answered(model):
    pairs = [(SCENE.path, SCENE.question)] * 300
    assert {answer.text.strip() for answer in model.ask_batch(pairs, keep_tokens=4, max_tokens=1)} != {""}


def test_a_stream_is_the_answer_in_pieces(model):
    options = {"keep_tokens": 64, "ignore_eos": True, "max_tokens": 12}
    whole = model.ask(SCENE.path, "Describe the image.", **options)
    stream = model.stream(SCENE.path, "Describe the image.", **options)
    assert stream.answer is None
    pieces = list(stream)
    assert len(pieces) > 1
    assert "".join(pieces) == whole.text == stream.answer.text
    assert stream.answer.usage == whole.usage


def test_leaving_a_stream_ends_the_generation(model):
    cancelled = "covervlm_requests_cancelled_total"
    registry = model._conversation.metrics.registry
    before = registry.get_sample_value(cancelled)
    for _ in model.stream(SCENE.path, "Describe the image.", ignore_eos=True):
        break
    assert registry.get_sample_value(cancelled) == before + 1
    assert model.ask(SCENE.path, SCENE.question, keep_tokens=64).text.strip() == SCENE.answer


def test_a_selection_is_what_prune_reports_and_draws_itself(model):
    selection = model.select(SCENE.path, SCENE.question, keep_tokens=40)
    assert (selection.kept, len(set(selection.indices)), selection.total) == (40, 40, 576)
    assert 0 < selection.coverage <= 1
    expected = draw_overlay(Image.open(SCENE.path).convert("RGB"), (24, 24), selection.indices, box=selection.box)
    assert ImageChops.difference(selection.overlay(), expected).getbbox() is None


def test_fields_of_pruning_have_the_servers_names(model):
    image, question = SCENE.path, SCENE.question

    def kept(**options):
        return model.select(image, question, **options)

    assert kept().kept == 576
    assert kept(keep_ratio=0.25).kept == 144
    assert kept(keep_tokens_per_crop=7).kept == 7
    reached = kept(coverage=0.97)
    assert reached.coverage >= 0.97
    assert kept(coverage=0.97, vision_pruning={"min_tokens": reached.kept + 5}).kept == reached.kept + 5
    assert kept(keep_tokens=16, method="uniform").method == "uniform"
    assert kept(keep_tokens=16, parameters={"alpha": 50.0}).coverage < kept(keep_tokens=16).coverage
    other = kept(keep_tokens=16, vision_pruning={"question": "the yellow star"})
    assert (
        other.indices == model.select(image, "the yellow star", keep_tokens=16).indices != kept(keep_tokens=16).indices
    )
    assert kept(keep_tokens=16, guide="none").indices == kept(keep_tokens=16, method="vision_coverage").indices
    assert kept(keep_tokens=9, recipe="released").kept == 9
    assert model.ask(image, question, keep_tokens=9, guide="agent").raw["vision_pruning"]["agent"]["answer"]
    assert (
        model.ask(image, question, keep_tokens=9, return_indices=True).images[0].indices == kept(keep_tokens=9).indices
    )


def test_fields_of_sampling_have_the_servers_names(model):
    ask = functools.partial(model.ask, SCENE.path, SCENE.question, keep_tokens=64)
    choice = ask(structured_outputs={"choice": ["blue", "orange"]})
    assert choice.text in ("blue", "orange")
    assert len(ask(n=3, temperature=1.0, seed=1).raw["choices"]) == 3
    assert ask(temperature=1.0, seed=5, max_tokens=8).text == ask(temperature=1.0, seed=5, max_tokens=8).text
    logprobs = ask(logprobs=True, top_logprobs=2).raw["choices"][0]["logprobs"]["content"]
    assert len(logprobs[0]["top_logprobs"]) == 2
    stopped = ask(ignore_eos=True, max_tokens=12, stop=[SCENE.answer[-2:]])
    assert stopped.text.strip() == SCENE.answer[:-2]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"keep_tokenz": 64}, "keep_tokenz"),
        ({"keep_tokens": 0}, "vision_pruning.keep_tokens"),
        ({"keep_tokens": 4, "coverage": 0.5}, "keep_tokens and coverage"),
        ({"method": "guess"}, "guess"),
        ({"temperature": 9}, "temperature"),
        ({"keep_tokens": [1, 2]}, "keep_tokens"),
        ({"keep_token": 4}, "'keep_token'; did you mean 'keep_tokens'"),
        ({"max_token": 4}, "'max_token'; did you mean 'max_tokens'"),
        ({"stop": ["half \ud800"]}, "half a character"),
    ],
)
def test_a_wrong_field_is_named(model, options, named):
    with pytest.raises(InvalidRequest, match=named):
        model.ask(SCENE.path, SCENE.question, **options)


def test_numbers_of_numpy_and_torch_are_numbers(model):
    for keep in (np.int64(16), torch.tensor(16), [np.int32(16)]):
        answer = model.ask(SCENE.path, SCENE.question, keep_tokens=keep, max_tokens=np.int64(4))
        assert answer.images[0].kept == 16
    assert model.select(SCENE.path, SCENE.question, keep_ratio=np.float32(0.25)).kept == 144


def test_half_a_character_is_refused_as_over_http(model):
    with pytest.raises(InvalidRequest, match="half a character"):
        model.ask(SCENE.path, "What is \ud83d?")


def test_what_is_no_image_is_refused(model, tmp_path):
    with pytest.raises(FileNotFoundError):
        model.ask(tmp_path / "none.png", "What?")
    with pytest.raises(InvalidRequest, match="not an image"):
        model.ask(b"text", "What?")
    with pytest.raises(TypeError, match="an image is a path"):
        model.ask(42, "What?")
    assert model.ask(None, "Hello?", max_tokens=1).images == ()


def test_threads_may_ask_at_once(model):
    answers = {}

    def ask(number):
        scene = SCENES[number % len(SCENES)]
        answers[number] = model.ask(scene.path, scene.question, keep_tokens=64).text.strip() == scene.answer

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == dict.fromkeys(range(8), True)


def test_a_script_may_end_without_closing_and_servers_variables_change_nothing():
    program = f"""
import threading
import covervlm
model = covervlm.load("demo", threads=1)
answer = model.ask({str(SCENE.path)!r}, {SCENE.question!r})
print(answer.text, answer.usage.image_tokens)
long = {{"max_tokens": 400, "ignore_eos": True}}
threading.Thread(target=model.ask, args=({str(SCENE.path)!r}, "Why?"), kwargs=long, daemon=True).start()
for _ in model.stream({str(SCENE.path)!r}, "Why?", **long):
    break
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        env={"COVERVLM_KEEP_TOKENS": "8", "COVERVLM_MODEL": "nothing", "OMP_NUM_THREADS": "1", "HOME": "/nonexistent"},
    )
    assert (done.returncode, done.stdout.split()) == (0, [SCENE.answer, "576"]), done.stderr
    assert "Error" not in done.stderr


def test_a_closed_model_says_so_and_one_that_is_not_there_is_not_loaded(tmp_path):
    with pytest.raises(Exception, match="model: "):
        covervlm.load(tmp_path / "none")
    with pytest.raises(SettingsError, match=r"^dtype: input should be .*, not 'int8'$"):
        covervlm.load("demo", dtype="int8")
    with pytest.raises(RuntimeError, match="abacus"):
        covervlm.load("demo", device="abacus")
    model = covervlm.load("demo", threads=1)
    model.close()
    model.close()
    with pytest.raises(RuntimeError, match="the model is closed"):
        model.ask(SCENE.path, SCENE.question)
