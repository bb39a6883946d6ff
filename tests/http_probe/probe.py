"""Send the cases to a server and count: ``python -m tests.http_probe.probe PORT`` prints a table.

Nothing here sleeps. A read ends when the server closes, when a complete head was followed by a
while in which nothing came (unless it announces a close), or when the wait is over.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from .cases import CASES, Case
from .judging import FAIL, PASS, UNFINISHED, WARN, Reply, Verdict

ANSWER = 5.0
"""Seconds until an answer must have begun."""

PATIENCE = 2.0
"""The same where a server may rightly wait for the rest of the request."""

QUIET = 0.5
"""Seconds without a byte behind a head, after which nothing more comes and it stays open."""


@dataclass(frozen=True)
class Outcome:
    """What a server made of a case.

    Attributes:
        replies: one per step that was sent.
    """

    case: Case
    replies: tuple[Reply, ...]
    verdict: Verdict

    def __str__(self) -> str:
        said = []
        for reply in self.replies:
            first = repr(reply.data[:60])[1:] if reply.data else "nothing"
            said.append(first + (" (closed)" if reply.closed else " (open)"))
        return f"{self.verdict.name} {self.case.id}: {', then '.join(said)}; expected: " + (
            self.case.judge.says
        )


@dataclass(frozen=True)
class Score:
    """How many of the scored cases have which verdict."""

    passed: int
    warned: int
    failed: int

    @property
    def held(self) -> int:
        return self.passed + self.warned

    @property
    def scored(self) -> int:
        return self.held + self.failed

    def __str__(self) -> str:
        return f"{self.held} of {self.scored} ({self.warned} of them with a warning)"


def run(
    case: Case,
    port: int,
    extra_headers: Iterable[str] = (),
    *,
    host: str = "127.0.0.1",
    quiet: float = QUIET,
) -> Outcome:
    """One case on a connection of its own.

    extra_headers: lines to add to each request where that does not change what the case is about
        (see ``cases``).
    """
    extra = "".join(f"{line}\r\n" for line in extra_headers).encode("latin-1")
    wait = PATIENCE if case.judge is UNFINISHED else ANSWER
    replies: list[Reply] = []
    with socket.create_connection((host, port), ANSWER) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for step in case.steps:
            if replies and (replies[-1].closed or not replies[-1].data):
                break
            data = (step(replies[0]) if callable(step) else step).wire(extra)
            sock.settimeout(ANSWER)
            with contextlib.suppress(OSError):  # refused before all was sent: the answer tells
                sock.sendall(data)
            replies.append(_read(sock, wait, quiet))
    return Outcome(case, tuple(replies), case.judge(replies))


def _read(sock: socket.socket, wait: float, quiet: float) -> Reply:
    data = b""
    deadline = time.monotonic() + wait
    while (left := deadline - time.monotonic()) > 0:
        head, end, _ = data.partition(b"\r\n\r\n")
        closing = b"connection: close" in head.lower()  # it says so: wait and see whether it does
        sock.settimeout(min(left, quiet) if end and not closing else left)
        try:
            more = sock.recv(65536)
        except TimeoutError:
            break
        except OSError:  # reset
            return Reply(data, closed=True)
        if not more:
            return Reply(data, closed=True)
        data += more
    return Reply(data, closed=False)


def run_all(
    port: int,
    extra_headers: Sequence[str] = (),
    *,
    cases: Iterable[Case] = CASES,
    at_once: int = 16,
    quiet: float = QUIET,
) -> list[Outcome]:
    """All cases, so many at once; many of them wait."""
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(lambda case: run(case, port, extra_headers, quiet=quiet), cases))


def score(outcomes: Iterable[Outcome]) -> Score:
    """Of the scored ones."""
    counts = Counter(outcome.verdict for outcome in outcomes if outcome.case.scored)
    return Score(counts[PASS], counts[WARN], counts[FAIL])


def failed(outcomes: Iterable[Outcome], category: str = "") -> list[Outcome]:
    """Those that failed, scored or not; of this category, if one is named."""
    return [
        outcome
        for outcome in outcomes
        if outcome.verdict is FAIL and category in ("", outcome.case.category)
    ]


def main() -> None:
    port, extra = int(sys.argv[1]), sys.argv[2:]
    outcomes = run_all(port, extra)
    for outcome in outcomes:
        if outcome.verdict is not PASS:
            print(outcome, "" if outcome.case.scored else "[not scored]")
    print(score(outcomes))


if __name__ == "__main__":
    main()
