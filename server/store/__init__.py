"""What survives a restart, in SQLite with blobs beside it."""

from covervlm.server.store.store import Store, new_id

__all__ = ["Store", "new_id"]
