"""What a round has found, for people: a few lines if all is well, the evidence if not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from .game import Result

EXAMPLES = 3
LONGEST = 700
SHORT = 300


def _counts(counted: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counted.items())) or "none"


def summary(result: Result) -> str:
    """A screenful at most, for all classes together."""
    oracle = result.oracle
    first, last = (result.sizes or [None])[0], (result.sizes or [None])[-1]
    size = ""
    if first and last:
        size = f"; master {first.fds} -> {last.fds} descriptors, "
        size += f"{first.rss / 1e6:.1f} -> {last.rss / 1e6:.1f} MB"
    served: Counter[str] = Counter()
    for name, count in oracle.served.items():
        served[" ".join(name.split()[:2])] += count
    bad = {kind: len(texts) for kind, texts in oracle.violations.items()}
    verdict = f"VIOLATIONS ({_counts(bad)})" if bad else "well"
    size += f", slowest {oracle.slowest:.1f} s"
    return "\n".join(
        [
            f"{result.kind}: {verdict} ({result.seconds:.0f} s{size})",
            f"  served  {_counts(served)}",
            f"  lost    {_counts(oracle.lost)}",
            f"  told    {_counts(oracle.told)}",
            f"  done    {_counts(result.done)}",
        ]
    )


def problems(result: Result) -> str:
    """Each kind of violation with examples, and what happened before the first one."""
    lines = [f"--- {result.kind}, log {result.log}"]
    for kind, texts in result.oracle.violations.items():
        lines.append(f"  {len(texts)} times: {kind}")
        lines += [f"    {text[:LONGEST]}" for text in texts[:EXAMPLES]]
        lines.append("    the last events before the first of them:")
        lines += [f"      {text[:SHORT]}" for text in result.oracle.evidence[kind]]
    return "\n".join(lines)
