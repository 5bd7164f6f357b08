import asyncio
from pathlib import Path

import pytest
from beside.contract import TOKENS, Answer
from peers import Report, Wave, measure, table


def wave(name: str, at_once: int, first: float, seconds: float, requests: int = 2) -> Wave:
    return Wave(name, at_once, [Answer(first, first + (TOKENS - 1) * first, 100, TOKENS)] * requests, seconds)


def test_ratios_are_to_the_first_server_of_the_same_number_at_once():
    lines = table([wave("ours", 1, 1.0, 4.0), wave("theirs", 1, 2.0, 8.0), wave("theirs", 8, 2.0, 8.0)]).splitlines()
    assert lines[2] == "| 1 | ours | 100 | 1,000 | 1,000 | 0.500 | 1.00x | 1.00x | 1.00x |"
    assert lines[3] == "| 1 | theirs | 100 | 2,000 | 2,000 | 0.250 | 0.50x | 0.50x | 0.50x |"
    assert lines[4] == "| 8 | theirs | 100 | 2,000 | 2,000 | 0.250 | 1.00x | 1.00x | 1.00x |"


def test_the_file_has_what_was_measured_so_far_and_what_was_not_and_why(tmp_path: Path):
    report = Report(tmp_path / "made" / "peers.md", minutes=1.0)
    report.names.append("ours")
    report.waves["LLaVA"] = [wave("ours", 1, 1.0, 4.0)]
    report.missing.append("LLaVA: theirs did not start")
    report.loads.append(0.25)
    report.write()
    text = report.path.read_text()
    assert "| 1 | ours | 100 |" in text
    assert "- LLaVA: theirs did not start" in text
    assert "load average before the servers were asked 0.2 to 0.2" in text


def test_an_answer_of_another_length_is_refused():
    async def ask(asked: object) -> Answer:
        return Answer(1.0, 2.0, 100, TOKENS - 1)

    with pytest.raises(RuntimeError, match="theirs gave"):
        asyncio.run(measure("theirs", ask, 1, 1, singles=1))
