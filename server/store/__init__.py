"""What survives a restart, in SQLite with blobs beside it."""

from covervlm.server.store.store import NameTaken, Store, new_id

__all__ = ["NameTaken", "Store", "new_id"]
