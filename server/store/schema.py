"""The database's schema as numbered steps: a data folder of any earlier version is brought up to date when opened."""

import contextlib
import sqlite3

MIGRATIONS = (
    """
    CREATE TABLE classifiers (
        id TEXT PRIMARY KEY, owner TEXT NOT NULL, name TEXT NOT NULL, created REAL NOT NULL,
        about TEXT NOT NULL, blob TEXT NOT NULL, size INTEGER NOT NULL, UNIQUE (owner, name)
    );
    CREATE TABLE jobs (
        id TEXT PRIMARY KEY, owner TEXT NOT NULL, kind TEXT NOT NULL, state TEXT NOT NULL, created REAL NOT NULL,
        finished REAL, progress TEXT NOT NULL, result TEXT, error TEXT
    );
    CREATE INDEX jobs_by_owner ON jobs (owner, created);
    CREATE TABLE sessions (
        id TEXT PRIMARY KEY, owner TEXT NOT NULL, created REAL NOT NULL,
        about TEXT NOT NULL, blob TEXT NOT NULL, size INTEGER NOT NULL, observed INTEGER NOT NULL, state BLOB NOT NULL
    );
    CREATE TABLE answers (
        session TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE, key TEXT NOT NULL, number INTEGER NOT NULL,
        digest TEXT NOT NULL, answer TEXT NOT NULL, PRIMARY KEY (session, key)
    )
    """,
    # What is kept has a kind and a method. Large columns come last: SQLite reads a row up to the last one asked for.
    """
    CREATE TABLE artifacts (
        id TEXT PRIMARY KEY, owner TEXT NOT NULL, kind TEXT NOT NULL, method TEXT, name TEXT, created REAL NOT NULL,
        blob TEXT NOT NULL, size INTEGER NOT NULL, observed INTEGER NOT NULL, card TEXT NOT NULL, state BLOB NOT NULL,
        UNIQUE (owner, kind, name)
    );
    CREATE INDEX artifacts_by_owner ON artifacts (owner, kind, created);
    INSERT INTO artifacts SELECT id, owner, 'classifier',
        CASE WHEN json_valid(about) THEN json_extract(about, '$.method') END,
        name, created, blob, size, 0, about, x'' FROM classifiers;
    INSERT INTO artifacts SELECT id, owner, 'session', 'onzeta', NULL, created, blob, size, observed, about, state
        FROM sessions;
    CREATE TABLE new_answers (
        artifact TEXT NOT NULL REFERENCES artifacts (id) ON DELETE CASCADE, key TEXT NOT NULL, number INTEGER NOT NULL,
        digest TEXT NOT NULL, answer TEXT NOT NULL, PRIMARY KEY (artifact, key)
    );
    INSERT INTO new_answers SELECT session, key, number, digest, answer FROM answers;
    CREATE TABLE new_jobs (
        id TEXT PRIMARY KEY, owner TEXT NOT NULL, kind TEXT NOT NULL, method TEXT, state TEXT NOT NULL,
        created REAL NOT NULL, finished REAL, progress TEXT NOT NULL, error TEXT, result TEXT
    );
    INSERT INTO new_jobs SELECT id, owner, kind,
        CASE WHEN kind = 'classifier' THEN 'inmap' WHEN json_valid(result) THEN json_extract(result, '$.method') END,
        state, created, finished, progress, error, result FROM jobs ORDER BY rowid;
    DROP TABLE answers;
    DROP TABLE sessions;
    DROP TABLE classifiers;
    DROP TABLE jobs;
    ALTER TABLE new_answers RENAME TO answers;
    ALTER TABLE new_jobs RENAME TO jobs;
    CREATE INDEX jobs_by_owner ON jobs (owner, created);
    CREATE INDEX jobs_by_state ON jobs (state);
    CREATE TABLE deleted_blobs (blob TEXT PRIMARY KEY)
    """,
    # Names have versions, of which `versions` knows the newest, deleted or not. Sessions are called streams.
    """
    CREATE TABLE new_artifacts (
        id TEXT PRIMARY KEY, owner TEXT NOT NULL, kind TEXT NOT NULL, method TEXT, name TEXT, version INTEGER NOT NULL,
        created REAL NOT NULL, blob TEXT NOT NULL, size INTEGER NOT NULL, observed INTEGER NOT NULL,
        card TEXT NOT NULL, state BLOB NOT NULL, UNIQUE (owner, kind, name, version)
    );
    INSERT INTO new_artifacts SELECT id, owner, CASE kind WHEN 'session' THEN 'stream' ELSE kind END, method, name, 1,
        created, blob, size, observed, card, state FROM artifacts ORDER BY rowid;
    CREATE TABLE new_answers (
        artifact TEXT NOT NULL REFERENCES new_artifacts (id) ON DELETE CASCADE, key TEXT NOT NULL,
        number INTEGER NOT NULL, digest TEXT NOT NULL, answer TEXT NOT NULL, PRIMARY KEY (artifact, key)
    );
    INSERT INTO new_answers SELECT artifact, key, number, digest, answer FROM answers;
    DROP TABLE answers;
    DROP TABLE artifacts;
    ALTER TABLE new_answers RENAME TO answers;
    ALTER TABLE new_artifacts RENAME TO artifacts;
    CREATE INDEX artifacts_by_owner ON artifacts (owner, kind, created);
    CREATE TABLE versions (
        owner TEXT NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL, newest INTEGER NOT NULL,
        PRIMARY KEY (owner, kind, name)
    );
    INSERT INTO versions SELECT owner, kind, name, 1 FROM artifacts WHERE name IS NOT NULL
    """,
)


class NewerSchema(Exception):
    """The database was written by a version of the server that knows more steps than this one."""


def migrate(db: sqlite3.Connection) -> None:
    """Take the steps that the database lacks, all of them or none. Raises NewerSchema."""
    db.execute("BEGIN IMMEDIATE")
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version > len(MIGRATIONS):
        raise NewerSchema
    for statements in MIGRATIONS[version:]:
        for statement in statements.split(";"):
            db.execute(statement)
    db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
    db.execute("COMMIT")
    if version < len(MIGRATIONS):
        with contextlib.suppress(sqlite3.OperationalError):  # where there is no room for it, the old pages stay
            db.execute("VACUUM")
