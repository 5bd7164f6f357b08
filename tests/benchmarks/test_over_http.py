"""The accuracy benchmark through a live server: the same outcome as in process, and a check that can fail."""

import pytest
import quality
import torch
from evaluation.in_process import InProcess
from evaluation.over_http import OverHTTP
from evaluation.question_sets import question_set
from evaluation.records import UNPRUNED, Cell
from evaluation.reference import Reference

from covervlm.server import create_app
from covervlm.server.demo import model_path
from covervlm.server.settings import Settings
from tests.server.api.live import live_server


@pytest.fixture(scope="module")
def url():
    with live_server(create_app(Settings(threads=1))) as url:
        yield url


@pytest.fixture
def asker(url):
    return OverHTTP(url, model=None, api_key="none", concurrency=4)


@pytest.fixture(scope="module")
def items():
    return question_set("standard", 4, split="tuning") + question_set("hard", 4, split="tuning")


def test_the_server_answers_every_question_as_the_benchmark_scores_it_in_process(asker, items):
    torch.set_num_threads(1)
    cells = [Cell(UNPRUNED, 576), Cell("mmtok", 16), Cell("random", 64), Cell("uniform", 4)]
    wanted = [(item, cells) for item in items]
    over_http = {(key, cell): right for key, cell, right, _ in asker.ask(wanted)}
    in_process = InProcess(model_path(), ["mmtok", "random", "uniform"])
    assert over_http == {(key, cell): right for key, cell, right, _ in in_process.ask(wanted)}
    assert len(over_http) == len(items) * len(cells)
    assert 0 < sum(over_http.values()) < len(over_http)


def test_unpruned_answers_equal_transformers_generate(asker, items, capsys):
    assert quality.check_generate(asker, Reference(model_path()), items, 576) == 0
    assert f"{len(items)} of {len(items)} unpruned answers" in capsys.readouterr().out


def test_the_check_notices_answers_that_differ(asker, items, capsys):
    class Contradicting:
        def answer(self, item):
            return "mauve"

    assert quality.check_generate(asker, Contradicting(), items[:3], 576) == 3
    assert "0 of 3 unpruned answers" in capsys.readouterr().out
