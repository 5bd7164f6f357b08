"""One owner's pace beside others, by a clock that the test turns."""

import pytest

from covervlm.server.core.caller import PRESENT, Callers
from covervlm.server.core.pace import AT_ONCE, BODY_BYTES, FETCHED_BYTES, FETCHES, IMAGES, REQUESTS, Flow


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_a_part_of_a_seconds_worth_passes_at_once_and_the_rest_at_the_pace(clock):
    flow = Flow(10 / AT_ONCE, clock)
    assert [flow.delay(1) for _ in range(10)] == pytest.approx([0.0] * 10)
    assert [flow.delay(1) / AT_ONCE for _ in range(3)] == pytest.approx([0.1, 0.2, 0.3])
    clock.now += 0.3 * AT_ONCE
    assert flow.delay(1) / AT_ONCE == pytest.approx(0.1)
    clock.now += 60  # what was not used long ago is not there any more
    assert [flow.delay(5) / AT_ONCE for _ in range(3)] == pytest.approx([0.0, 0.0, 0.5])


@pytest.mark.parametrize(("what", "most"), [("request", REQUESTS), ("images", IMAGES), ("fetch", FETCHES)])
def test_a_key_that_asks_much_waits_while_others_ask_and_they_do_not(clock, what, most):
    callers = Callers(clock=clock)
    with callers.request("greedy") as greedy, callers.request("other") as other:
        assert sum(getattr(greedy.pace, what)() for _ in range(int(most * AT_ONCE))) < 1e-9
        assert getattr(greedy.pace, what)() > 1e-3
        assert getattr(other.pace, what)() == 0
    clock.now += 2 * PRESENT
    with callers.request("greedy") as alone:
        assert not any(getattr(alone.pace, what)() for _ in range(3 * most))


def test_large_bodies_are_read_more_slowly_while_others_ask(clock):
    callers = Callers(clock=clock)
    with callers.request("greedy") as one, callers.request("greedy") as two, callers.request("other"):
        assert one.pace.body(int(BODY_BYTES * AT_ONCE)) == 0
        assert two.pace.body(BODY_BYTES) == pytest.approx(1)
        assert one.pace.fetched(int(FETCHED_BYTES * AT_ONCE)) == 0
        assert two.pace.fetched(FETCHED_BYTES) == pytest.approx(1)


def test_who_asks_again_and_again_is_there_between_two_requests_too(clock):
    callers = Callers(clock=clock)

    def delay(name):
        with callers.request(name) as caller:
            return caller.pace.request()

    with callers.request("greedy") as greedy:
        assert not any(greedy.pace.request() for _ in range(3 * REQUESTS))
        for _ in range(3):
            delay("other")
            clock.now += PRESENT / 2
            assert sum(greedy.pace.request() for _ in range(REQUESTS)) > 0
            with callers.request("greedy"):
                pass
        clock.now += 2 * PRESENT
        assert not any(greedy.pace.request() for _ in range(3 * REQUESTS))
    assert delay("greedy") == delay("other") == 0


def test_callers_of_a_server_without_keys_are_one_and_wait_for_nobody(clock):
    callers = Callers(clock=clock)
    with callers.request("anonymous") as one, callers.request("anonymous"):
        assert not any(one.pace.request() for _ in range(10 * REQUESTS))
