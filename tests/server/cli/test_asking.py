"""How answers are compared, over HTTP and with the demo model: as transformers' own model and as shadows see them."""

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import httpx
import pytest

from covervlm.clients import Client
from covervlm.server import create_app
from covervlm.server.cli import asking
from covervlm.server.cli.asking import ask, at_once, compared
from covervlm.server.settings import Settings
from covervlm.server.tuning.search import Cell
from covervlm.server.tuning.trial import Given, same
from tests.server.api.live import live_server
from tests.server.shadow.test_agreement import read

KEEP = 16
CELL = Cell("mmtok", KEEP)
ASKED = [(number, question) for number in range(6) for question in ("Describe the image.", "Where is the square?")]


@pytest.fixture(scope="module")
def url():
    """A server that compares every pruned answer with the unpruned model's."""
    settings = Settings(threads=1, shadow=1.0, clip_model="none", budget_aliases=(KEEP,))
    with live_server(create_app(settings)) as url:
        yield url


@pytest.fixture
def client(url):
    with Client(url) as client:
        yield client


@pytest.fixture(scope="module")
def picture(scene, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")

    def path(number):
        scene(number).save(folder / f"{number}.png")
        return str(folder / f"{number}.png")

    return path


@pytest.fixture(scope="module")
def options(url):
    with Client(url) as client:
        return {"model": client.models()[0].id, "max_tokens": 24}


def both(client, picture, options, number, question):
    """An unpruned answer, and a pruned one that was compared with it."""
    reference = ask(client, picture(number), question, None, **options)
    given = ask(client, picture(number), question, CELL, **options)
    return reference, compared(client, picture(number), question, CELL, given, reference, options["model"])


def test_agreeing_tokens_are_those_that_transformers_pruned_model_finds_likeliest(
    client, picture, options, plain, scene
):
    tokenizer = plain.processor.tokenizer
    longest = differing = 0
    for number, question in ASKED:
        reference, given = both(client, picture, options, number, question)
        answer = tokenizer(f" {reference.text}", add_special_tokens=False).input_ids
        answer += [tokenizer.eos_token_id] * reference.ended
        likeliest = read(plain, scene(number), question, answer, KEEP).argmax(-1).tolist()
        agreeing = sum(one == other for one, other in zip(answer, likeliest, strict=True))
        assert (given.compared, given.agreeing, given.forced) == (len(answer), agreeing, True)
        assert given.compared == reference.tokens
        longest, differing = max(longest, len(answer)), differing + (agreeing < len(answer))
    assert longest > 10
    assert differing, "a comparison that finds no difference proves nothing"


def test_shadows_find_what_the_same_questions_show_when_they_are_asked_both_ways(url, client, picture, options):
    """An answer is exact for a shadow where asking gives it twice; its tokens agree as the unpruned model reads it."""
    before, exact, tokens, agreeing = figures(url), 0, 0, 0
    for number, question in ASKED:
        reference = ask(client, picture(number), question, None, **options)
        given = ask(client, picture(number), question, CELL, **options)
        exact += same(given.text, reference.text) and given.ended == reference.ended
        # The other way about: the unpruned model reads the pruned answer.
        whole = Cell("none", 576)
        seen = compared(client, picture(number), question, whole, reference, given, options["model"])
        tokens, agreeing = tokens + seen.compared, agreeing + seen.agreeing
    after = until_compared(url, before["covervlm_shadow_answers_total"] + len(ASKED))
    found = {name: after[name] - before[name] for name in after}
    assert 0 < exact < len(ASKED)
    assert found["covervlm_shadow_exact_answers_total"] == exact
    assert (found["covervlm_shadow_tokens_total"], found["covervlm_shadow_agreeing_tokens_total"]) == (tokens, agreeing)


def figures(url):
    """Shadows' sums for the budget that is asked here."""
    text = httpx.get(f"{url}/metrics").text
    names = ("answers", "exact_answers", "tokens", "agreeing_tokens")
    pattern = 'covervlm_shadow_{}_total{{budget="16",method="mmtok"}} (.*)'
    found = {f"covervlm_shadow_{name}_total": re.search(pattern.format(name), text) for name in names}
    return {name: float(match[1]) if match else 0.0 for name, match in found.items()}


def until_compared(url, count):
    end = time.monotonic() + 120
    while (seen := figures(url))["covervlm_shadow_answers_total"] < count:
        assert time.monotonic() < end
    return seen


class Deaf:
    """A server's client whose answers tell nothing of the prompt's tokens."""

    def chat_messages(self, messages, **options):
        return SimpleNamespace(raw={}, finish_reason="stop")


def test_where_a_server_tells_nothing_the_words_before_the_first_other_one_agree():
    reference, given = Given("a red bus and a dog", 9, 9, 0.1, 8), Given("a red car and a dog", 9, 9, 0.1, 8)
    seen = compared(Deaf(), "data:image/png;base64,", "?", CELL, given, reference, "m")
    assert (seen.compared, seen.agreeing, seen.forced) == (7, 2, False)


def test_an_answer_that_is_the_same_agrees_in_full_and_none_is_asked_about_an_empty_one():
    reference, cut = Given("a red bus", 9, 9, 0.1, 4), Given("a red bus", 9, 9, 0.1, 3, ended=False)
    assert compared(None, "a.png", "?", CELL, reference, reference, "m").agreeing == 4
    empty = Given("", 9, 9, 0.1, 1)
    assert (compared(None, "a.png", "?", CELL, cut, empty, "m").agreeing) == 0
    assert (compared(None, "a.png", "?", CELL, empty, empty, "m").agreeing) == 1


def test_a_loop_that_is_left_begins_no_more_jobs(monkeypatch):
    begun, left = [], threading.Event()

    class Pool(ThreadPoolExecutor):
        def shutdown(self, wait=True, *, cancel_futures=False):
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            left.set()
            super().shutdown(wait)

    def work(number):
        begun.append(number)
        return number == 0 or left.wait()

    monkeypatch.setattr(asking, "ThreadPoolExecutor", Pool)
    for _ in at_once(work, range(500), 1):
        break
    assert begun[0] == 0
    assert len(begun) <= 2  # the pool's thread may have taken one more, wherever it stood
