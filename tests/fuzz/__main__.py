"""The compiled core under AddressSanitizer and UBSan, fed until the time is over.

    make fuzz                      (FUZZ_SECONDS=600 FUZZ_SEED=7 make fuzz)

Random, mutated, pipelined and cut requests: the compiled core against its twin, and against h11 and
httptools where it accepts one. Memory behind the data is poisoned, so that one byte read too many
is a finding as well. A finding ends the run with status 1, and prints the bytes and the seed.
"""

import contextlib
import ctypes
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sticky import _pycore

from ..unit import http_kit
from ..unit.core_kit import COMPILED, build, case, said_of, sourced

SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g")
POISON = 64  # bytes behind the data


def main() -> int:
    """Build the core with the sanitizers, and start this module again under them."""
    seconds = float(os.environ.get("FUZZ_SECONDS", "60"))
    seed = int(os.environ.get("FUZZ_SEED") or random.SystemRandom().randrange(1 << 32))
    with tempfile.TemporaryDirectory(prefix="sticky-fuzz-") as folder:
        module = build(Path(folder), flags=SANITIZE)
        last = Path(folder) / "last"
        environment = os.environ | {
            "LD_PRELOAD": _library("libasan.so"),
            "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
            "UBSAN_OPTIONS": "print_stacktrace=1",
            "PYTHONMALLOC": "malloc",  # the sanitizer sees each object
            "STICKY_CORE_UNDER_TEST": str(module),
        }
        command = [sys.executable, "-m", __spec__.name, str(seed), str(seconds), str(last)]
        status = subprocess.run(command, env=environment).returncode
        if status:
            print(f"seed {seed}: status {status}; the last bytes were\n{last.read_bytes()!r}")
    return 1 if status else 0


def _library(name: str) -> str:
    found = subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True)
    return found.stdout.strip()


def fuzz(seed: int, seconds: float, last: str) -> None:
    """Feed the core; an AssertionError is a finding, and so is the end of this process."""
    print(f"seed {seed}", flush=True)
    draw = random.Random(seed)
    deadline = time.monotonic() + seconds
    done = accepted = 0
    with open(last, "wb", buffering=0) as note:
        while time.monotonic() < deadline:
            data = stream(draw)
            note.truncate(0)
            os.pwrite(note.fileno(), data, 0)
            accepted += conversation(draw, data)
            poisoned(data)
            routed(draw)
            problem = http_kit.disagreement(COMPILED, data)
            assert not problem, problem
            done += 1
    print(f"{done} cases, {accepted} requests accepted, nothing found")


def stream(draw: random.Random) -> bytes:
    """What a client sends: requests one after another, or worse."""
    kind = draw.random()
    if kind < 0.05:
        return draw.randbytes(draw.randrange(200))
    data = b"".join(http_kit.request(draw) for _ in range(draw.choice([1, 1, 2, 3])))
    if kind < 0.3:
        data = http_kit.spoiled(draw, data, draw.choice([1, 2, 8]))
    return data[: draw.randrange(len(data) + 1)] if kind > 0.8 else data


def conversation(draw: random.Random, data: bytes) -> int:
    """What a worker would read of it, whole and in pieces. Returns how many requests there are."""
    limit = draw.choice([http_kit.LIMIT, draw.randrange(400)])
    whole = events(COMPILED, [data], limit)
    pieces, at = [], 0
    while at < len(data):
        size = draw.choice([1, 2, 17, 100, 1000])
        pieces.append(data[at : at + size])
        at += size
    for twin in (COMPILED, _pycore):
        found = events(twin, pieces, limit)
        assert found == whole, f"limit {limit}, pieces {pieces}: {found}, not {whole}"
    assert events(_pycore, [data], limit) == whole
    return sum(isinstance(event, tuple) for event in whole)


def events(twin, pieces: list[bytes], limit: int) -> list:
    """Heads, bodies, and how it ends: as a server reads a connection."""
    found: list = []
    buffer, at, seen, body = bytearray(), 0, 0, None
    for piece in [*pieces, b""]:
        buffer += piece
        while True:
            if body is not None:
                if isinstance(body, int):
                    take = min(body, len(buffer) - at)
                    found.append(bytes(buffer[at : at + take]))
                    at, body = at + take, body - take
                    over = not body
                else:
                    try:
                        at, payload = body.feed(buffer, at, len(buffer))
                    except twin.ChunkError as error:
                        while isinstance(found[-1], bytes):
                            found.pop()  # how much of it came before depends on the pieces
                        return [*_together(found), str(error)]
                    found.append(payload)
                    over = body.over
                if not over:
                    break
                body, seen = None, at
            waits = seen > at and len(buffer) - at < limit and piece
            if waits and not twin.end_of_head(buffer, at, seen):
                seen = len(buffer)
                break
            head = twin.parse(buffer, at, limit)
            if isinstance(head, int):
                if head:
                    return [*_together(found), head]
                seen = len(buffer)
                break
            found.append(http_kit.said(twin, buffer, at, limit))
            at, body = head.end, twin.Chunks() if head.length < 0 else head.length
    return [*_together(found), "in a body" if body is not None else "at a head"]


def _together(found: list) -> list:
    """With the pieces of each body as one."""
    made: list = []
    for event in found:
        if isinstance(event, bytes) and made and isinstance(made[-1], bytes):
            made[-1] += event
        else:
            made.append(event)
    return made


def poisoned(data: bytes) -> None:
    """The same answers where a read behind the data is an error."""
    buffer = bytearray(data + bytes(POISON))
    place = ctypes.addressof((ctypes.c_char * len(buffer)).from_buffer(buffer))
    behind = ctypes.c_void_p(place + len(data)), ctypes.c_size_t(POISON)
    sanitizer = ctypes.CDLL(None)
    sanitizer.__asan_poison_memory_region(*behind)
    try:
        http_kit.said(COMPILED, buffer, 0, len(data))
        with contextlib.suppress(COMPILED.ChunkError):
            COMPILED.Chunks().feed(buffer, 0, len(data))
        several = (b"path:/s/{id}/", b"header:x-id", b"mark:m", b"cookie:sid")
        for rules in (
            *({"session": b"query:s"}, {"session": b"cookie:a"}, {"header": b"forwarded"}),
            {"session": several, "affix": True, "anywhere": True},
        ):
            router = COMPILED.Router(7, bytes(8), proxy=True, **rules)
            router.explain(buffer, len(data), "")
            router.who(buffer, len(data), "")
    finally:
        sanitizer.__asan_unpoison_memory_region(*behind)


def routed(draw: random.Random) -> None:
    """One head for the routing scan."""
    name = draw.choice([b"x-forwarded-for", b"forwarded", b"x"])
    made = case(name, draw)
    assert made.answer(COMPILED) == made.answer(_pycore), made
    poisoned(made.data[: made.length])
    made = sourced(draw)
    assert said_of(COMPILED, made) == said_of(_pycore, made), made
    poisoned(made.data[: made.length])


if __name__ == "__main__":
    if len(sys.argv) > 1:
        fuzz(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3])
    else:
        sys.exit(main())
