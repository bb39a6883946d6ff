SSE2: bool

def pick(hash32: int, n: int) -> int: ...
def siphash(key8: bytes, data: bytes) -> int: ...

class Router:
    def __init__(
        self,
        n: int,
        seed: bytes,
        *,
        proxy: bool,
        header: bytes = b"x-forwarded-for",
        hops: int = 0,
        ipv4_prefix: int = 32,
        ipv6_prefix: int = 64,
        ignore_missing_header: bool = False,
        session: bytes = b"",
        anywhere: bool = False,
    ) -> None: ...
    def route(self, data: bytes | bytearray, length: int, peer: str) -> int: ...
    def explain(
        self, data: bytes | bytearray, length: int, peer: str
    ) -> tuple[int, bytes, str]: ...
    def session(self, data: bytes | bytearray, length: int) -> bytes: ...
    def owner(self, session: bytes) -> int: ...
    def mint(self, slot: int, random: bytes) -> bytes: ...
