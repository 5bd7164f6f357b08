"""The accuracy benchmark: its questions, its scoring against transformers, its records, its report."""

import json

import pytest
import quality
import torch
from demo_model.splits import FIRST_SEED
from evaluation.in_process import InProcess, question_seed, selections
from evaluation.question_sets import SPLITS, Item, question_set
from evaluation.records import UNPRUNED, Cell, Records
from evaluation.reference import Reference
from evaluation.report import SetResults, accuracy_table, comparison_table, write_markdown, write_plot
from evaluation.variants import measured, measured_names

from covervlm.pruners import PruneInput
from covervlm.server.demo import model_path

METHODS = [name for name in measured_names() if name != UNPRUNED]


@pytest.mark.parametrize("name", ["standard", "hard"])
def test_kinds_are_asked_equally_often_and_once_about_a_scene(name):
    items = question_set(name, 40, split="tuning")
    assert sorted(item.kind for item in items) == sorted(["color", "shape", "exist", "where"] * 10)
    assert len({item.key for item in items}) == 40
    yes = [item.answer for item in items if item.kind == "exist"].count("yes")
    assert yes == 5
    first = FIRST_SEED[SPLITS["tuning"][name]]
    assert all(first <= item.seed < first + 1000 for item in items)


def test_a_longer_list_holds_the_shorter_one():
    short, long = question_set("hard", 12, split="tuning"), question_set("hard", 24, split="tuning")
    assert set(short) < set(long)


def test_hard_scenes_are_not_asked_for_counts():
    with pytest.raises(ValueError, match="hard scenes"):
        question_set("hard", 4, ["count"])


def test_every_question_has_its_own_seed():
    items = question_set("standard", 40, split="tuning")
    assert len({question_seed(item) for item in items}) == 40


@pytest.mark.parametrize("method", METHODS)
def test_selections_for_all_budgets_at_once_are_those_of_the_method_asked_for_each(method):
    torch.manual_seed(0)
    n = 100
    seen = PruneInput(
        tokens=torch.randn(n, 16),
        features=torch.randn(n, 8),
        text=torch.randn(3, 16),
        grid=(10, 10),
        cls_attention=torch.rand(n),
        clip_cosines=torch.rand(n),
        seed=7,
    )
    pruner = measured(method)
    together = selections(pruner, seen, [40, 16, 3])
    for count, positions in together.items():
        assert torch.equal(positions, pruner.select([seen], count)[0])


@pytest.fixture(scope="module")
def asker():
    torch.set_num_threads(1)
    return InProcess(model_path(), METHODS)


def test_an_unpruned_answer_counts_as_right_exactly_when_transformers_generates_it(asker):
    items = question_set("hard", 24, split="tuning")  # hard, so that some answers are wrong
    scored = {key: right for key, _, right, _ in asker.ask([(item, [Cell(UNPRUNED, 576)]) for item in items])}
    reference = Reference(model_path())
    expected = {item.key: reference.answer(item) == item.answer for item in items}
    assert scored == expected
    assert 0 < sum(expected.values()) < len(expected)


def test_answers_do_not_depend_on_what_else_is_asked(asker):
    items = question_set("hard", 8, split="tuning")
    cells = [Cell(UNPRUNED, 576), *[Cell(method, keep) for method in METHODS for keep in (16, 4)]]
    together = {(key, cell): right for key, cell, right, _ in asker.ask([(item, cells) for item in items])}
    assert len(together) == len(items) * len(cells)
    for item in items[::3]:
        for cell in (Cell("mmtok", 4), Cell("random", 16), Cell("uniform", 4)):
            ((_, _, right, _),) = asker.ask([(item, [cell])])
            assert together[item.key, cell] == right


def test_records_survive_a_kill_in_the_middle_of_a_line_and_keep_models_apart(tmp_path):
    path = tmp_path / "results.jsonl"
    first, second = Cell("mmtok", 64), Cell("random", 4)
    records = Records(path, "a", "in-process")
    records.add("standard/1/color", first, True)
    path.write_text(path.read_text() + '{"model": "a", "asked": "in-proc')
    reopened = Records(path, "a", "in-process")
    assert ("standard/1/color", first) in reopened
    reopened.add("standard/1/color", second, False, "blue")
    again = Records(path, "a", "in-process")
    assert again["standard/1/color", first].correct
    assert again["standard/1/color", second].answer == "blue"
    assert ("standard/1/color", first) not in Records(path, "b", "in-process")
    assert ("standard/1/color", first) not in Records(path, "a", "http")


def test_a_rerun_asks_only_what_is_missing(tmp_path, monkeypatch, capsys):
    command = ["quality.py", "--split", "tuning", "--sets", "standard", "--methods", "uniform", "mmtok"]
    command += ["--questions", "4", "--results", str(tmp_path / "r.jsonl"), "--out", str(tmp_path / "quality")]
    monkeypatch.setattr("sys.argv", [*command, "--budgets", "16"])
    assert quality.main() == 0
    lines = (tmp_path / "r.jsonl").read_text().splitlines()
    assert len(lines) == 4 * 3
    monkeypatch.setattr("sys.argv", [*command, "--budgets", "16", "8"])
    assert quality.main() == 0
    more = (tmp_path / "r.jsonl").read_text().splitlines()
    assert more[: len(lines)] == lines
    assert len(more) == 4 * 5
    assert {json.loads(line)["keep"] for line in more[len(lines) :]} == {8}
    text = (tmp_path / "quality.md").read_text()
    assert "--budgets 16 8" in text
    assert (tmp_path / "quality.png").stat().st_size > 5000
    capsys.readouterr()


@pytest.fixture
def results():
    items = [Item("hard", seed, "color", "?", "red") for seed in range(20)]
    correct = {
        Cell(UNPRUNED, 576): [True] * 18 + [False] * 2,
        Cell("mmtok", 16): [True] * 17 + [False] * 3,
        Cell("random", 16): [True] * 5 + [False] * 15,
    }
    return SetResults("hard", items, correct, 576)


def test_tables_say_what_the_answers_were(results, tmp_path):
    table = accuracy_table(results).splitlines()
    assert table[0] == "| method | 16 |"
    assert table[2].startswith("| mmtok | 85.0 [")
    assert table[3].startswith("| random | 25.0 [")
    (row,) = comparison_table(results, "mmtok").splitlines()[2:]
    assert row == "| random | +60.0* (12:0, p 0.00049) |"
    write_markdown(tmp_path / "a.md", "# Title", [results])
    assert "**90.0 [" in (tmp_path / "a.md").read_text()
    write_plot(tmp_path / "a.png", [results])
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
