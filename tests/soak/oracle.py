"""What may happen to a request and to a session, and what did.

The rules are the promises of the server, and nothing milder:

* An answer is that of its own request, given by a process of the client's slot.
* A request is lost only if a process was killed while it was under way: the one that had begun it,
  by that process's own record; or, where none had begun it, one that had it prefetched (new
  connections, at most PREFETCH for each kill) or on a connection that it kept.
* A request is begun within QUEUE_TIMEOUT, or answered 503 by then.
* 503 is for slots whose process was killed and whose next one is not ready
  yet.
* A connection at rest is closed by a kill, and by nothing else.
* A session ends when its process was killed or asked to go, and then its client is told. Until then
  each event is answered once, by the process that holds the session; none is handled twice.

What is lost is counted by its cause, what has none is a violation.
"""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sticky

from .line import Reply

PREFETCH = 4
QUEUE_TIMEOUT = 10.0
SLACK = 2.0
"""Seconds by which two cores that others use as well may make anything late."""
RACE = 0.5
"""Seconds in which a client may not have seen yet that its connection was reset."""
FOUND_OUT = 20.0
"""Seconds until a client has found out, and until a reload has come to the last slot."""
WORTH_A_NOTE = 2.0
EVENTS = 50

now = time.monotonic


@dataclass
class Kill:
    """A process that was killed: between these two times its sockets were closed."""

    slot: int
    pid: int
    boot: str | None
    began: float
    ended: float = float("inf")
    prefetched: int = 0


@dataclass
class Outage:
    """A slot without a process that is ready."""

    slot: int
    began: float
    ended: float = float("inf")


@dataclass
class Attempt:
    """A request under way."""

    token: str
    what: str
    via: str  # "direct", "shared" (a connection with the requests of many), "nginx"
    address: str
    method: str
    size: int = 0
    digest: str = ""
    kept: bool = False  # not the first request of its connection
    sent: float = field(default_factory=now)
    turn: float = field(default_factory=now)
    """When it was sent, or the one before it on its connection was answered."""

    def __str__(self) -> str:
        connection = "a kept" if self.kept else "a new"
        return (
            f"{self.method} /{self.what} {self.token} of {self.address}, {self.via}, on "
            f"{connection} connection, {self.size} bytes"
        )


@dataclass
class Session:
    """One session of a Socket.IO client, from its welcome to its end."""

    client: str
    language: str
    transport: str
    via: str
    sid: str
    about: dict[str, Any]
    began: float
    pending: dict[str, float] = field(default_factory=dict)


class Oracle:
    """Everything that is known, and what is wrong about it.

    Args:
        record: the file in which the processes say what they have begun.
        seed: of the routing.
        num: how many slots there are at first.
    """

    def __init__(self, record: Path, seed: str, num: int) -> None:
        self.served: Counter[str] = Counter()
        self.lost: Counter[str] = Counter()
        self.violations: defaultdict[str, list[str]] = defaultdict(list)
        self.evidence: dict[str, list[str]] = {}
        """The last events when the first violation of each kind was found."""
        self.slowest = 0.0
        self.told: Counter[str] = Counter()
        self.events: deque[str] = deque(maxlen=EVENTS)
        self._began_at = now()
        self._record = record.open("rb")
        self._rest = b""
        self._begun: defaultdict[str, list[str]] = defaultdict(list)
        self._begun_at: dict[str, float] = {}
        self._handled: Counter[str] = Counter()
        self.processes: dict[int, tuple[str, int]] = {}  # pid -> (boot, slot)
        self._slot_of_boot: dict[str, int] = {}
        self._seed = seed
        self._routes: dict[tuple[str, int], int] = {}
        self._topologies: list[tuple[int, float, float]] = [(num, 0.0, float("inf"))]
        self.kills: list[Kill] = []
        self._outages: list[Outage] = []
        self._current: dict[int, int] = {}
        self._asked: list[float] = []  # when processes were asked to go, or n was to change
        self._nginx: list[Attempt] = []  # judged at the end: which of them were begun twice
        self._direct: list[str] = []
        self._dropped: list[Attempt] = []

    # -- what happens ------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """Something that whoever reads of a violation wants to know."""
        self.events.append(f"{now() - self._began_at:8.3f}  {text}")

    def violation(self, kind: str, text: str) -> None:
        self.note(f"VIOLATION {kind}: {text}")
        self.violations[kind].append(self.events[-1])
        self.evidence.setdefault(kind, list(self.events))

    def killing(self, slot: int, pid: int, *, current: bool) -> Kill:
        """A process is about to be killed. current: it is the one that serves its slot."""
        self.read_record()
        boot = self.processes.get(pid, (None, 0))[0]
        kill = Kill(slot, pid, boot, now())
        self.kills.append(kill)
        if current:
            self._outages.append(Outage(slot, kill.began))
        return kill

    def name(self, kill: Kill) -> None:
        """It has ended, and has written all that it ever will."""
        self.read_record()
        kill.boot = self.processes.get(kill.pid, (None, 0))[0]

    def ready(self, slot: int, pid: int) -> None:
        """This process has become ready in this slot."""
        self._current[slot] = pid
        for outage in self._outages:
            if outage.slot == slot and outage.ended == float("inf"):
                outage.ended = now() + SLACK

    def asked_to_go(self) -> None:
        """Some process, whichever, was asked to end its sessions."""
        self._asked.append(now())

    def scaling(self, num: int) -> None:
        """From now on the old number of slots, or this one."""
        self._topologies.append((num, now(), float("inf")))

    def scaled(self) -> None:
        """Only the last one, from now on."""
        *before, last = self._topologies
        self._topologies = [(num, start, min(end, now() + SLACK)) for num, start, end in before] + [
            last
        ]

    def read_record(self) -> None:
        """Catch up with what the processes have written."""
        data = self._rest + self._record.read()
        *lines, self._rest = data.split(b"\n")
        for line in lines:
            kind, *words = line.decode().split(" ")
            if kind == "B":
                self._begun[words[0]].append(words[1])
                self._begun_at.setdefault(words[0], float(words[2]))
            elif kind == "V":
                self._handled[words[0]] += 1
            elif kind == "P":
                self.processes[int(words[2])] = (words[0], int(words[1]))
                self._slot_of_boot[words[0]] = int(words[1])

    # -- where a request belongs -------------------------------------------------------------------

    def slots(self, address: str, start: float, end: float) -> set[int]:
        """Where a request of this client may have been served in this time."""
        return {
            self.route(address, num)
            for num, began, ended in self._topologies
            if began <= end and ended >= start
        }

    def route(self, address: str, num: int) -> int:
        if (address, num) not in self._routes:
            head = f"GET / HTTP/1.1\r\nX-Forwarded-For: {address}\r\n\r\n".encode()
            found = sticky.explain(head, "127.0.0.1", num=num, seed=self._seed, proxy=True)
            assert found.slot is not None
            self._routes[address, num] = found.slot
        return self._routes[address, num]

    # -- answers -----------------------------------------------------------------------------------

    def answered(self, attempt: Attempt, reply: Reply) -> None:
        """There is an answer, whole."""
        end = now()
        self.slowest = max(self.slowest, end - attempt.sent)
        self._remember(attempt)
        if reply.status == 503:
            self._unavailable(attempt, end)
        elif reply.status in (502, 504) and attempt.via == "nginx":
            self._lost(attempt, end, f"nginx says {reply.status}", kept=True)
        elif reply.status != 200:
            self.violation("status", f"{reply.status} for {attempt}: {reply.body[:200]!r}")
        else:
            self._check(attempt, reply, end)

    def _remember(self, attempt: Attempt) -> None:
        if attempt.via == "nginx":
            self._nginx.append(attempt)
        else:
            self._direct.append(attempt.token)

    def _check(self, attempt: Attempt, reply: Reply, end: float) -> None:
        slot, boot = int(reply.fields.get("x-slot", "-1")), reply.fields.get("x-boot", "")
        if slot not in (right := self.slots(attempt.address, attempt.sent, end)):
            self.violation("wrong worker", f"{slot} instead of {right} for {attempt}")
        self.read_record()
        waited = self._begun_at.get(attempt.token, attempt.turn) - attempt.turn
        if waited > WORTH_A_NOTE:
            self.note(f"begun after {waited:.1f} s by {boot}: {attempt}")
        if waited > QUEUE_TIMEOUT + SLACK:
            self.violation("served later than queue_timeout", f"after {waited:.1f} s: {attempt}")
        for problem in _content(attempt, reply, boot):
            self.violation("crossed answer", f"{problem} for {attempt}: {reply.fields}")
        self.served[f"{attempt.what} {attempt.via}"] += 1

    def _unavailable(self, attempt: Attempt, end: float) -> None:
        slots = self.slots(attempt.address, attempt.sent, end)
        out = any(
            it.slot in slots and it.began <= end and it.ended >= attempt.sent
            for it in self._outages
        )
        if not out:
            self.violation("503 without cause", str(attempt))
        elif end - attempt.turn > QUEUE_TIMEOUT + SLACK:
            self.violation("503 too late", f"after {end - attempt.turn:.1f} s: {attempt}")
        else:
            self.lost["503, the slot was killed"] += 1

    # -- no answer ---------------------------------------------------------------------------------

    def failed(self, attempt: Attempt, why: str) -> None:
        """There is none, or only a part of one."""
        self._remember(attempt)
        self._lost(attempt, now(), why, kept=attempt.kept)

    def _lost(self, attempt: Attempt, end: float, why: str, *, kept: bool) -> None:
        self.read_record()
        begun = self._begun.get(attempt.token, [])
        kills = [it for it in self.kills if it.began <= end and it.ended + RACE >= attempt.sent]
        slots = self.slots(attempt.address, attempt.sent, end)
        # On a connection that many share a request of one slot may be under way in any process.
        own = kills if attempt.via != "direct" else [it for it in kills if it.slot in slots]
        text = f"{why}, {attempt}, {end - attempt.sent:.3f} s, begun by {begun or 'nobody'}"
        if any(it.boot in begun for it in kills):
            self._excused("killed after it was begun", text)
        elif begun and attempt.via != "nginx":
            self.violation("lost by a living process", text)
        elif kept and own:
            self._excused("killed, on a kept connection", text)
        elif own:
            kill = min(own, key=lambda it: it.prefetched)
            kill.prefetched += 1
            if kill.prefetched > PREFETCH:
                self.violation("more lost than prefetched", f"by the kill of {kill.pid}: {text}")
            else:
                self._excused("killed, prefetched", text)
        else:
            self.violation("lost request", text)

    def dropped(self, attempt: Attempt) -> None:
        """It was sent behind a request whose answer has closed the connection: nobody has it."""
        self._dropped.append(attempt)
        self.served["sent behind a last answer"] += 1

    def _excused(self, cause: str, text: str) -> None:
        self.lost[cause] += 1
        self.note(f"lost ({cause}): {text}")

    def closed_at_rest(self, via: str, address: str, since: float, last: str) -> None:
        """A connection was closed between two requests, of which the last was answered then."""
        end = now()
        slots = self.slots(address, since - SLACK, end)
        # By the kill itself, or in a slot that has no process since, where it cannot be placed.
        killed = any(
            (it.slot in slots or via == "shared") and it.began <= end and it.ended + RACE >= since
            for it in [*self.kills, *self._outages]
        )
        if killed:
            self.lost["connection at rest, killed"] += 1
        else:
            self.violation(
                "closed at rest", f"{via}, {address}, last answer by {last} {end - since:.2f} s ago"
            )

    # -- Socket.IO ---------------------------------------------------------------------------------

    def acknowledged(self, session: Session, event: str, answer: dict[str, Any]) -> None:
        sent = session.pending.pop(event, None)
        who = f"{session.client}, session {session.sid}"
        if sent is None:
            self.violation("acknowledged twice or never sent", f"{event}, {who}")
            return
        self.slowest = max(self.slowest, now() - sent)
        if answer.get("event") != event:
            self.violation("crossed answer", f"{answer} for {event}, {who}")
        if answer.get("boot") != session.about["boot"]:
            self.violation("wrong worker", f"{answer} for {event}, {who} of {session.about}")
        self.served[f"event {session.transport} {session.via} {session.language}"] += 1

    def ended(self, session: Session, reason: str, *, final: bool = False) -> None:
        """Its client was told, or has found out. final: it will not come back by itself."""
        end = now()
        boot, slot = session.about["boot"], session.about["slot"]
        who = f"{session.client} ({session.language}, {session.transport}, {session.via})"
        text = f"{who}, {session.sid} at {slot}/{boot}, {end - session.began:.2f} s old: {reason}"
        # Polls that nginx sends on a connection which another process keeps die with that process.
        shared = session.via == "nginx" and session.transport == "polling"
        killed = any(
            it.boot == boot or (shared and it.began <= end <= it.ended + FOUND_OUT)
            for it in self.kills
        )
        replaced = self._current.get(slot) != session.about["pid"]
        asked = replaced or bool(self._asked and self._asked[-1] + FOUND_OUT > session.began)
        self.note(f"session ended: {text}")
        if "ping timeout" in reason:
            self.violation("nobody told the client", text)
        elif final:
            self.violation("client does not come back by itself", text)
        elif killed or asked:
            self.told[f"{session.language} {session.transport}: {reason}"] += 1
        else:
            self.violation("session ended without cause", text)
        if session.pending:
            self.lost["events, client told"] += len(session.pending)

    def overdue(self, session: Session, seconds: float) -> None:
        """Report what was not answered in this time, and is not going to be."""
        for event, sent in list(session.pending.items()):
            if now() - sent > seconds:
                del session.pending[event]
                self.violation(
                    "event neither acknowledged nor client told",
                    f"{event} after {seconds:.0f} s, {session.client} ({session.language}, "
                    f"{session.transport}, {session.via}) of {session.about}",
                )

    # -- the end -----------------------------------------------------------------------------------

    def conclude(self) -> None:
        """What only the whole record tells."""
        self.read_record()
        for token in self._direct:
            if len(self._begun.get(token, ())) > 1:
                self.violation("begun twice", f"{token} by {self._begun[token]}")
        for attempt in self._dropped:
            if attempt.token in self._begun:
                self.violation("begun behind the last answer of a connection", str(attempt))
        for attempt in self._nginx:
            begun = self._begun.get(attempt.token, [])
            # nginx sends again what may be sent again, when a connection that it had kept breaks.
            again = attempt.method == "GET" and any(it.boot in begun for it in self.kills)
            if len(begun) > 1 and not again:
                self.violation("begun twice", f"{attempt} by {begun}")
        for event, times in self._handled.items():
            if times > 1:
                self.violation("handled twice", f"{event}, {times} times")
        self._record.close()


def _content(attempt: Attempt, reply: Reply, boot: str) -> list[str]:
    """What is wrong with the body of an answer."""
    check: Callable[[Attempt, Reply, str], list[str]] = {
        "stream": _stream,
        "blob": _blob,
    }.get(attempt.what, _said)
    try:
        return check(attempt, reply, boot)
    except (ValueError, KeyError, TypeError) as error:
        return [f"{error!r} in {reply.body[:200]!r}"]


def _said(attempt: Attempt, reply: Reply, boot: str) -> list[str]:
    if attempt.method == "HEAD":
        return []
    said = json.loads(reply.body)
    expected = {
        "token": attempt.token,
        "method": attempt.method,
        "size": attempt.size,
        "digest": attempt.digest,
        "boot": boot,
    }
    return [
        f"{name} is {said[name]!r} instead of {value!r}"
        for name, value in expected.items()
        if said[name] != value
    ]


def _stream(attempt: Attempt, reply: Reply, boot: str) -> list[str]:
    lines = [json.loads(line) for line in reply.body.splitlines()]
    right = [
        line["token"] == attempt.token and line["boot"] == boot and line["number"] == number
        for number, line in enumerate(lines)
    ]
    if not all(right) or not lines or len(lines) != lines[0]["of"] or len(lines) != attempt.size:
        return [f"the stream of {len(lines)} lines is {lines[:2]}..."]
    return []


def _blob(attempt: Attempt, reply: Reply, boot: str) -> list[str]:
    from .apps import BLOCK, blob

    block = blob(attempt.token, BLOCK)
    right = (block * (attempt.size // BLOCK + 1))[: attempt.size]
    return [] if reply.body == right else [f"{len(reply.body)} bytes, not those of this token"]
