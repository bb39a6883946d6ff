"""Threads of which one at a time has the loop."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from sticky.worker.crew import Crew


class Hub:
    """A loop in whose turns work arrives."""

    def __init__(self) -> None:
        self.over = False
        self.due = 0.0
        self.on_stop: Callable[[], object] = lambda: None
        self.on_earlier: Callable[[], object] | None = None
        self.arrives: list[list[Callable[[], object]]] = []
        self.crew: Crew

    def turn(self, seconds: float) -> None:
        if self.arrives:
            for work in self.arrives.pop(0):
                self.crew.put(work, ())
        else:
            threading.Event().wait(0.001)

    def wake(self) -> None:
        """Its turns are short."""


@pytest.fixture
def hub():
    return Hub()


def run(hub: Hub) -> threading.Thread:
    """A crew, in a main thread of its own."""

    def main() -> None:
        hub.crew = Crew(hub, 10, lambda error: None, lambda: None)  # type: ignore[arg-type]
        hub.crew.run()

    thread = threading.Thread(target=main)
    thread.start()
    return thread


@pytest.mark.parametrize("round", range(5))
def test_the_loop_does_not_stay_in_the_app_when_somebody_else_enters_it_too(
    hub: Hub, round: int
) -> None:
    began, end, served = threading.Event(), threading.Event(), threading.Event()

    def first() -> None:
        """Keeps its thread until another one has the loop, and is in the app with it."""
        began.wait(20)

    def second() -> None:
        began.set()
        end.wait(20)

    hub.arrives = [[first], [second, lambda: end.wait(20)], [served.set]]
    main = run(hub)
    try:
        assert served.wait(10)
    finally:
        end.set()
        hub.over = True
        hub.on_stop()
        main.join()
