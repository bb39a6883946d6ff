"""What all apps here say, so that a page shows which process has its session."""

import hashlib
import os


def state(count: int) -> str:
    return f"pid {os.getpid()} count {count}"


def got(content: bytes) -> str:
    digest = hashlib.sha256(content).hexdigest()[:12]
    return f"got {len(content)} bytes {digest} pid {os.getpid()}"
