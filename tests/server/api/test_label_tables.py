"""Labels as the text of a CSV file, in the body of a request to learn."""

import base64
import csv
import io

import numpy as np
import pytest

from covervlm.server.api.wire.label_table import MOST_ROWS, read_labels
from tests.server.api.clip_app import clip_client, error, finished

N = 24
ROWS = np.random.default_rng(0).normal(size=(N, 64)).astype(np.float32)
LABELS = [f'{i % 3}",' for i in range(N)]
GROUPS = [f"g{i % 2}" for i in range(N)]
IDS = [f"photo\n{i}" for i in range(N)]


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with clip_client(tmp_path_factory.mktemp("data")) as client:
        yield client


def embeddings() -> str:
    file = io.BytesIO()
    np.save(file, ROWS)
    return base64.b64encode(file.getvalue()).decode()


def table(columns: dict[str, list[str]], **dialect: str) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, **dialect).writerows([list(columns), *zip(*columns.values(), strict=True)])
    return text.getvalue()


def trained(client, path: str, **body) -> dict:
    answer = client.post(path, json={"name": "x", "embeddings": embeddings(), **body})
    assert answer.status_code == 202, answer.text
    state = finished(client, answer.json()["id"])
    assert state["state"] == "succeeded", state["error"]
    return client.get(f"{path}/x").json()["about"]


@pytest.mark.parametrize("text", ["\n", "\r\n"])
def test_a_classifier_learns_from_a_table_what_it_learns_from_lists(client, text):
    told = table({"id": IDS, "group": GROUPS, "remark": GROUPS, "label": LABELS}, lineterminator=text)
    listed = trained(client, "/v1/classifiers", method="linear", labels=LABELS, groups=GROUPS, ids=IDS)
    assert trained(client, "/v1/classifiers", method="linear", labels_csv="\ufeff" + told + text) == listed
    assert {one["id"] for one in listed["report"]["mistakes"]} <= set(IDS)


def test_without_a_method_the_table_is_labels_and_the_best_is_taken(client):
    body = {"parameters": None, "labels_csv": table({"label": LABELS})}
    assert {"linear", "zero_shot"} <= {
        one["method"] for one in trained(client, "/v1/classifiers", **body)["report"]["compared"]
    }


def test_a_projection_learns_from_a_table_too(client):
    few = {"parameters": {"epochs": 2}}
    told = trained(client, "/v1/projections", labels_csv=table({"label": LABELS, "id": IDS}), **few)
    assert told == trained(client, "/v1/projections", labels=LABELS, ids=IDS, **few)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"labels_csv": ""}, "must name the columns, 'label' among them"),
        ({"labels_csv": ""}, "line 1: the first line"),
        ({"labels_csv": "name\na\n"}, "must name the columns, 'label' among them"),
        ({"labels_csv": "label,label\na,b\n"}, "must name the columns, 'label' among them"),
        ({"labels_csv": "label,id\na,1\nb\n"}, "line 3: 1 cells, but the first line names 2 columns"),
        ({"labels_csv": "label\n" + "a" * 200_000}, "line 2: field larger than field limit"),
        ({"labels_csv": "label\n" + "a\n" * (MOST_ROWS + 1)}, f"there may be {MOST_ROWS} examples at most"),
        ({"labels_csv": "label\na\nb\n", "labels": ["a", "b"]}, "leave 'labels' out"),
        ({"labels_csv": "label,id\na,1\nb,2\n", "ids": ["1", "2"]}, "leave 'ids' out"),
        ({"labels_csv": "label,group\na,1\nb,2\n", "groups": ["1", "2"]}, "leave 'groups' out"),
        ({"labels_csv": "label\na\na\nb\n"}, f"{N} images and embeddings, but 3 labels"),
        ({"labels_csv": "label\n" + "\n".join("aab"[i % 3] if i else '""' for i in range(N))}, "A label is empty"),
        ({"labels_csv": table({"label": LABELS, "id": ["same"] * N})}, "'same' is given twice"),
    ],
)
def test_a_table_that_is_none_is_refused_with_its_line_and_starts_no_job(client, body, message):
    before = len(client.get("/v1/jobs").json()["data"])
    detail = error(client.post("/v1/classifiers", json={"name": "never", "embeddings": embeddings(), **body}), 400)
    assert message in detail["message"]
    assert len(client.get("/v1/jobs").json()["data"]) == before


def test_groups_in_a_table_are_refused_for_a_projection(client):
    body = {"name": "never", "embeddings": embeddings(), "labels_csv": table({"label": LABELS, "group": GROUPS})}
    assert "is for classifiers" in error(client.post("/v1/projections", json=body), 400)["message"]


def test_a_text_of_too_many_cells_is_not_taken_apart():
    with pytest.raises(ValueError, match="characters at most"):
        read_labels("label\n" + "," * 2**23)


def test_as_many_rows_are_read_as_examples_may_be_learned_from():
    assert len(read_labels("label,group,id\n" + "a,b,c\n" * MOST_ROWS)["ids"]) == MOST_ROWS
