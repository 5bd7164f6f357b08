"""The store keeps what it acknowledged through kill -9, shows owners only their own, and deletes what is deleted."""

import os
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from covervlm.server.store import NameTaken, Store
from covervlm.server.store.database import Database, StoreError
from covervlm.server.store.records import Answer

# Writes as the server does and says on stdout what was acknowledged, until it is killed.
WRITER = """
import sys
from pathlib import Path
from covervlm.server.store import Store
from covervlm.server.store.records import Answer
from covervlm.server.store.database import Database

store = Store(Database(Path(sys.argv[1])))
start = int(sys.argv[2])
session = (store.sessions("me") or [store.add_session("me", {"horizon": 9}, b"proxies" * 1000, b"0")])[0].id
running = store.add_job("me", "never finishes")
store.start_job(running.id)
print("running", running.id, flush=True)
print("session", session, flush=True)
for i in range(start, start + 100_000):
    answers = [Answer(f"key-{2 * i + j}", 2 * i + j, "digest", f"answer-{2 * i + j}") for j in range(2)]
    store.save_session(session, 2 * i + 2, str(2 * i + 2).encode() * 2000, answers)
    print("observed", 2 * i + 2, flush=True)
    job = store.add_job("me", "classifier")
    store.add_classifier("me", f"c{i}", {"number": i}, f"blob-{i}".encode() * 500, job=job.id)
    print("classifier", i, job.id, flush=True)
    if i % 3 == 2:
        store.delete_classifier("me", f"c{i - 1}")
        print("deleted", i - 1, flush=True)
"""


@pytest.fixture
def store(tmp_path):
    store = Store(Database(tmp_path / "data"))
    yield store
    store.close()


def test_kill_9_at_any_moment_loses_nothing_that_was_acknowledged(tmp_path):
    folder = tmp_path / "data"
    start, observed, session = 0, 0, ""
    classifiers: dict[int, str] = {}
    deleted: set[int] = set()
    for lifetime in (0.02, 0.05, 0.11, 0.17, 0.23, 0.31):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder), str(start)], stdout=subprocess.PIPE, text=True, bufsize=1
        )
        running = process.stdout.readline().split()[1]
        time.sleep(lifetime)  # the moment of death is the test's input, not something it waits for
        os.kill(process.pid, signal.SIGKILL)
        for line in process.stdout.read().splitlines():
            kind, *values = line.split()
            if kind == "observed":
                observed = max(observed, int(values[0]))
            elif kind == "classifier" and len(values) == 2:
                classifiers[int(values[0])] = values[1]
            elif kind == "deleted":
                deleted.add(int(values[0]))
            elif kind == "session":
                session = values[0]
        process.wait()
        with sqlite3.connect(folder / "covervlm.sqlite3") as db:
            assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        db.close()

        store = Store(Database(folder))
        job = store.job("me", running)
        assert (job.state, job.error["code"]) == ("failed", "server_restarted")
        kept = {entry.about["number"]: entry for entry in store.classifiers("me")}
        # A deletion is acknowledged after it is done: the one that was under way may have happened.
        lost = set(classifiers) - set(kept) - deleted
        assert lost <= {max(classifiers, default=0) - 1}
        deleted |= lost
        assert deleted.isdisjoint(kept)
        for number, entry in kept.items():
            assert store.read_blob(entry.blob) == f"blob-{number}".encode() * 500
        for number, name in classifiers.items():
            made = store.job("me", name)
            assert (made.state, made.result["classifier"]) == ("succeeded", f"c{number}")
        assert {path.name for path in (folder / "blobs").iterdir()} == {
            entry.blob for entry in [*store.classifiers("me"), *store.sessions("me")]
        }
        if session:
            state = store.session("me", session)
            assert state.observed >= observed
            assert state.state in (b"0", str(state.observed).encode() * 2000)
            assert [a.number for a in store.answers(session)] == list(range(state.observed))
        start = max([start, *(number + 1 for number in kept)])
        observed = store.session("me", session).observed if session else 0
        store.close()
    assert len(classifiers) > 5


def test_owners_do_not_see_each_other(store):
    mine = store.add_classifier("me", "name", {}, b"data")
    store.add_classifier("you", "name", {}, b"data")
    session = store.add_session("me", {}, b"data", b"state")
    job = store.add_job("me", "kind")
    assert store.classifier("you", mine.id) is None
    assert [entry.owner for entry in store.classifiers("you")] == ["you"]
    assert store.session("you", session.id) is None
    assert store.sessions("you") == []
    assert store.job("you", job.id) is None
    assert store.jobs("you") == []
    assert not store.delete_session("you", session.id)
    assert store.delete_classifier("you", "name")
    assert store.classifier("me", "name") == mine
    assert store.usage("me") == len(b"data") * 2 + len(b"state")
    assert store.usage("you") == 0


def test_a_name_is_given_once_and_leaves_no_file_behind_when_refused(store):
    store.add_classifier("me", "name", {}, b"first")
    job = store.add_job("me", "classifier")
    with pytest.raises(NameTaken):
        store.add_classifier("me", "name", {}, b"second", job=job.id)
    assert store.job("me", job.id).state == "queued"
    assert store.read_blob(store.classifier("me", "name").blob) == b"first"
    assert len(list((store._db.folder / "blobs").iterdir())) == 1


def test_deletion_deletes_also_from_the_files_on_disk(store):
    secret = b"SECRET" * 2000
    session = store.add_session("me", {}, b"proxies", secret)
    store.save_session(session.id, 1, secret, [Answer("key", 0, "digest", "ANSWER-TEXT")])
    store.add_classifier("me", "name", {"note": "CLASS-NOTE"}, secret)
    job = store.add_job("me", "clustering").id
    assert not store.delete_job("me", job)
    store.finish_job(job, "succeeded", result={"note": "JOB-NOTE" * 1000})

    def on_disk() -> bytes:
        return b"".join(p.read_bytes() for p in store._db.folder.rglob("*") if p.is_file())

    assert all(word in on_disk() for word in (b"SECRET", b"ANSWER-TEXT", b"CLASS-NOTE", b"JOB-NOTE"))
    assert store.delete_session("me", session.id)
    assert store.delete_classifier("me", "name")
    assert not store.delete_job("you", job)
    assert store.delete_job("me", job)
    assert not any(word in on_disk() for word in (b"SECRET", b"ANSWER-TEXT", b"CLASS-NOTE", b"JOB-NOTE"))
    assert store.answers(session.id) == []


def test_a_finished_job_stays_as_it_is_and_old_ones_make_room(store):
    job = store.add_job("me", "kind")
    store.finish_job(job.id, "succeeded", result={"a": 1})
    store.finish_job(job.id, "failed", error={"code": "x", "message": "y"})
    assert (store.job("me", job.id).state, store.job("me", job.id).result) == ("succeeded", {"a": 1})
    unfinished = store.add_job("me", "kind")
    for _ in range(5):
        store.finish_job(store.add_job("me", "kind", keep=3).id, "cancelled")
    kept = store.jobs("me")
    assert unfinished.id in {entry.id for entry in kept}
    assert sum(entry.finished is not None for entry in kept) <= 4


def test_the_snapshot_and_its_answers_change_together(store):
    session = store.add_session("me", {}, b"proxies", b"0")
    store.save_session(session.id, 3, b"three", [Answer(str(i), i, "d", "a") for i in range(3)])
    with pytest.raises(sqlite3.Error):
        store.save_session(session.id, 4, b"four", [Answer("3", 3, None, "a")])
    assert (store.session("me", session.id).observed, store.session("me", session.id).state) == (3, b"three")
    store.save_session(session.id, 5, b"five", [], forget_before=2)
    assert [a.number for a in store.answers(session.id)] == [2]
    store.replace_session(session.id, 1, b"one")
    assert store.answers(session.id) == []
    assert store.session("me", session.id).observed == 1


def test_a_folder_serves_one_process_and_is_private(tmp_path, store):
    with pytest.raises(StoreError, match="in use by another server"):
        Database(tmp_path / "data")
    assert (tmp_path / "data" / "covervlm.sqlite3").stat().st_mode & 0o077 == 0
    assert (tmp_path / "data" / "blobs").stat().st_mode & 0o077 == 0


def test_folders_that_cannot_hold_data_are_refused_in_one_line(tmp_path):
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(StoreError, match="cannot be used"):
        Database(file)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "covervlm.sqlite3").write_bytes(b"not a database" * 100)
    with pytest.raises(StoreError, match="cannot be read"):
        Database(broken)
    newer = tmp_path / "newer"
    Database(newer).close()
    with sqlite3.connect(newer / "covervlm.sqlite3") as db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(StoreError, match="newer version"):
        Database(newer)


def test_without_a_folder_nothing_outlives_the_process():
    database = Database(None)
    folder = database.folder
    assert folder.exists()
    database.close()
    assert not folder.exists()
