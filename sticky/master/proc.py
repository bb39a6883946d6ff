"""What the kernel knows of a process (proc(5))."""

from __future__ import annotations

import os
import time
from pathlib import Path


def rss(pid: int) -> int:
    """Bytes of memory that it has, shared ones included (proc_pid_statm(5)); 0 if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0


def age(pid: int) -> float:
    """Seconds since its start (proc_pid_stat(5)); 0 if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return 0.0
    return round(max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started), 1)
