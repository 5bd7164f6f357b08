"""What the system knows of a process and its children: memory and its peak, threads, open files, time on processors."""

import os
from collections.abc import Iterator
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")


def tree(pid: int) -> list[int]:
    """The process and everything below it; empty once it has ended."""
    found = []
    waiting = [pid]
    while waiting:
        current = waiting.pop()
        try:
            threads = list(Path(f"/proc/{current}/task").iterdir())
            children = [child for thread in threads for child in (thread / "children").read_text().split()]
        except OSError:
            continue
        found.append(current)
        waiting += map(int, children)
    return found


def _status(pid: int) -> dict[str, str]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return dict(line.split(":", 1) for line in lines)


def _sum(pid: int, field: str) -> int:
    return sum(int(_status(each).get(field, "0").split()[0]) for each in tree(pid))


def resident(pid: int) -> int:
    """Bytes in memory now."""
    return _sum(pid, "VmRSS") * 1024


def peak(pid: int) -> int:
    """Most bytes in memory since `forget_peak`."""
    return _sum(pid, "VmHWM") * 1024


def forget_peak(pid: int) -> None:
    for each in tree(pid):
        Path(f"/proc/{each}/clear_refs").write_text("5")


def threads(pid: int) -> int:
    return _sum(pid, "Threads")


def files(pid: int) -> int:
    """Open descriptors, sockets among them."""
    return sum(1 for each in tree(pid) for _ in _descriptors(each))


def _descriptors(pid: int) -> Iterator[str]:
    try:
        yield from os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return


def seconds(pid: int) -> float:
    """Processor seconds used so far."""
    used = 0
    for each in tree(pid):
        try:
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        used += int(fields[11]) + int(fields[12])
    return used / _TICK


def machine_seconds() -> float:
    """Processor seconds that the whole machine has used so far, and those that its host withheld from it."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields
    return (user + nice + system + irq + softirq + steal) / _TICK
