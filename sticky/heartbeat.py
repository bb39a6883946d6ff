"""How often a worker beats (``board``), which its master has to know, too."""

from __future__ import annotations


def every(timeout: float) -> float:
    """Seconds between two beats of a worker that may be silent for ``timeout`` seconds; 0: for
    ever."""
    return min(timeout / 10, 1.0) or 1.0
