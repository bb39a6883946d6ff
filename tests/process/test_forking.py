"""Apps that fork: the child has nothing of the server's, and does nothing of its work."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.harness import KINDS


def waits() -> None:
    """In the child: while it waits a loop runs that is the parent's."""
    for _ in range(20):
        os.pipe()  # takes the numbers of descriptors that were the server's
    time.sleep(0.1)


def make_forking() -> Callable[..., list[bytes]]:
    forking = multiprocessing.get_context("fork")

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        child = forking.Process(target=waits)
        child.start()
        child.join(20)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [str(child.exitcode).encode()]

    return app


@pytest.mark.parametrize("name", ["gevent", "threads"])  # eventlet's children never end
def test_a_child_of_the_apps_that_waits_does_none_of_the_workers_work(name: str) -> None:
    with KINDS[name].serve("tests.process.test_forking:make_forking", num=1) as running:
        for _ in range(10):
            assert running.get("/").body == b"0"
        assert "[ERROR]" not in running.log()
