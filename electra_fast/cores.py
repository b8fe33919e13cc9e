"""How many CPU cores this process may use: what its affinity allows, and what its control group pays for.

A container's limit (docker --cpus, a CPU limit of Kubernetes, CPUQuota of systemd) is a quota of CPU time: no core is
hidden. Threads that spend it faster are all stopped until the next period, so more of them than the quota only wait.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

GROUPS = Path("/sys/fs/cgroup")  # where control groups are mounted
MEMBERSHIP = Path("/proc/self/cgroup")  # a line for each hierarchy: number:controllers:path


def usable_cores() -> int:
    """The cores of the process's affinity, or its CPU quota, rounded up, where that is less; at least 1."""
    quota = cpu_quota(GROUPS, MEMBERSHIP)
    cores = len(os.sched_getaffinity(0))
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def cpu_quota(groups: Path, membership: Path) -> float | None:
    """CPU seconds that the process may use in a second: the least quota of its control group and those above it.

    groups: where control groups are mounted, version 1 or 2. membership: the file that says which one is ours.

    Returns None if there is no quota, or no control group that can be read.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return None
    found: list[float] = []
    for line in lines:
        _, controllers, path = line.split(":", 2) if line.count(":") >= 2 else ("", "none", "")
        if not controllers:  # version 2
            found += _quotas(groups, path, "cpu.max")
        elif "cpu" in controllers.split(","):
            for mount in {groups / controllers, groups / "cpu"}:
                found += _quotas(mount, path, "cpu.cfs_quota_us", "cpu.cfs_period_us")
    return min(found, default=None)


def _quotas(mount: Path, path: str, *names: str) -> Iterator[float]:
    """The quotas of the group at `path` and of those above it. In a container, `mount` is often the group itself."""
    group = mount / path.lstrip("/")
    for directory in (group, *group.parents):
        try:
            words = " ".join((directory / name).read_text() for name in names).split()
            quota, period = float(words[0]), float(words[1])
        except (OSError, ValueError, IndexError):  # "max" is no number: no quota
            quota = period = 0.0
        if quota > 0 and period > 0:
            yield quota / period
        if directory == mount:
            return
