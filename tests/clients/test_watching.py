"""Following a job over connections that break, stay silent or tell of failures; for both clients alike."""

import asyncio
import json

import httpx
import pytest

from covervlm import clients
from covervlm.clients import AsyncClient, Client
from tests.clients.test_streaming import Body


def state(name, share=0.0, **fields):
    finished = 9 if name in ("succeeded", "failed", "cancelled") else None
    progress = {"share": share, "eta_seconds": 1, "phase": "learning"}
    body = {"id": "job_1", "kind": "classifier", "state": name, "created": 1, "finished": finished}
    return {**body, "progress": progress, "result": None, "error": None, **fields}


DONE = state("succeeded", 1.0, result={"classifier": "mine", "classifier_id": "cls_1"})


def events(*states, then=None):
    """A response that tells these states, and ends or fails as `then` says."""
    parts = [f"data: {json.dumps(one)}\n\n".encode() for one in states]
    return httpx.Response(200, stream=Body(*parts, *([then] if then else [])))


@pytest.fixture(params=["blocking", "asyncio"])
def wait(request):
    """wait(script, **options): the result of job_1."""

    def blocking(handler, **options):
        with httpx.Client(transport=httpx.MockTransport(handler)) as http:
            client = Client("http://host", http_client=http, retries=3)
            return client.jobs.wait("job_1", **options)

    def asynchronous(handler, **options):
        async def call():
            async with httpx.AsyncClient(transport=httpx.MockTransport(handler)) as http:
                return await AsyncClient("http://host", http_client=http, retries=3).jobs.wait("job_1", **options)

        return asyncio.run(call())

    return blocking if request.param == "blocking" else asynchronous


def test_the_result_is_that_of_the_last_state(wait, script):
    assert wait(script(events(state("queued"), state("running", 0.5), DONE))) == "mine"


@pytest.mark.parametrize("break_", [None, httpx.ReadError("reset"), httpx.RemoteProtocolError("closed")])
def test_a_connection_that_breaks_is_made_again(wait, script, waits, break_):
    calls = script(events(state("running", 0.2), then=break_), events(state("running", 0.4), then=break_), events(DONE))
    assert wait(calls) == "mine"
    assert [request.url.path for request in calls.requests] == ["/v1/jobs/job_1/events"] * 3
    # News in between begins the back-off anew.
    assert all(0.25 <= seconds <= 0.5 for seconds in waits)


def test_silence_is_asked_about_anew_at_once_and_without_end(wait, script, waits):
    quiet = [events(state("running"), then=httpx.ReadTimeout("silent")) for _ in range(6)]
    assert wait(script(*quiet, events(DONE))) == "mine"
    assert waits == [0.0] * 6


def test_a_server_that_stays_away_is_given_up(wait, script, waits):
    calls = script(events(state("running")), *[httpx.ConnectError("refused") for _ in range(20)])
    with pytest.raises(clients.APIConnectionError, match="refused"):
        wait(calls)
    # Every new connection has the client's own three retries, and the job three connections.
    assert len(calls.requests) == 1 + 3 * 4


def test_the_time_for_all_of_it_ends_the_waiting_but_not_the_job(wait, script):
    calls = script(events(state("running")))
    with pytest.raises(clients.APITimeoutError, match="it goes on"):
        wait(calls, timeout=0)
    assert calls.requests == []


def test_time_that_is_up_is_noticed_between_two_states(wait, script, monkeypatch):
    clock = [0.0, 0.0, 1.0, 6.0]
    monkeypatch.setattr("covervlm.clients.jobs.monotonic", lambda: clock.pop(0) if len(clock) > 1 else clock[0])
    with pytest.raises(clients.APITimeoutError):
        wait(script(events(*[state("running", share) for share in (0.1, 0.2, 0.3)])), timeout=5)


def test_a_failed_job_tells_why(wait, script):
    error = {"code": "server_restarted", "message": "The server was restarted."}
    with pytest.raises(clients.JobFailedError, match="restarted") as caught:
        wait(script(events(state("failed", error=error))))
    assert (caught.value.job, caught.value.state, caught.value.code) == ("job_1", "failed", "server_restarted")


def test_an_unknown_job_is_not_waited_for(wait, script):
    body = {"error": {"message": "There is no job.", "type": "invalid_request_error", "param": None, "code": "x"}}
    calls = script(httpx.Response(404, json=body))
    with pytest.raises(clients.NotFoundError):
        wait(calls)
    assert len(calls.requests) == 1


def test_a_failure_of_the_server_in_the_stream_is_raised(wait, script):
    with pytest.raises(clients.ServerError, match="broken"):
        wait(script(events({"error": {"message": "It is broken.", "code": "internal_error"}})))


@pytest.mark.parametrize("line", [b"data: <html>\n\n", b"data: []\n\n", b'data: {"id": 1}\n\n'])
def test_events_of_another_server_are_an_error(wait, script, line):
    with pytest.raises(clients.ResponseFormatError):
        wait(script(httpx.Response(200, stream=Body(line))))


def test_progress_is_drawn_on_a_terminal_only(wait, script, capsys, monkeypatch):
    assert wait(script(events(state("running", 0.5), DONE)), progress=True) == "mine"
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert wait(script(events(state("running", 0.5), DONE)), progress=True) == "mine"
    drawn = capsys.readouterr()
    assert "learning  50%" in drawn.err
    assert drawn.out == ""
