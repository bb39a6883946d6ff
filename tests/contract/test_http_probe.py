"""The vectors of a public probe of HTTP/1.1 servers hold for each worker class.

Every case is sent to one server, many at once. ``tests/http_probe/cases.py`` says where they come
from; the score counts as that suite counts it: what it only warns of is held.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest

from tests.harness import Kind
from tests.http_probe.cases import CASES, Step
from tests.http_probe.judging import FAIL, REFUSED
from tests.http_probe.probe import Outcome, failed, run_all, score

SCORED = 161
NEEDED = 157
WITHOUT_A_HEADER = {
    "MAL-BINARY-GARBAGE",
    "MAL-EMPTY-REQUEST",
    "MAL-H2-PREFACE",
    "MAL-WHITESPACE-ONLY-LINE",
    "RFC9112-2.3-HTTP09-REQUEST",
}


@pytest.fixture(scope="module", params=["direct", "proxy"])
def outcomes(kind: Kind, request: pytest.FixtureRequest) -> Iterator[list[Outcome]]:
    """What a server of this kind made of all cases."""
    proxy = request.param == "proxy"
    extra = ["X-Forwarded-For: 192.0.2.1"] if proxy else []
    with kind.serve(f"tests.http_probe.apps:{kind.interface}", proxy=proxy) as running:
        yield run_all(running.port, extra)


def _told(outcomes: Iterable[Outcome]) -> str:
    return "\n".join(["", *map(str, outcomes)])


def test_the_cases_are_all_there_and_each_has_a_name_of_its_own() -> None:
    assert len({case.id for case in CASES}) == len(CASES) == 215
    assert sum(case.scored for case in CASES) == SCORED


def test_whatever_is_a_request_has_a_place_for_the_header_that_a_proxy_adds() -> None:
    steps = [(case.id, step) for case in CASES for step in case.steps if isinstance(step, Step)]
    assert {name for name, step in steps if step.after is None} == WITHOUT_A_HEADER
    assert all(step.before.endswith(b"\r\n") for _, step in steps if step.after is not None)


def test_no_request_can_be_smuggled_past_the_server(outcomes: list[Outcome]) -> None:
    smuggled = failed(outcomes, "smuggling")
    assert not smuggled, f"{len(smuggled)} smuggling cases fail:{_told(smuggled)}"


def test_nearly_every_scored_case_holds(outcomes: list[Outcome]) -> None:
    result = score(outcomes)
    assert result.scored == SCORED
    broken = [each for each in outcomes if each.case.scored and each.verdict is FAIL]
    assert result.held >= NEEDED, f"{result}; these fail:{_told(broken)}"


def test_who_is_refused_is_told_so_or_closed_and_not_left_waiting(outcomes: list[Outcome]) -> None:
    waiting = [
        each
        for each in outcomes
        if each.case.judge is REFUSED and not (each.replies[0].data or each.replies[0].closed)
    ]
    assert not waiting, _told(waiting)
