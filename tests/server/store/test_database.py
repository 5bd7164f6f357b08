"""Room on the disk is set aside for deletions: as much as a small disk allows, and never more than half of it."""

import errno
import os
from types import SimpleNamespace

import pytest

from covervlm.server.store.database import Database

MIB = 2**20


class Disk:
    """What the system says of a disk of some size on which nothing but the reserve lies."""

    def __init__(self, size, monkeypatch):
        self.free = size
        monkeypatch.setattr(
            os, "fstatvfs", lambda descriptor: SimpleNamespace(f_bavail=self.free // 4096, f_frsize=4096)
        )
        monkeypatch.setattr(os, "posix_fallocate", self._allocate)

    def _allocate(self, descriptor, offset, length):
        more = length - os.fstat(descriptor).st_size
        if more > self.free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.free -= more
        os.ftruncate(descriptor, length)


@pytest.mark.parametrize(("size", "reserved"), [(100 * MIB, 8 * MIB), (9 * MIB, 4.5 * MIB), (4 * MIB, 2 * MIB), (0, 0)])
def test_room_is_set_aside_on_small_disks_too(tmp_path, monkeypatch, size, reserved):
    disk = Disk(size, monkeypatch)
    database = Database(tmp_path)
    assert (tmp_path / "reserve").stat().st_size == reserved
    for _ in range(3):
        database.set_aside()
    assert disk.free == size - reserved
    database.close()


def test_what_is_set_aside_grows_with_the_room(tmp_path, monkeypatch):
    disk = Disk(4 * MIB, monkeypatch)
    database = Database(tmp_path)
    disk.free += 6 * MIB
    database.set_aside()
    assert (tmp_path / "reserve").stat().st_size == 5 * MIB
    disk.free += 100 * MIB
    database.freeing(lambda: None)
    assert (tmp_path / "reserve").stat().st_size == 8 * MIB
    database.close()
