"""Become a server: die with the parent, run as another account, exec. A script, run by itself.

`launch.py PARENT_PID DEATH_SIGNAL UID GID PROGRAM [ARGUMENT…]`; UID and GID are -1 for the caller's own.
A program of its own because the kernel forgets the death signal when the uid changes, so it has to be set
between the two, and because Python code between fork and exec is unsafe in a process with threads.
"""

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1


def _become(argv: list[str], *, parent_pid: int, death_signal: int, uid: int, gid: int) -> None:
    if gid >= 0:
        os.setgroups([])
        os.setgid(gid)
    if uid >= 0:
        os.setuid(uid)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
    # A parent that died before prctl sends no signal any more.
    if os.getppid() != parent_pid:
        sys.exit("The process that started this server is gone.")
    os.execv(argv[0], argv)  # noqa: S606 - there is no shell, as wanted


if __name__ == "__main__":
    _parent, _signal, _uid, _gid = map(int, sys.argv[1:5])
    _become(sys.argv[5:], parent_pid=_parent, death_signal=_signal, uid=_uid, gid=_gid)
