"""A data folder without room: what would be kept is refused in words, everything else goes on, and room cures it."""

import errno
import os

import pytest

from covervlm.server.core.errors import StorageFull, StorageUnavailable
from covervlm.server.store import Store
from covervlm.server.store.database import Database
from tests.server.api.clip_app import SHAPES, clip_client, error, finished, urls


@pytest.fixture
def database(monkeypatch):
    """The database that the app opens."""
    opened = []
    init = Database.__init__

    def remember(self, *args):
        init(self, *args)
        opened.append(self)

    monkeypatch.setattr(Database, "__init__", remember)
    return opened


class Disk:
    """Makes an open database's disk full: SQLite by its own limit, files by what the system would say."""

    def __init__(self, database, monkeypatch):
        self._database, self._monkeypatch = database, monkeypatch

    def fill(self):
        used = self._database._db.execute("PRAGMA page_count").fetchone()[0]
        self._database._db.execute(f"PRAGMA max_page_count = {used}")
        free = self._database._db.execute("PRAGMA freelist_count").fetchone()[0]
        assert free == 0

        def fsync(descriptor):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        self._monkeypatch.setattr(os, "fsync", fsync)

    def make_room(self):
        self._database._db.execute("PRAGMA max_page_count = 1000000")
        self._monkeypatch.undo()


@pytest.fixture
def client(tmp_path, database):
    with clip_client(tmp_path) as client:
        assert client.post("/v1/embeddings", json={"input": ["a star"]}).status_code == 200
        yield client


@pytest.fixture
def disk(client, database, monkeypatch):
    return Disk(database[0], monkeypatch)


def test_a_full_disk_is_a_507_and_labels_go_on(client, disk, tmp_path):
    body = {"classes": SHAPES, "horizon": 10}
    session = client.post("/v1/streams", json=body).json()["id"]
    disk.fill()
    refused = error(client.post("/v1/streams", json=body), 507)
    assert (refused["type"], refused["code"]) == ("server_error", "storage_full")
    assert "room" in refused["message"]
    assert len(list((tmp_path / "blobs").iterdir())) == 1
    seen = client.post(f"/v1/streams/{session}/observe", json={"images": urls(2)})
    assert (seen.status_code, seen.json()["observed"]) == (200, 2)
    assert client.post("/v1/classify", json={"images": urls(1), "classes": SHAPES}).status_code == 200
    disk.make_room()
    assert client.post("/v1/streams", json=body).status_code == 201


def test_a_job_whose_result_finds_no_room_fails_with_that_reason(client, disk):
    body = {"name": "shapes", "classes": SHAPES, "images": urls(4), "parameters": {"iterations": 5}}
    job = client.post("/v1/classifiers", json=body).json()["id"]
    assert finished(client, job)["state"] == "succeeded"
    large = body | {"name": "large", "parameters": {"iterations": 100_000, "tolerance": 0}}
    job = client.post("/v1/classifiers", json=large | {"parameters": {"iterations": 400}}).json()["id"]
    disk.fill()
    state = finished(client, job)
    assert (state["state"], state["error"]["code"]) == ("failed", "storage_full")
    assert client.get("/v1/classifiers/large").status_code == 404
    disk.make_room()
    again = client.post("/v1/classifiers", json=body | {"name": "again"}).json()["id"]
    assert finished(client, again)["state"] == "succeeded"


def test_an_outcome_that_cannot_even_be_stored_is_told_all_the_same(client, disk, monkeypatch):
    body = {"name": "shapes", "classes": SHAPES, "images": urls(4), "parameters": {"iterations": 400}}

    def full(*args, **kwargs):
        raise StorageFull

    with monkeypatch.context() as patch:
        job = client.post("/v1/classifiers", json=body).json()["id"]
        patch.setattr(Store, "add", full)
        patch.setattr(Store, "finish_job", full)
        state = finished(client, job)
    assert (state["state"], state["error"]["code"]) == ("failed", "storage_full")
    assert client.get(f"/v1/jobs/{job}").json()["state"] == "failed"


def test_a_failed_write_leaves_no_file_and_no_open_transaction(tmp_path, monkeypatch):
    database = Database(tmp_path)
    store = Store(database)
    disk = Disk(database, monkeypatch)
    disk.fill()
    with pytest.raises(StorageFull):
        store.add("me", "classifier", {}, b"x" * 10_000, name="name")
    with pytest.raises(StorageFull):
        store.add_job("me", "kind" * 10_000)
    assert list((tmp_path / "blobs").iterdir()) == []
    disk.make_room()
    assert store.add("me", "classifier", {}, b"x", name="name").name == "name"
    assert store.add_job("me", "kind").state == "queued"
    store.close()


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.EACCES])
def test_other_failures_of_the_disk_are_not_told_as_a_full_one(tmp_path, monkeypatch, number):
    def broken(descriptor):
        raise OSError(number, os.strerror(number))

    database = Database(tmp_path)
    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(StorageUnavailable):
        Store(database).add("me", "classifier", {}, b"x", name="name")
    database.close()


def test_a_database_that_became_read_only_is_a_503_and_goes_on_being_read(client, database):
    body = {"classes": SHAPES, "horizon": 10}
    session = client.post("/v1/streams", json=body).json()["id"]
    database[0]._db.execute("PRAGMA query_only = ON")
    refusals = [
        client.post("/v1/streams", json=body),
        client.delete(f"/v1/streams/{session}"),
        client.put("/v1/streams/" + session + "/snapshot", content=b"x"),
    ]
    assert [refused.status_code for refused in refusals] == [503, 503, 400]
    assert error(refusals[0], 503)["code"] == "storage_unavailable"
    assert client.get(f"/v1/streams/{session}").status_code == 200
    database[0]._db.execute("PRAGMA query_only = OFF")
    assert client.delete(f"/v1/streams/{session}").status_code == 200


def test_on_a_full_disk_deleting_takes_the_room_set_aside_for_it(tmp_path, monkeypatch):
    store = Store(Database(tmp_path))
    store.add("me", "classifier", {}, b"x", name="name")
    store.add_job("me", "kind")
    reserve, transaction = tmp_path / "reserve", Database.transaction
    assert reserve.stat().st_blocks * 512 >= 2**20

    def without_room(self):
        if reserve.exists():
            raise StorageFull
        return transaction(self)

    monkeypatch.setattr(Database, "transaction", without_room)
    with pytest.raises(StorageFull):
        store.add("me", "classifier", {}, b"x", name="another")
    assert store.delete("me", "classifier", "name")
    assert list((tmp_path / "blobs").iterdir()) == []
    assert reserve.exists()
    store.close()


def test_a_deletion_that_took_effect_is_told_as_one_whatever_the_disk_says_afterwards(tmp_path, monkeypatch):
    database = Database(tmp_path)
    store = Store(database)
    store.add("me", "classifier", {}, b"x", name="name")

    def full(name):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(database, "remove_blob", full)
    assert store.delete("me", "classifier", "name")
    assert store.find("me", "classifier", "name") is None
    store.close()


def test_damaged_files_are_the_servers_error_naming_what_it_is_and_can_be_deleted(tmp_path):
    with clip_client(tmp_path) as client:
        body = {"name": "shapes", "classes": SHAPES, "images": urls(4), "parameters": {"iterations": 5}}
        finished(client, client.post("/v1/classifiers", json=body).json()["id"])
        session = client.post("/v1/streams", json={"classes": SHAPES, "horizon": 10}).json()["id"]
    for path in (tmp_path / "blobs").iterdir():
        path.write_bytes(b"\0" * 100)
    with clip_client(tmp_path) as client:
        ask = {"images": urls(1)}
        answers = {
            "shapes": client.post("/v1/classify", json=ask | {"classifier": "shapes"}),
            session: client.post(f"/v1/streams/{session}/observe", json=ask),
        }
        for name, answer in answers.items():
            told = error(answer, 500)
            assert told["code"] == "storage_damaged"
            assert f"'{name}'" in told["message"]
        assert client.delete("/v1/classifiers/shapes").status_code == 200
        assert client.delete(f"/v1/streams/{session}").status_code == 200
        assert list((tmp_path / "blobs").iterdir()) == []
