"""Labels from CSV and Parquet files, as the client sends them."""

import csv
import io
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from covervlm.clients import classifiers, projections
from covervlm.clients.tables import read_table

COLUMNS = {"id": ["a,1", 'b"2', "c\n3"], "label": ["wren", "", "ro\u00e9"], "group": ["g", "h", "g"]}


@pytest.fixture(params=[".csv", ".parquet"])
def file(request, tmp_path: Path) -> Path:
    path = tmp_path / f"labels{request.param}"
    if request.param == ".parquet":
        vectors = pyarrow.array([[0.5]] * 3)
        pyarrow.parquet.write_table(pyarrow.table({**COLUMNS, "vector": vectors}), path)
    else:
        with path.open("w", encoding="utf-8-sig", newline="") as text:
            csv.writer(text).writerows([list(COLUMNS), *zip(*COLUMNS.values(), strict=True)])
    return path


def test_both_kinds_hold_the_same(file):
    assert read_table(file) == COLUMNS


def test_a_path_in_place_of_labels_brings_groups_and_ids(file):
    body = classifiers.train("x", file, uploads=["emb_1"]).body
    assert "labels" not in body
    rows = list(csv.DictReader(io.StringIO(body["labels_csv"], newline="")))
    assert {name: [row[name] for row in rows] for name in COLUMNS} == COLUMNS
    body = classifiers.train("x", file, [b"1", b"2", b"3"]).body
    assert [(one["label"], one["group"], one["id"]) for one in body["examples"]] == list(
        zip(COLUMNS["label"], COLUMNS["group"], COLUMNS["id"], strict=True)
    )


def test_numbers_and_nothing_are_texts(tmp_path):
    path = tmp_path / "numbers.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"label": [1, None, 3]}), path)
    body = projections.train("x", path, uploads=["emb_1"]).body
    assert body["labels_csv"].split() == ["label", "1", '""', "3"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"label\n", "ends in .csv or .parquet"),
        ("a.csv", b"label,id\na\n", "line 2 cannot be read"),
        ("a.csv", b"label\n\xff\n", "cannot be read"),
        ("a.csv", b"name\na\n", "no column 'label'"),
        ("a.csv", b"", "no column 'label'"),
        ("a.parquet", b"PAR1 and no more", "cannot be read"),
    ],
)
def test_a_file_that_is_no_table_is_told_by_name(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words) as told:
        classifiers.train("x", tmp_path / name, uploads=["emb_1"])
    assert name in str(told.value)


def test_as_many_labels_as_images_are_needed(file):
    with pytest.raises(ValueError, match="2 images"):
        classifiers.train("x", file, [b"1", b"2"])
