"""`covervlm bench`: what it sends, what it counts, and its arithmetic; nothing is measured here."""

import asyncio

import pytest

from covervlm.server.cli import bench
from covervlm.server.cli.bench import Measured, percentile
from covervlm.server.core.errors import EngineError
from tests.server.api.scripted import Gate, red_circle


@pytest.fixture
def engine(served_engine, monkeypatch):
    monkeypatch.setattr(served_engine, "script", red_circle)
    served_engine.requests.clear()
    return served_engine


def test_every_row_has_its_budget_and_its_requests(served, engine, report):
    arguments = ["--keep", "all,64,5", "--concurrency", "1,3", "--requests", "4", "--max-tokens", "7"]
    document = report("bench", "--url", served, *arguments)
    rows = [(row["keep_tokens"], row["concurrency"], row["answered"], row["failed"]) for row in document["rows"]]
    assert rows == [(keep, at_once, 4, 0) for at_once in (1, 3) for keep in (None, 64, 5)]
    assert [row["prompt_tokens"] for row in document["rows"]] == [586, 74, 15] * 2
    assert document["model"] == "scripted"
    measured = engine.requests[3 * bench.WARM_UP :]
    assert len(measured) == 24
    budgets = [(r.pruning.method, r.pruning.keep_tokens) for r in measured]
    assert budgets == ([("none", None)] * 4 + [("mmtok", 64)] * 4 + [("mmtok", 5)] * 4) * 2
    assert {(r.sampling.max_tokens, r.sampling.ignore_eos, r.sampling.temperature) for r in measured} == {(7, True, 0)}


def test_every_picture_is_new_unless_it_is_cached(served, engine, run, photo):
    arguments = ["bench", "--url", served, "--keep", "64", "--concurrency", "1", "--requests", "5", "--image", photo]
    assert run(*arguments)[0] == 0
    assert len({request.images[0].digest for request in engine.requests}) == 5 + bench.WARM_UP
    engine.requests.clear()
    assert run(*arguments, "--cached")[0] == 0
    assert len({request.images[0].digest for request in engine.requests}) == 1


def test_as_many_are_under_way_as_the_concurrency_says(served, engine, report):
    """Each request waits until three are there: fewer at once would never end, more would not fit three by three."""
    waiting = []

    def script(request):
        steps = red_circle(request)
        if len(engine.requests) <= bench.WARM_UP:
            return steps
        gate = Gate()
        waiting.append(gate)
        if len(waiting) == 3:
            for other in waiting:
                asyncio.get_running_loop().call_soon(other.opened.set)
            waiting.clear()
        return [gate, *steps]

    engine.script = script
    document = report("bench", "--url", served, "--keep", "64", "--concurrency", "3", "--requests", "9")
    assert document["rows"][0]["answered"] == 9
    assert waiting == []


def test_failures_are_counted_told_and_status_1(served, engine, run):
    def every_other(request):
        measured = len(engine.requests) - bench.WARM_UP
        return [EngineError("The engine broke.")] if measured > 0 and measured % 2 else red_circle(request)

    engine.script = every_other
    arguments = ["--keep", "64", "--concurrency", "1", "--requests", "4"]
    status, out, err = run("bench", "--url", served, *arguments)
    assert status == 1
    assert "| 64 | 1 | 2 | 2 |" in out
    assert "2 requests failed, the first with: The engine broke." in err


def test_a_server_that_refuses_from_the_start_is_not_measured(served, engine, run):
    engine.script = lambda request: [EngineError("The engine broke.")]
    status, out, err = run("bench", "--url", served)
    assert (status, out) == (1, "")
    assert "The engine broke." in err
    assert len(engine.requests) == bench.WARM_UP


def test_runs_have_a_bound(run):
    status, _, err = run("bench", "--requests", "100000")
    assert status == 2
    assert "100000 requests at most" in err


def test_percentiles_are_values_that_were_measured():
    seconds = [0.005, 0.001, 0.004, 0.002, 0.003]
    assert [percentile(seconds, share) for share in (1, 20, 21, 50, 95, 100)] == pytest.approx([1, 1, 2, 3, 5, 5])
    assert percentile([], 50) is None


def test_rates_are_over_the_time_of_the_whole_row():
    measured = Measured([0.1, 0.2], [0.5, 1.0], tokens=40, prompt_tokens=148, errors=["x"], seconds=4.0)
    report = measured.report()
    assert (report["requests_per_second"], report["tokens_per_second"], report["prompt_tokens"]) == (0.5, 10.0, 74.0)
    assert (report["answered"], report["failed"], report["answer_ms"]["p50"]) == (2, 1, 500.0)
