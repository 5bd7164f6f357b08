"""The store keeps what it acknowledged through kill -9, shows owners only their own, and deletes what is deleted."""

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from covervlm.server.core.errors import Damaged, QuotaExceeded
from covervlm.server.store import Store
from covervlm.server.store.database import Database, StoreError
from covervlm.server.store.records import KeyedAnswer

# Writes as the server does and says on stdout what was acknowledged, until it is killed.
WRITER = """
import sys
from pathlib import Path
from covervlm.server.store import Store
from covervlm.server.store.records import KeyedAnswer
from covervlm.server.store.database import Database

store = Store(Database(Path(sys.argv[1])))
start = int(sys.argv[2])
opened = store.artifacts("me", "stream")
session = (opened or [store.add("me", "stream", {"horizon": 9}, b"proxies" * 1000, state=b"0")])[0].id
running = store.add_job("me", "never finishes")
store.start_job(running.id)
print("running", running.id, flush=True)
print("stream", session, flush=True)
for i in range(start, start + 100_000):
    answers = [KeyedAnswer(f"key-{2 * i + j}", 2 * i + j, "digest", f"answer-{2 * i + j}") for j in range(2)]
    store.save_state(session, 2 * i + 2, str(2 * i + 2).encode() * 2000, answers)
    print("observed", 2 * i + 2, flush=True)
    job = store.add_job("me", "classifier")
    store.add("me", "classifier", {"number": i}, f"blob-{i}".encode() * 500, name=f"c{i}", job=job.id)
    print("classifier", i, job.id, flush=True)
    if i % 3 == 2:
        store.delete("me", "classifier", f"c{i - 1}")
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
            elif kind == "stream":
                session = values[0]
        process.wait()
        with sqlite3.connect(folder / "covervlm.sqlite3") as db:
            assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        db.close()

        store = Store(Database(folder))
        job = store.job("me", running)
        assert (job.state, job.error["code"]) == ("failed", "server_restarted")
        kept = {entry.card["number"]: entry for entry in store.artifacts("me", "classifier")}
        # A deletion is acknowledged after it is done: the one that was under way may have happened.
        lost = set(classifiers) - set(kept) - deleted
        assert lost <= {max(classifiers, default=0) - 1}
        deleted |= lost
        assert deleted.isdisjoint(kept)
        for number, entry in kept.items():
            assert store.read(entry) == f"blob-{number}".encode() * 500
        for number, name in classifiers.items():
            made = store.job("me", name)
            assert (made.state, made.result["classifier"]) == ("succeeded", f"c{number}@1")
        assert {path.name for path in (folder / "blobs").iterdir()} == {
            entry.blob for entry in [*store.artifacts("me", "classifier"), *store.artifacts("me", "stream")]
        }
        if session:
            state = store.find("me", "stream", session)
            assert state.observed >= observed
            assert state.state in (b"0", str(state.observed).encode() * 2000)
            assert [a.number for a in store.answers(session)] == list(range(state.observed))
        start = max([start, *(number + 1 for number in kept)])
        observed = store.find("me", "stream", session).observed if session else 0
        store.close()
    assert len(classifiers) > 5


def test_owners_do_not_see_each_other(store):
    mine = store.add("me", "classifier", {}, b"data", name="name")
    store.add("you", "classifier", {}, b"data", name="name")
    session = store.add("me", "stream", {}, b"data", state=b"state")
    job = store.add_job("me", "kind")
    assert store.find("you", "classifier", mine.id) is None
    assert [entry.owner for entry in store.artifacts("you", "classifier")] == ["you"]
    assert store.find("you", "stream", session.id) is None
    assert store.artifacts("you", "stream") == []
    assert store.job("you", job.id) is None
    assert store.jobs("you") == []
    assert not store.delete("you", "stream", session.id)
    assert store.delete("you", "classifier", "name")
    assert store.find("me", "classifier", "name") == mine
    assert store.usage("me", "classifier") == (1, len(b"data") * 2 + len(b"state"))
    assert store.usage("you", "classifier") == (0, 0)


def test_names_have_versions_whose_numbers_are_given_once(store):
    first, second = (store.add("me", "classifier", {}, data, name="name") for data in (b"first", b"second"))
    assert (first.reference, second.reference) == ("name@1", "name@2")
    assert store.find("me", "classifier", "name") == second
    assert store.find("me", "classifier", "name@1") == store.find("me", "classifier", first.id) == first
    assert store.add("me", "stream", {}, b"", name="name").version == 1
    assert store.add("you", "classifier", {}, b"", name="name").version == 1
    assert store.delete("me", "classifier", "name@2")
    assert store.find("me", "classifier", "name") == first
    assert store.add("me", "classifier", {}, b"third", name="name").version == 3
    assert store.delete("me", "classifier", "name")
    assert store.artifacts("me", "classifier") == []
    assert store.find("you", "classifier", "name@1") is not None
    assert store.add("me", "classifier", {}, b"anew", name="name").version == 1


def test_an_artifact_that_is_named_like_another_ones_id_is_deleted_alone(store):
    first = store.add("me", "classifier", {}, b"first", name="first")
    store.add("me", "classifier", {}, b"second", name=first.id)
    assert store.delete("me", "classifier", first.id)
    assert store.artifacts("me", "classifier") == [first]


def test_an_artifact_that_is_refused_leaves_no_file_and_no_number_behind(store):
    def refuse(count: int, held: int) -> None:
        raise OverflowError

    job = store.add_job("me", "classifier")
    with pytest.raises(OverflowError):
        store.add("me", "classifier", {}, b"data", name="name", job=job.id, admit=refuse)
    assert store.job("me", job.id).state == "queued"
    assert list((store._db.folder / "blobs").iterdir()) == []
    assert store.add("me", "classifier", {}, b"data", name="name").version == 1


def test_deletion_deletes_also_from_the_files_on_disk(store):
    secret = b"SECRET" * 2000
    session = store.add("me", "stream", {}, b"proxies", state=secret)
    store.save_state(session.id, 1, secret, [KeyedAnswer("key", 0, "digest", "ANSWER-TEXT")])
    store.add("me", "classifier", {"note": "CLASS-NOTE"}, secret, name="name")
    job = store.add_job("me", "clustering").id
    assert not store.delete_job("me", job)
    store.finish_job(job, "succeeded", result={"note": "JOB-NOTE" * 1000})

    def on_disk() -> bytes:
        return b"".join(p.read_bytes() for p in store._db.folder.rglob("*") if p.is_file())

    assert all(word in on_disk() for word in (b"SECRET", b"ANSWER-TEXT", b"CLASS-NOTE", b"JOB-NOTE"))
    assert store.delete("me", "stream", session.id)
    assert store.delete("me", "classifier", "name")
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
    session = store.add("me", "stream", {}, b"proxies", state=b"0")
    store.save_state(session.id, 3, b"three", [KeyedAnswer(str(i), i, "d", "a") for i in range(3)])
    with pytest.raises(sqlite3.Error):
        store.save_state(session.id, 4, b"four", [KeyedAnswer("3", 3, None, "a")])
    kept = store.find("me", "stream", session.id)
    assert (kept.observed, kept.state) == (3, b"three")
    store.save_state(session.id, 5, b"five", [], forget_before=2)
    assert [a.number for a in store.answers(session.id)] == [2]
    store.replace_state(session.id, 1, b"one")
    assert store.answers(session.id) == []
    assert store.find("me", "stream", session.id).observed == 1


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


def test_files_that_the_database_does_not_name_are_set_aside_and_never_deleted(tmp_path, caplog):
    """The database is lost, empty, or older than the files: as after a restored backup."""
    folder = tmp_path / "data"
    store = Store(Database(folder))
    store.add("me", "classifier", {}, b"early", name="early")
    store.close()
    backup = (folder / "covervlm.sqlite3").read_bytes()
    store = Store(Database(folder))
    store.add("me", "classifier", {}, b"late", name="late")
    store.close()
    for database, kept, aside in ((backup, {b"early"}, {b"late"}), (b"", set(), {b"early"}), (None, set(), {b"more"})):
        if database is None:
            (folder / "covervlm.sqlite3").unlink()
            (folder / "blobs" / "any").write_bytes(b"more")
        else:
            (folder / "covervlm.sqlite3").write_bytes(database)
        before = set(folder.glob("quarantine/*/*"))
        caplog.clear()
        Database(folder).close()
        assert {path.read_bytes() for path in (folder / "blobs").iterdir()} == kept
        assert {path.read_bytes() for path in set(folder.glob("quarantine/*/*")) - before} == aside
        assert f"1 files that the database does not name were moved to {folder / 'quarantine'}" in caplog.text


def test_a_write_ahead_log_beside_an_empty_database_is_set_aside(tmp_path):
    folder = tmp_path / "data"
    Database(folder).close()
    (folder / "covervlm.sqlite3").write_bytes(b"")
    (folder / "covervlm.sqlite3-wal").write_bytes(b"what was written last")
    Database(folder).close()
    (log,) = folder.glob("quarantine/*/*")
    assert log.read_bytes() == b"what was written last"


def test_a_deletion_that_was_cut_short_is_completed_and_its_file_not_set_aside(tmp_path, monkeypatch):
    folder = tmp_path / "data"
    store = Store(Database(folder))
    store.add("me", "classifier", {}, b"secret", name="name")
    monkeypatch.setattr(Database, "forget_blob", lambda self, blob: None)  # as if the process were killed here
    assert store.delete("me", "classifier", "name")
    store.close()
    assert len(list((folder / "blobs").iterdir())) == 1
    Database(folder).close()
    assert list((folder / "blobs").iterdir()) == []
    assert not (folder / "quarantine").exists()


@pytest.mark.parametrize("before", [None, 0o755])
def test_folder_database_and_log_are_for_the_servers_user_alone_from_the_start(tmp_path, before):
    folder = tmp_path / "data"
    if before is not None:
        Database(folder).close()
        folder.chmod(before)
        (folder / "covervlm.sqlite3").chmod(0o644)
    umask = os.umask(0)
    try:
        database = Database(folder)
        modes = {path.name: path.stat().st_mode & 0o777 for path in (folder, *folder.iterdir())}
        database.close()
    finally:
        os.umask(umask)
    private = {"covervlm.sqlite3": 0o600, "covervlm.sqlite3-wal": 0o600, "reserve": 0o600}
    assert modes == {"data": 0o700, "blobs": 0o700, **private}


def test_a_folder_that_holds_other_things_keeps_its_mode(tmp_path):
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o755)
    (folder / "somebody's.txt").touch()
    Database(folder).close()
    assert folder.stat().st_mode & 0o777 == 0o755
    assert (folder / "covervlm.sqlite3").stat().st_mode & 0o777 == 0o600


def test_jobs_come_in_pages_in_either_order_and_without_results(store):
    names = [store.add_job("me", "kind").id for _ in range(5)]
    other = store.add_job("you", "kind").id
    store.finish_job(names[1], "succeeded", result={"large": "x" * 10_000})
    assert [job.id for job in store.jobs("me", limit=2)] == names[:2]
    assert [job.id for job in store.jobs("me", limit=2, after=names[1])] == names[2:4]
    assert [job.id for job in store.jobs("me", limit=2, after=names[2], newest_first=True)] == names[1::-1]
    assert [job.id for job in store.jobs("me", newest_first=True)] == names[::-1]
    assert store.jobs("me", after=names[-1]) == store.jobs("me", after=other) == store.jobs("me", after="none") == []
    assert store.jobs("me")[1].result is None
    assert store.job("me", names[1]).result == {"large": "x" * 10_000}


def test_lists_and_counts_read_no_results_no_states_and_no_cards(store):
    queries: list[str] = []
    job = store.add_job("me", "kind")
    store.finish_job(job.id, "succeeded", result={"a": 1})
    store.add("me", "classifier", {"classes": ["a"]}, b"x", name="name", state=b"state")
    store._db._db.set_trace_callback(queries.append)
    store.jobs("me", limit=10)
    store.artifacts("me", "classifier")
    (jobs, artifacts) = queries
    assert "result" not in jobs
    assert "state" not in artifacts
    queries.clear()
    assert store.usage("me", "classifier") == (1, 6)
    assert not any("card" in query or "*" in query.replace("count(*)", "") for query in queries)


def test_a_clock_that_goes_back_costs_no_new_job_and_no_order(tmp_path, monkeypatch):
    store = Store(Database(tmp_path))
    times = iter(range(1000, 0, -1))
    monkeypatch.setattr(time, "time", lambda: float(next(times)))
    jobs = []
    for _ in range(5):
        jobs.append(store.add_job("me", "kind", keep=3).id)
        store.finish_job(jobs[-1], "succeeded")
    store.add_job("me", "kind", keep=3)
    assert {job.id for job in store.jobs("me") if job.finished} == set(jobs[-3:])
    store.close()


def test_many_at_once_are_not_more_than_the_transaction_admits(tmp_path):
    store = Store(Database(tmp_path))

    def admit(count, size):
        if count >= 2:
            raise QuotaExceeded("enough")

    def add(number):
        with contextlib.suppress(QuotaExceeded):
            store.add("me", "stream", {}, b"x", admit=admit)

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(add, range(30)))
    assert store.usage("me", "stream")[0] == 2
    assert len(list((tmp_path / "blobs").iterdir())) == 2
    store.close()


def test_a_lost_file_is_the_servers_error_and_names_what_is_damaged(tmp_path):
    store = Store(Database(tmp_path))
    artifact = store.add("me", "classifier", {}, b"x", name="mine")
    (tmp_path / "blobs" / artifact.blob).unlink()
    with pytest.raises(Damaged, match="'mine'"):
        store.read(artifact)
    assert store.delete("me", "classifier", "mine")
    store.close()
