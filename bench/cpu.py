"""CPU time of servers: of a process, of those it has waited for, and of its children that still run."""

from __future__ import annotations

import psutil


def cpu_seconds(pid: int) -> float:
    """What a process and its children have spent so far, user and system. 0 once it has ended."""
    try:
        process = psutil.Process(pid)
        times = process.cpu_times()
        spent = times.user + times.system + times.children_user + times.children_system
        children = process.children()
    except psutil.NoSuchProcess:
        return 0.0
    for child in children:
        try:
            own = child.cpu_times()
        except psutil.NoSuchProcess:
            continue
        spent += own.user + own.system
    return spent
