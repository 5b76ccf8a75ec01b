"""What tests of whole programs look at: processes, sockets, and an object that leaves a mark where it is unpickled."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path


class Payload:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.mark,)


def children_of(pid: int) -> list[int]:
    """The processes that a process has started and that are there, from any of its threads."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def family(pid: int) -> set[int]:
    """A process and all its descendants."""
    found: set[int] = set()
    left = [pid]
    while left:
        one = left.pop()
        found.add(one)
        left += [child for child in children_of(one) if child not in found]
    return found


def listening(pids: Iterable[int]) -> list[str]:
    """The local addresses, as /proc/net writes them, on which any of the processes listens."""
    links = []
    for pid in pids:
        for handle in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                links.append(os.readlink(handle))
            except OSError:  # gone meanwhile
                continue
    sockets = {link[len("socket:[") : -1] for link in links if link.startswith("socket:[")}
    tables = "".join(Path("/proc/net", name).read_text() for name in ("tcp", "tcp6"))
    lines = [line.split() for line in tables.splitlines()]
    return [line[1] for line in lines if line[3] == "0A" and line[9] in sockets]
