"""How many CPUs this process may use."""

from __future__ import annotations

import os
from pathlib import Path


def granted(
    root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")
) -> float:
    """CPUs that the cgroup (v2) of this process grants; infinity where nothing limits it."""
    try:
        path = membership.read_text().split("0::", 1)[1].splitlines()[0]
    except (OSError, IndexError):
        return float("inf")
    here = root / path.lstrip("/")
    cpus = float("inf")
    for folder in (here, *here.parents):
        try:
            quota, period = (folder / "cpu.max").read_text().split()
        except (OSError, ValueError):
            pass
        else:
            if quota != "max":
                cpus = min(cpus, int(quota) / int(period))
        if folder == root:
            break
    return cpus


def usable() -> int:
    """Whole ones, by affinity and cgroup limits; at least one."""
    return max(1, int(min(len(os.sched_getaffinity(0)), granted())))
