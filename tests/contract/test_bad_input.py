"""Whatever a client sends, in any order, at any speed: it gets an answer that says so or nothing,
nobody else notices, and nothing of it is left.

Every test of this file runs while twenty well-behaved clients are served without a failure, and
ends with every process having the file descriptors it had.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import psutil
import pytest

import sticky
from tests.harness import Kind, Running, request, stop_process, wait_until
from tests.process.clients import SEED, XFF, Client, Crowd, addresses_of, head, parse, slot_of

NUM = 3
HEAD_TIMEOUT = 3.0
OPTIONS = ("--seed", SEED, "--head-timeout", str(HEAD_TIMEOUT), "--queue-timeout", "60")
ROUTED = {"num": NUM, "seed": SEED, "proxy": True}


class Server(NamedTuple):
    running: Running
    crowd: Crowd
    fds: dict[int, int]
    proxy: bool

    @property
    def port(self) -> int:
        return self.running.port

    def connect(self, data: bytes = b"") -> Client:
        return Client(self.port, data)

    def ask(self, data: bytes, *, last: bool = True) -> bytes:
        """Everything that the server has to say to this."""
        with self.connect(data) as client:
            if last:
                client.half_close()
            return client.rest()

    def wait_for_master(self) -> None:
        """Until the master has seen what was sent before: it has accepted a later connection."""
        answer = self.running.get("/", {XFF: "10.1.1.1"})
        assert answer.status == 200


@contextlib.contextmanager
def _serve(kind: Kind, *options: str, proxy: bool = True) -> Iterator[Server]:
    running = kind.serve("lab", num=NUM, proxy=proxy, options=(*OPTIONS, *options))
    with running:
        for slot in range(NUM):  # what a process opens once, at its first request
            for address in addresses_of(slot, NUM, 2):
                assert running.get("/", {XFF: address}).status == 200
        fds: dict[int, int] = {}

        def settled() -> bool:
            before = dict(fds)
            fds.update(running.fds())
            return before == fds

        wait_until(settled, what="nothing is opened or closed any more", interval=0.2)
        with Crowd(running, proxy=proxy) as crowd:
            yield Server(running, crowd, fds, proxy)


@pytest.fixture(scope="module")
def _deferring(kind: Kind) -> Iterator[Server]:
    with _serve(kind) as server:
        yield server


@pytest.fixture(scope="module")
def _accepting_at_once(kind: Kind) -> Iterator[Server]:
    with _serve(kind, "--no-defer-accept") as server:
        yield server


@pytest.fixture(scope="module")
def _direct(kind: Kind) -> Iterator[Server]:
    with _serve(kind, proxy=False) as server:
        yield server


@contextlib.contextmanager
def _unharmed(server: Server) -> Iterator[Server]:
    """What this file promises, around one test."""
    log_before = len(server.running.log())
    with server.crowd.served():
        yield server
    try:
        wait_until(lambda: server.running.fds() == server.fds)
    except TimeoutError:
        assert server.running.fds() == server.fds
    assert "Traceback" not in (log := server.running.log()[log_before:]), log


@pytest.fixture
def server(_deferring: Server) -> Iterator[Server]:
    """Behind a proxy, with all defaults."""
    with _unharmed(_deferring) as server:
        yield server


@pytest.fixture
def direct(_direct: Server) -> Iterator[Server]:
    """Without a proxy: routed by the TCP peer, and heads are read by the worker alone."""
    with _unharmed(_direct) as server:
        yield server


@pytest.fixture(params=["deferring", "accepting_at_once"])
def either(kind: Kind, request: pytest.FixtureRequest) -> Iterator[Server]:
    """Behind a proxy, with and without TCP_DEFER_ACCEPT."""
    with _unharmed(request.getfixturevalue("_" + request.param)) as server:
        yield server


def worker(answer: bytes) -> int:
    parsed = parse(answer)
    assert parsed.status == 200, answer
    found = parsed.json()["worker"]
    assert isinstance(found, int)
    return found


# -- heads in pieces ------------------------------------------------------------------------------


def test_a_head_split_at_every_offset_is_served_by_the_same_worker(either: Server) -> None:
    address = addresses_of(2, NUM, 1)[0]
    whole = head("X-Before: 1", f"{XFF}: {address}", "X-After: 2", "Connection: close")
    for cuts in (range(at, min(at + 20, len(whole))) for at in range(1, len(whole), 20)):
        clients = [(cut, either.connect(whole[:cut])) for cut in cuts]
        either.wait_for_master()
        for cut, client in clients:
            client.send(whole[cut:])
        for cut, client in clients:
            with client:
                assert worker(client.rest()) == 2, f"cut at {cut}"


def test_a_head_that_comes_byte_by_byte_is_served(either: Server) -> None:
    with either.connect() as client:
        for byte in head(f"{XFF}: {addresses_of(1, NUM, 1)[0]}", "Connection: close"):
            client.send(bytes([byte]))
        assert worker(client.rest()) == 1


# -- the header's name where it is not the header --------------------------------------------------

REAL, DECOY = addresses_of(0, NUM, 1)[0], addresses_of(2, NUM, 1)[0]
DECOYS = {
    "in the URL": head(target=f"/{XFF}:{DECOY}?{XFF.lower()}:%20{DECOY}&"),
    "in the URL after a line end that is escaped": head(target=f"/%0d%0a{XFF}:{DECOY}"),
    "in a cookie": head(f"Cookie: a=b; {XFF}: {DECOY}; c=d"),
    "as a whole cookie": head(f"Cookie: {XFF}: {DECOY}"),
    "in another header's value": head(f"X-Note: {XFF}: {DECOY}"),
    "in a Referer": head(f"Referer: http://test/?{XFF.lower()}: {DECOY}"),
    "at the end of a longer name": head(f"X-{XFF}: {DECOY}"),
    "at the start of a longer name": head(f"{XFF}-Real: {DECOY}"),
    "with another character": head(f"{XFF}ed: {DECOY}", f"X_Forwarded_For: {DECOY}"),
    "in the body": head("Content-Length: 40", method="POST") + f"{XFF}: {DECOY}".encode().ljust(40),
    "in the body as its own line": head("Content-Length: 60", method="POST")
    + f"a\r\n{XFF}: {DECOY}\r\n\r\n".encode().ljust(60),
}


@pytest.mark.parametrize("decoy", DECOYS.values(), ids=DECOYS)
def test_the_name_is_never_used_where_it_is_not_a_header(server: Server, decoy: bytes) -> None:
    assert parse(server.ask(decoy)).status == 400
    first_line, rest = decoy.split(b"\r\n", 1)
    for both in (
        b"%s\r\n%s: %s\r\n%s" % (first_line, XFF.encode(), REAL.encode(), rest),
        decoy.replace(b"\r\n\r\n", f"\r\n{XFF}: {REAL}\r\n\r\n".encode(), 1),
    ):
        assert sticky.explain(both, "127.0.0.1", ROUTED).slot == 0
        assert worker(server.ask(both)) == 0


@pytest.mark.parametrize(
    "value",
    [
        "203.0.113.7",
        "203.0.113.7, 10.0.0.1",
        "unknown, 203.0.113.7 , 10.0.0.1",
        "203.0.113.7:51234",
        "::ffff:203.0.113.7",
        " \t203.0.113.7\t ",
    ],
)
def test_a_list_is_routed_by_its_leftmost_address(server: Server, value: str) -> None:
    asked = head(f"x-FORWARDED-for:{value}")
    expected = slot_of("203.0.113.7", NUM)
    assert worker(server.ask(asked)) == expected == sticky.explain(asked, "", ROUTED).slot


@pytest.mark.parametrize("network", ["2001:db8:1:2", "2001:db8:3:4", "2001:db8:5:6", "2a00:1:2:3"])
def test_ipv6_clients_of_one_network_share_a_worker(server: Server, network: str) -> None:
    forms = [f"{network}::1", f"{network.upper()}:0:0:0:00ff", f"[{network}::7]:4711, 10.0.0.1"]
    expected = slot_of(f"{network}::", NUM)
    assert [worker(server.ask(head(f"{XFF}: {form}"))) for form in forms] == [expected] * 3


@pytest.mark.parametrize("lines", [[], [f"{XFF}:"], [f"{XFF}:  \t "], [f"{XFF}: unknown"]])
def test_a_missing_or_empty_header_is_400(server: Server, lines: list[str]) -> None:
    answer = parse(server.ask(head(*lines)))
    assert (answer.status, answer.headers["Connection"]) == (400, "close")
    assert b"X-Forwarded-For" in answer.body


def test_a_missing_or_empty_header_is_routed_by_the_peer_where_that_is_allowed(
    kind: Kind,
) -> None:
    with _serve(kind, "--ignore-missing-header") as server, _unharmed(server):
        for local in ("127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5"):
            for lines in ([], [f"{XFF}:"], [f"{XFF}: unknown"]):
                with Client(server.port, head(*lines, "Connection: close"), local=local) as client:
                    assert worker(client.rest()) == slot_of(local, NUM)


# -- heads that are too long, or never end ---------------------------------------------------------


@pytest.mark.parametrize("size", [64 << 10, 1 << 20])
def test_a_head_of_64_kb_is_431_and_the_answer_can_be_read_after_sending_more(
    either: Server, size: int
) -> None:
    with either.connect() as client:
        client.send(head(f"{XFF}: 10.1.1.1")[:-2] + b"X-Long: ")
        for _ in range(size >> 10):
            client.send(b"a" * 1024)
        answer = parse(client.rest())
    assert (answer.status, answer.headers["Connection"]) == (431, "close")


@pytest.mark.parametrize("size", [64 << 10, 1 << 20])
@pytest.mark.parametrize("begin", [b"GET / HTTP/1.1\r\nX: ", b"GET /?"], ids=["X", "URL"])
def test_a_head_of_64_kb_is_refused_without_a_proxy_too(
    direct: Server, begin: bytes, size: int
) -> None:
    with direct.connect(begin) as client:
        for _ in range(size >> 10):
            client.send(b"a" * 1024)
        answer = parse(client.rest())
    assert (answer.status, answer.headers["Connection"]) == (431, "close")


@pytest.mark.parametrize("mode", ["proxy", "direct"])
def test_a_refused_client_that_does_not_leave_is_dropped(
    kind: Kind, request: pytest.FixtureRequest, mode: str
) -> None:
    server: Server = request.getfixturevalue("server" if mode == "proxy" else "direct")
    with server.connect(b"GET\r\n\r\n") as client:
        assert parse(client.rest()).status == 400
        # It has been told, and keeps its side open: nobody waits for it for ever.
        address = client.sock.getsockname()

        def is_held() -> bool:
            processes = [psutil.Process(pid) for pid in server.fds]
            return any(c.raddr == address for p in processes for c in p.net_connections())

        wait_until(lambda: not is_held(), what="the server lets go")


def test_a_head_just_below_the_limit_is_served(server: Server) -> None:
    asked = head(f"{XFF}: {REAL}", *(f"X-{n}: {'a' * 1000}" for n in range(63)))
    assert 63_000 < len(asked) < 65_536
    assert worker(server.ask(asked)) == 0


def test_a_url_may_be_as_long_as_a_head(server: Server, direct: Server) -> None:
    path = "/" + "a" * 60_000
    for target in (server, direct):
        answer = request(target.port, path, {XFF: REAL})
        assert (answer.status, answer.json()["path"]) == (200, path)


@pytest.mark.parametrize("empty", [b"\r\n", b"\r\n\r\n"])
def test_empty_lines_before_a_request_are_skipped(
    server: Server, direct: Server, empty: bytes
) -> None:
    assert worker(server.ask(empty + head(f"{XFF}: {REAL}"))) == 0
    assert parse(direct.ask(empty + head())).status == 200


def dribble(clients: Sequence[Client]) -> list[bytes]:
    """What each is answered who sends a byte every now and then."""
    started, silent = time.monotonic(), list(clients)
    while silent:
        assert time.monotonic() < started + 30, "no answer at all"
        for client in silent:
            client.send(b"x")
        answered, _, _ = select.select([client.sock for client in silent], [], [], 0.1)
        silent = [client for client in silent if client.sock not in answered]
    assert time.monotonic() > started + HEAD_TIMEOUT * 0.9
    return [client.rest() for client in clients]


BEGINNINGS = [
    *(b"GET /", b"\r\n\r\nGET /"),
    b"GET / HTTP/1.1\r\nX-Forwarded-For: 10.1.1.1\r\nX-Endless: ",
]


@pytest.mark.parametrize("mode", ["server", "direct"])
def test_a_head_that_never_ends_is_408_however_slowly_it_goes_on(
    kind: Kind, request: pytest.FixtureRequest, mode: str
) -> None:
    server: Server = request.getfixturevalue(mode)
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.connect(begin)) for begin in BEGINNINGS]
        if mode == "direct":  # the second head of a connection is one, too
            clients.append(stack.enter_context(server.connect(head())))
            assert clients[-1].answer().status == 200
        assert [parse(answer).status for answer in dribble(clients)] == [408] * len(clients)


@pytest.mark.parametrize("mode", ["_accepting_at_once", "_deferring", "_direct"])
def test_a_client_that_never_says_a_word_is_closed_without_one(
    kind: Kind, request: pytest.FixtureRequest, mode: str
) -> None:
    """It would be taken for the answer to the next thing that is asked."""
    with _unharmed(request.getfixturevalue(mode)) as server, server.connect() as client:
        assert client.rest() == b""


# -- bytes that are no request ---------------------------------------------------------------------

MALFORMED = {
    "NUL in a value": head(f"{XFF}: 10.1.1.1", "X: a\0b"),
    "NUL in a name": head("X\0: a", f"{XFF}: 10.1.1.1"),
    "NUL in the request line": head(f"{XFF}: 10.1.1.1", target="/\0"),
    "a folded line": head("X: a", f" {XFF}: 10.1.1.1"),
    "a bare LF": head("X: a\nY: b", f"{XFF}: 10.1.1.1"),
    "a bare LF before the request": b"\n" + head(f"{XFF}: 10.1.1.1"),
    "bare CR in a value": head(f"{XFF}: 10.1.1.1", "X: a\rb"),
    "bare CR that hides a header": head(f"X: a\r{XFF}: 10.1.1.1"),
    "bare CR in the routing header": head(f"{XFF}: 10.1.1.1\r, 10.1.1.2"),
    "space before the routing header's colon": head(f"{XFF} : 10.1.1.1"),
    "tab before the routing header's colon": head(f"{XFF}\t: 10.1.1.1", f"{XFF}: 10.1.1.2"),
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_what_servers_could_read_differently_is_400(server: Server, data: bytes) -> None:
    answer = parse(server.ask(data))
    assert (answer.status, answer.headers["Connection"]) == (400, "close")


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"GET", 400),
        (b"GET / FOO", 400),
        (b"GET / HTTP/1.1 x", 400),
        (b"GET / HTTP/9.9", 505),
    ],
)
def test_a_request_line_that_is_none_is_refused_in_http(
    server: Server, direct: Server, line: bytes, status: int
) -> None:
    for target in (server, direct):
        answer = parse(target.ask(line + f"\r\n{XFF}: {REAL}\r\n\r\n".encode()))
        assert (answer.status, answer.headers["Connection"]) == (status, "close")


def client_hello() -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="test")
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (client_hello(), "speaks TLS"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9), "speaks HTTP/2"),
        (random.Random(1).randbytes(2000), "malformed"),
    ],
    ids=["TLS", "HTTP/2", "garbage"],
)
def test_another_protocol_is_refused_and_the_log_says_so_once(
    either: Server, data: bytes, said: str
) -> None:
    for _ in range(5):
        assert parse(either.ask(data)).status == 400
    for size in (3, 14, 100):  # and in pieces
        with either.connect(data[:size]) as client:
            either.wait_for_master()
            client.send(data[size:])
            assert parse(client.rest()).status == 400
    either.running.wait_for(said)
    assert either.running.log().count(said) == 1


@pytest.mark.parametrize("seed", range(20))
def test_garbage_never_does_any_harm(server: Server, direct: Server, seed: int) -> None:
    chance = random.Random(seed)
    letters = chance.choice([bytes(range(256)), b"GET /:\r\n\t 1.x-forwarded", b"\r\n", b"\n:"])
    data = bytes(chance.choices(letters, k=chance.choice([1, 10, 1000, 20_000])))
    for target in (server, direct):
        answer = target.ask(data)
        assert not answer or answer.startswith(b"HTTP/1."), answer[:80]


# -- clients that leave ----------------------------------------------------------------------------

LEAVING: dict[str, Callable[[Client], None]] = {"closes": Client.close, "resets": Client.reset}


@pytest.fixture(params=LEAVING)
def leave(request: pytest.FixtureRequest) -> Callable[[Client], None]:
    return LEAVING[request.param]


def test_a_client_may_leave_before_any_byte(
    either: Server, leave: Callable[[Client], None]
) -> None:
    clients = [either.connect() for _ in range(20)]
    either.wait_for_master()
    for client in clients:
        leave(client)


def test_a_client_may_leave_in_the_middle_of_its_head(
    either: Server, leave: Callable[[Client], None]
) -> None:
    whole = head(f"{XFF}: {REAL}")
    clients = [either.connect(whole[:cut]) for cut in range(1, len(whole), 5)]
    either.wait_for_master()
    for client in clients:
        leave(client)


def test_a_client_may_leave_right_after_its_head(
    either: Server, leave: Callable[[Client], None]
) -> None:
    for _ in range(50):
        leave(either.connect(head(f"{XFF}: {REAL}")))


def test_a_client_may_leave_in_the_middle_of_its_answer(
    either: Server, leave: Callable[[Client], None]
) -> None:
    for _ in range(10):
        client = either.connect(head(f"{XFF}: {REAL}", target="/blob?size=30000000"))
        client.read(100_000)
        leave(client)


@pytest.mark.parametrize("body", ["Content-Length: 1000000", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("path", ["/", "/body"])
def test_a_client_may_leave_in_the_middle_of_its_body(
    server: Server, leave: Callable[[Client], None], path: str, body: str
) -> None:
    asked = head(f"{XFF}: {REAL}", body, target=path, method="POST") + b"10000\r\n" + b"x" * 9000
    clients = [server.connect(asked) for _ in range(10)]
    server.wait_for_master()
    for client in clients:
        leave(client)


@pytest.mark.parametrize("body", [b"zz\r\n", b"-5\r\nabc", b"5\r\nabcdeX\r\n", b"\0\0"])
@pytest.mark.parametrize("path", ["/", "/body"])
def test_a_body_in_broken_chunks_is_only_its_clients_trouble(
    server: Server, path: str, body: bytes
) -> None:
    chunked = "Transfer-Encoding: chunked"
    server.ask(head(f"{XFF}: {REAL}", chunked, target=path, method="POST") + body)


@contextlib.contextmanager
def standing_still(server: Server, slot: int) -> Iterator[None]:
    """The worker of a slot does nothing meanwhile: connections wait before it."""
    pid = server.running.worker_pids()[slot]
    stop_process(pid)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_client_may_leave_between_being_handed_over_and_adopted(
    either: Server, leave: Callable[[Client], None]
) -> None:
    with standing_still(either, 0):
        clients = [either.connect(head(f"{XFF}: {REAL}")) for _ in range(6)]
        other = addresses_of(1, NUM, 1)[0]
        assert either.running.get("/", {XFF: other}).status == 200  # the master is past them
        for client in clients:
            leave(client)
    assert worker(either.ask(head(f"{XFF}: {REAL}"))) == 0


def test_a_client_may_leave_the_masters_queue(
    either: Server, leave: Callable[[Client], None]
) -> None:
    with standing_still(either, 0):
        clients = [either.connect(head(f"{XFF}: {REAL}")) for _ in range(60)]
        other = addresses_of(1, NUM, 1)[0]
        assert either.running.get("/", {XFF: other}).status == 200
        master = either.running.master_pid
        # 20 to 30 of them fit into the inbox, the others are the master's.
        wait_until(lambda: either.running.fds()[master] >= either.fds[master] + 20, what="a queue")
        for client in clients:
            leave(client)
        # The master lets go of them at once, and not when the worker goes on: of all but the crowd.
        wait_until(lambda: either.running.fds()[master] < either.fds[master] + 15, what="freed")
    assert either.running.get("/", {XFF: REAL}).json()["worker"] == 0


@pytest.mark.parametrize("cut", [0, 1, 30])
def test_a_client_that_half_closes_in_mid_head_is_told_or_closed(either: Server, cut: int) -> None:
    with either.connect(head(f"{XFF}: {REAL}")[:cut]) as client:
        either.wait_for_master()
        client.half_close()
        answer = client.rest()
    assert parse(answer).status == 400 if cut else not answer


@pytest.mark.parametrize("cut", [0, 1, 14, 16, 24, -2, -1])
def test_a_head_that_is_cut_off_never_reaches_the_app(direct: Server, cut: int) -> None:
    with direct.connect(head("X-Last: 1")[:cut]) as client:
        client.half_close()
        answer = client.rest()
    assert parse(answer).status == 400 if cut else not answer


def test_a_later_head_that_is_cut_off_never_reaches_the_app(server: Server) -> None:
    asked = head(f"{XFF}: {REAL}")
    with server.connect(asked + asked[:-2]) as client:
        assert client.answer().status == 200
        client.half_close()
        assert parse(client.rest()).status == 400


def test_a_client_that_half_closes_after_its_head_is_answered(either: Server) -> None:
    for _ in range(20):
        assert worker(either.ask(head(f"{XFF}: {REAL}"))) == 0


def test_a_client_that_half_closes_before_it_is_adopted_is_answered(either: Server) -> None:
    with standing_still(either, 0):
        clients = [either.connect(head(f"{XFF}: {REAL}")) for _ in range(6)]
        for client in clients:
            client.half_close()
        assert either.running.get("/", {XFF: addresses_of(1, NUM, 1)[0]}).status == 200
    for client in clients:
        with client:
            assert worker(client.rest()) == 0


def test_a_client_that_half_closes_in_the_middle_of_its_answer_gets_it_all(either: Server) -> None:
    asked = head(f"{XFF}: {REAL}", "Connection: close", target="/blob?size=3000000")
    with either.connect(asked) as client:
        begin = client.read(100_000)
        client.half_close()
        assert len(parse(begin + client.rest()).body) == 3_000_000


def test_a_thousand_clients_may_connect_and_close(either: Server) -> None:
    for _ in range(1000):
        either.connect().close()
    either.wait_for_master()


def test_a_thousand_clients_may_connect_and_reset(either: Server) -> None:
    for number in range(1000):
        either.connect(head(f"{XFF}: {REAL}")[: number % 40]).reset()
    either.wait_for_master()


def test_a_thousand_clients_may_connect_and_close_without_a_proxy(direct: Server) -> None:
    for number in range(1000):
        client = direct.connect(head()[: number % 40])
        client.close() if number % 2 else client.reset()
    assert request(direct.port).status == 200
