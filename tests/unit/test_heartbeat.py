"""The worker's beat: one timer, and what it does beside."""

from __future__ import annotations

import types

import pytest

from sticky import logs
from sticky.options import Options
from sticky.worker.heartbeat import Heartbeat


class Service:
    """What a heartbeat needs of a service, with the timers that it has set."""

    def __init__(self, **options: object) -> None:
        self.options = Options.make(options)
        self.timers: list[tuple[float, object]] = []
        self.hub = types.SimpleNamespace(later=lambda *timer: self.timers.append(timer))
        self.beats = self.counts = 0
        self.worker = types.SimpleNamespace(beat=self.beat)
        self.sessions = types.SimpleNamespace(count=self.count)

    def beat(self) -> None:
        self.beats += 1

    def count(self) -> None:
        self.counts += 1

    def ring(self) -> float:
        """The only timer rings; after how many seconds."""
        ((seconds, call),) = self.timers
        self.timers.clear()
        call()
        return seconds


@pytest.mark.parametrize(
    ("timeout", "every"), [(30.0, 1.0), (10.0, 1.0), (2.0, 0.2), (0.0, 1.0), (86400.0, 1.0)]
)
def test_it_beats_ten_times_in_the_timeout_and_at_least_once_in_a_second(
    timeout: float, every: float
) -> None:
    service = Service(timeout=timeout)
    Heartbeat(service).begin()
    assert service.beats == 1
    assert [service.ring() for _ in range(6)] == [every] * 6
    assert service.beats == 7
    assert service.counts == 2


def test_it_goes_on_whatever_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service()

    def fail() -> None:
        raise LookupError

    service.sessions.count = fail
    Heartbeat(service).begin()
    service.ring()
    with pytest.raises(LookupError):
        service.ring()
    service.ring()
    assert service.beats == 4


def test_log_lines_that_could_not_be_written_are_until_there_are_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service, pending = Service(), [3]
    monkeypatch.setattr(logs, "pending", lambda: pending[0] > 0)

    def flush() -> None:
        pending[0] -= 1

    monkeypatch.setattr(logs, "flush", flush)
    Heartbeat(service).begin()
    beat, more = service.timers
    assert more[0] == logs.AGAIN
    service.timers[:] = [beat]
    service.ring()
    assert len(service.timers) == 1, "twice at once"
    service.timers.clear()
    more[1]()
    assert (pending, len(service.timers)) == ([1], 1)
    service.ring()
    assert (pending, service.timers) == ([0], [])
