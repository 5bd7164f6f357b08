import chats
import pytest
from speed.streamed import Streamed


def answers(*seconds, text="blue"):
    return [(Streamed("red", first_event=2.0), Streamed(text, first_event=one, prompt_tokens=100)) for one in seconds]


def test_ratios_are_those_of_each_chats_own_pair():
    found = {(budget, variant): answers(1.0, 2.0, 4.0) for budget in chats.BUDGETS for variant in chats.VARIANTS}
    found["mmtok 64", "remembers"] = answers(0.5, 0.5, 0.5)
    assert "| mmtok 64 | 100 | 2,000 | 2,000 | 500 | 0.25 (0.12-0.50) |" in chats.table(found)
    assert "| unpruned | 100 | 2,000 | 2,000 | 2,000 | 1.00 (1.00-1.00) |" in chats.table(found)


def test_answers_that_differ_are_no_comparison():
    found = {(budget, variant): answers(1.0) for budget in chats.BUDGETS for variant in chats.VARIANTS}
    found["unpruned", "remembers"] = answers(1.0, text="green")
    with pytest.raises(AssertionError, match="differ"):
        chats.table(found)
