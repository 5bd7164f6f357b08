"""Data folders of earlier versions: what they kept is there, and goes on as if nothing had happened."""

import json
import shutil
import sqlite3
from pathlib import Path

import pytest

from covervlm.server.store import Store
from covervlm.server.store.database import Database
from covervlm.server.store.schema import MIGRATIONS
from tests.server.api.clip_app import clip_client

VERSION_1 = Path(__file__).parent / "version_1"
"""Made by the server before there were migrations, with all that it answered."""

EXPECTED = json.loads((VERSION_1 / "expected.json").read_text())


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "old"
    shutil.copytree(VERSION_1, folder)
    with clip_client(folder) as client:
        yield client


def close(entry: dict) -> dict:
    """A label with its probabilities as far as two machines agree on them."""
    top = {choice["label"]: pytest.approx(choice["probability"], abs=1e-3) for choice in entry["top"]}
    return {"index": entry["index"], "label": entry["label"], "top": top}


def told(entry: dict) -> dict:
    top = {choice["label"]: choice["probability"] for choice in entry["top"]}
    return {"index": entry["index"], "label": entry["label"], "top": top}


def test_the_folder_is_of_the_first_version():
    with sqlite3.connect(f"file:{VERSION_1 / 'covervlm.sqlite3'}?mode=ro&immutable=1", uri=True) as db:
        assert db.execute("PRAGMA user_version").fetchone()[0] == 1
    db.close()


def test_classifiers_are_listed_as_before_and_classify_the_same(client):
    expected = [card | {"object": "classifier", "version": 1} for card in EXPECTED["classifiers"]]
    assert client.get("/v1/classifiers").json()["data"] == expected
    for name, labels in EXPECTED["labels"].items():
        body = {"images": EXPECTED["images"], "classifier": name, "top": 3}
        answer = client.post("/v1/classify", json=body).json()["data"]
        assert [told(entry) for entry in answer] == [close(entry) for entry in labels]


def test_finished_jobs_are_listed_and_keep_their_results(client):
    methods = {"classifier": "inmap", "clustering": "clip_kmeans"}
    expected = [job | {"method": methods[job["kind"]]} for job in EXPECTED["jobs"]]
    assert client.get("/v1/jobs").json()["data"] == expected
    assert {job["state"] for job in expected} == {"succeeded", "cancelled"}
    for name, job in EXPECTED["results"].items():
        assert client.get(f"/v1/jobs/{name}").json() == job | {"method": methods[job["kind"]]}


def test_a_session_goes_on_identically_and_remembers_its_keys(client):
    path = f"/v1/streams/{EXPECTED['session']}"
    stream = client.get(path).json()
    assert [group["label"] for group in stream.pop("groups")] == stream["classes"]
    assert stream == EXPECTED["sessions"] | {"object": "stream", "method": "onzeta", "snapshot_observed": 4}
    calls = [(EXPECTED["images"][:4], "first"), (EXPECTED["images"][4:], "second")]
    first, second = (
        client.post(f"{path}/observe", json={"images": images, "top": 3}, headers={"Idempotency-Key": key}).json()
        for images, key in calls
    )
    assert [told(entry) for entry in first["data"]] == [told(entry) for entry in EXPECTED["observed"]["data"]]
    assert second["observed"] == 8
    assert [told(entry) for entry in second["data"]] == [close(entry) for entry in EXPECTED["goes_on"]["data"]]


def test_a_migrated_folder_has_the_schema_of_a_new_one(tmp_path):
    shutil.copytree(VERSION_1, tmp_path / "old")
    schemas = []
    for name in ("old", "new"):
        Database(tmp_path / name).close()
        with sqlite3.connect(tmp_path / name / "covervlm.sqlite3") as db:
            rows = db.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%'")
            schemas.append(sorted(rows.fetchall()))
            assert db.execute("PRAGMA user_version").fetchone()[0] == len(MIGRATIONS)
            assert db.execute("PRAGMA foreign_key_check").fetchall() == []
        db.close()
    assert schemas[0] == schemas[1]


def test_a_migration_that_fails_leaves_the_folder_as_it_was(tmp_path, monkeypatch):
    folder = tmp_path / "old"
    shutil.copytree(VERSION_1, folder)
    monkeypatch.setattr("covervlm.server.store.schema.MIGRATIONS", (*MIGRATIONS, "CREATE TABLE jobs (id TEXT)"))
    with pytest.raises(Exception, match="already exists"):
        Database(folder)
    monkeypatch.undo()
    store = Store(Database(folder))
    assert {job.id for job in store.jobs("anonymous")} == set(EXPECTED["results"])
    store.close()


def test_values_that_json_does_not_know_do_not_keep_a_folder_from_opening(tmp_path):
    folder = tmp_path / "old"
    shutil.copytree(VERSION_1, folder)
    with sqlite3.connect(folder / "covervlm.sqlite3") as db:
        db.execute("UPDATE classifiers SET about = '{\"loss\": NaN, ' || substr(about, 2)")
    db.close()
    store = Store(Database(folder))
    assert len(store.artifacts("anonymous", "classifier")) == len(EXPECTED["classifiers"])
    store.close()
