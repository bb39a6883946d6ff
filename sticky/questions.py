"""Questions that all workers of a server are asked, each of which answers for itself.

    {"id": 7, "what": "participants", "arguments": {...}}      to those who answer questions
    {"id": 7, "answer": 3}                                     to the one who has asked
    {"id": 7, "error": "..."}

Whoever ends before it has answered is not waited for, and named like one that is late.
"""

from __future__ import annotations

import itertools
import json
import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from .errors import StickyError
from .mail import Mail
from .mailbox import ANSWERS, QUESTIONS, Sender, bit_of
from .mailqueue import Item, Queue

log = logging.getLogger("sticky.cluster")

Reply = Callable[[Any], None]
Respond = Callable[[str, Mapping[str, Any], Reply | None], object]


class Place(NamedTuple):
    """A worker process.

    Attributes:
        worker: the number of its slot.
        pid: its process id; 0 where it has not served yet.
    """

    worker: int
    pid: int


class UnansweredError(StickyError):
    """Not every worker has answered.

    Attributes:
        missing: those that did not answer in time, or have ended meanwhile.
        failed: what went wrong in those that could not answer.
        answers: what the others say.
    """

    def __init__(
        self, missing: list[Place], failed: dict[Place, str], answers: dict[Place, Any]
    ) -> None:
        self.missing = missing
        self.failed = failed
        self.answers = answers
        said = [f"worker {place.worker} (pid {place.pid}) has not answered" for place in missing]
        said += [f"worker {place.worker} (pid {place.pid}): {why}" for place, why in failed.items()]
        super().__init__("; ".join(said))


class Asked:
    """One question that is under way.

    Attributes:
        missing: by row, those who have not answered.
        answers: of those who have.
        failed: what went wrong in those who could not.
    """

    def __init__(self, questions: Questions, number: int, missing: dict[int, Place]) -> None:
        self.missing = missing
        self.answers: dict[Place, Any] = {}
        self.failed: dict[Place, str] = {}
        self._ended: list[Place] = []
        self._questions = questions
        self._number = number
        self.queue = Queue(questions.mail.out.limit, questions.mail.lost, "a question")

    def accept(self, items: list[Item]) -> None:
        """These have come."""
        for payload, sender in items:
            place = self.missing.pop(sender.row, None)
            if place is None:
                continue
            if not payload:
                self._ended.append(place)
                continue
            place = Place(place.worker, sender.pid)
            content = json.loads(payload)
            if "error" in content:
                self.failed[place] = str(content["error"])
            else:
                self.answers[place] = content.get("answer")

    def result(self) -> dict[Place, Any]:
        """What the workers say; nothing more is waited for.

        Raises:
            UnansweredError: some do not say anything.
        """
        self._questions.forget(self._number)
        missing = [*self._ended, *self.missing.values()]
        if missing or self.failed:
            raise UnansweredError(sorted(missing), self.failed, self.answers)
        return self.answers

    def wait(self, timeout: float) -> dict[Place, Any]:
        """Wait for all answers, at most so many seconds; then as ``result``."""
        deadline = time.monotonic() + timeout
        while self.missing and (items := self.queue.take(deadline - time.monotonic())):
            self.accept(items)
        return self.result()

    async def wait_async(self, timeout: float) -> dict[Place, Any]:
        """The same in asyncio."""
        deadline = time.monotonic() + timeout
        while self.missing and (left := deadline - time.monotonic()) > 0:
            self.accept(await self.queue.take_async(left))
        return self.result()


class Questions:
    """Those of one process, and its answers to those of others.

    Args:
        mail: of this process.
        respond: called in the event loop with what is asked, its arguments, and what is to be
            called with the answer, sooner or later (None: nobody waits for one). If it raises, that
            is the answer.
    """

    def __init__(self, mail: Mail, respond: Respond) -> None:
        self.mail = mail
        self._respond = respond
        self._numbers = itertools.count(1)
        self._asked: dict[int, Asked] = {}
        # Not before there is a loop that could answer: others would wait for this process to boot.
        mail.attended(self._open)

    def _open(self) -> None:
        self.mail.gone = self._gone
        self.mail.subscribe(ANSWERS, self._answered)
        self.mail.subscribe(QUESTIONS, self._heard)

    def close(self) -> None:
        """Answer nobody any more."""
        self.mail.unsubscribe(QUESTIONS, self._heard)
        self.mail.unsubscribe(ANSWERS, self._answered)

    # -- asking -----------------------------------------------------------------------------------

    def ask(self, what: str, arguments: Mapping[str, Any]) -> Asked:
        """Ask all other workers."""
        mail, number = self.mail, next(self._numbers)
        rows = mail.wanting(bit_of(QUESTIONS))
        places = {row: Place(slot, mail.memory.pid(row)) for row, slot in rows.items()}
        asked = self._asked[number] = Asked(self, number, places)
        data = _packed(id=number, what=what, arguments=arguments)
        for row in rows:
            if not mail.post(QUESTIONS, data, only=row):
                self._gone(row)  # meanwhile
        return asked

    def tell(self, what: str, arguments: Mapping[str, Any]) -> None:
        """The same, without an answer."""
        self.mail.post(QUESTIONS, _packed(id=0, what=what, arguments=arguments))

    def forget(self, number: int) -> None:
        """Nobody waits for the answers to this any more."""
        self._asked.pop(number, None)

    def _answered(self, payload: bytes, sender: Sender) -> None:
        asked = self._asked.get(json.loads(payload)["id"])
        if asked is not None:
            asked.queue.put(payload, sender)

    def _gone(self, row: int) -> None:
        for asked in tuple(self._asked.values()):
            asked.queue.put(b"", Sender(row, -1, 0))

    # -- answering --------------------------------------------------------------------------------

    def _heard(self, payload: bytes, sender: Sender) -> None:
        content = json.loads(payload)
        number = content["id"]
        reply = partial(self._reply, number, sender.row) if number else None
        try:
            self._respond(content["what"], content["arguments"], reply)
        except Exception as error:
            self.failed(number, sender.row, error)

    def _reply(self, number: int, row: int, answer: Any) -> None:
        try:
            if isinstance(answer, Exception):
                raise answer
            data = _packed(id=number, answer=answer)
        except Exception as error:
            self.failed(number, row, error)
        else:
            self.mail.post(ANSWERS, data, only=row)

    def failed(self, number: int, row: int, error: Exception) -> None:
        """This process cannot answer."""
        log.error("a question of another worker could not be answered: %r", error)
        if number:
            why = str(error) if isinstance(error, StickyError) else repr(error)
            self.mail.post(ANSWERS, _packed(id=number, error=why), only=row)


def _packed(**content: Any) -> bytes:
    return json.dumps(content).encode()
