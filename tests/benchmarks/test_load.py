"""The load benchmark's own part: what is asked, guidellm's configuration, and the arithmetic of its table."""

import base64
import csv
import io
import json
from types import SimpleNamespace

import load
import numpy as np
import pytest
from PIL import Image
from speed.guidellm_driver import record
from speed.load_generator import Load, Reply, Variant, reply, spec
from speed.load_report import Measurement, rows, table, write_csv
from speed.workload import workload


def pixels(asked):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(asked.image.partition(",")[2]))).convert("RGB")).astype(
        int
    )


def test_measurements_ask_the_same_of_images_that_differ_in_one_pixel():
    first, second = workload("new", 6, 1), workload("new", 6, 2)
    assert [(one.question, one.answer) for one in first] == [(one.question, one.answer) for one in second]
    assert len({one.image for one in first + second}) == 12
    for one, other in zip(first, second, strict=True):
        differs = (pixels(one) != pixels(other)).any(-1)
        assert differs.sum() == 1
        assert differs[0, 0]


def test_the_same_image_gets_different_questions_and_is_new_to_every_measurement():
    first, second = workload("same", 8, 1), workload("same", 8, 2)
    assert len({one.image for one in first}) == 1
    assert len({one.question for one in first}) == 8
    assert first[0].image != second[0].image


def test_closed_loops_stay_full_and_open_ones_wait_for_all():
    variant = Variant("mmtok 64", "http://127.0.0.1:1", "model", {"vision_pruning": {"keep_tokens": 64}})
    closed = spec(Load(24, concurrency=8), variant, workload("new", 1, 0), tokens=32, seconds=60)
    assert closed["profile"] == {"kind": "concurrent", "streams": [8]}
    assert {"kind": "min_requests", "count": 24} in closed["constraints"]
    body = closed["backend"]["extras"]["body"]
    assert body == {"temperature": 0, "max_tokens": 32, "vision_pruning": {"keep_tokens": 64}}
    opened = spec(Load(24, rate=0.5), variant, workload("new", 1, 0), tokens=None, seconds=60)
    assert opened["profile"] == {"kind": "poisson", "rate": [0.5]}
    assert {"kind": "max_requests", "count": 24} in opened["constraints"]


def sent(asked, text, error=None):
    """A request as guidellm reports it."""
    content = [{"type": "text", "text": asked.question}, {"type": "image_url", "image_url": {"url": asked.image}}]
    return SimpleNamespace(
        request_args=json.dumps({"body": {"messages": [{"role": "user", "content": content}]}}),
        time_to_first_token_ms=None if error else 250.0,
        inter_token_latency_ms=None if error else 20.0,
        request_start_time=10.0,
        request_end_time=11.5,
        input_metrics=SimpleNamespace(text_tokens=77),
        output_tokens=3,
        output=text,
        info=SimpleNamespace(error=error),
    )


def test_a_reply_is_right_only_for_its_own_image_and_question():
    first, second = workload("new", 2, 0)
    answers = {one.key: one.answer for one in (first, second)}
    right = reply(record(sent(first, f" {first.answer}"), "ok"), answers)
    assert right == Reply(10.0, 11.5, 0.25, 0.02, 77, 3, None, True)
    assert not reply(record(sent(first, "nothing of the kind"), "ok"), answers).right
    failed = reply(record(sent(second, "", error="429"), "error"), answers)
    assert (failed.error, failed.first_token, failed.right) == ("429", None, False)


def measured(variant, number, first_tokens, seconds, errors=0):
    replies = [Reply(0.0, seconds, first, 0.01, 77, 5, None, True) for first in first_tokens]
    failed = [Reply(0.0, seconds, None, None, 0, 0, "429", False)] * errors
    return Measurement(variant, Load(8, concurrency=4), number, replies + failed)


def test_rows_pool_the_rounds_and_ratios_compare_within_a_round():
    found = rows(
        [
            measured("unpruned", 0, [1.0, 2.0, 3.0], seconds=6.0),
            measured("mmtok 64", 0, [0.5, 0.5, 0.5], seconds=3.0),
            measured("unpruned", 1, [2.0, 8.0, 9.0], seconds=30.0),
            measured("mmtok 64", 1, [1.0, 1.0, 1.0], seconds=5.0, errors=2),
        ],
        "unpruned",
    )
    unpruned, pruned = found
    assert unpruned.first_token == pytest.approx((2500, 8750, 8950))
    assert (unpruned.requests_per_second, unpruned.tokens_per_second) == pytest.approx((6 / 36, 30 / 36))
    assert unpruned.sooner is None
    assert pruned.sooner == pytest.approx((6.0, 4.0, 8.0))
    assert pruned.more == pytest.approx((4.0, 2.0, 6.0))
    assert (pruned.requests, pruned.errors, pruned.right) == (6, 2, 1.0)
    text = table(found, accuracy=True)
    assert "| 4 at once | mmtok 64 | 77 | 750 / 1,000 / 1,000 |" in text
    assert "| 6 of 16 | 2 |" in text
    assert "6.00x (4.00-8.00) | 4.00x (2.00-6.00) | 100.0% |" in text
    for accuracy in (True, False):
        assert len({line.count("|") for line in table(found, accuracy=accuracy).splitlines()}) == 1


def test_a_variant_that_answers_nothing_has_errors_and_no_ratio():
    found = rows([measured("unpruned", 0, [1.0], 1.0), measured("peer", 0, [], 1.0, errors=3)], "unpruned")
    assert (found[1].requests, found[1].errors, found[1].sooner) == (0, 3, None)
    assert "nan / nan / nan" in table(found, accuracy=False)


def test_the_csv_has_a_line_per_request(tmp_path):
    write_csv([measured("unpruned", 0, [1.0, 2.0], 6.0, errors=1)], tmp_path / "load.csv")
    lines = list(csv.DictReader((tmp_path / "load.csv").open()))
    assert [line["first_token"] for line in lines] == ["1.0", "2.0", ""]
    assert {(line["load"], line["variant"], line["round"]) for line in lines} == {("4 at once", "unpruned", "0")}


def test_vllm_needs_its_interpreter(capsys):
    with pytest.raises(SystemExit):
        load.parsed(["--peer", "vllm"])
    assert "need --python" in capsys.readouterr().err


def test_models_whose_answers_mean_nothing_get_answers_of_equal_length(tmp_path):
    generator = tmp_path / "python"
    generator.touch()
    assert load.parsed(["--generator", str(generator)]).tokens is None
    assert load.parsed(["--generator", str(generator), "--model", "random"]).tokens == 32
