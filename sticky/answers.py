"""What a client is told that is not served: one form for all of our own answers."""

from __future__ import annotations

from http import HTTPStatus


def answer(status: int, text: str) -> bytes:
    """A whole response (RFC 9110, 15) that ends the connection.

    Args:
        status: the HTTP status.
        text: one sentence for people.
    """
    body = text.encode() + b"\n"
    retry = "Retry-After: 1\r\n" if status == 503 else ""
    return (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
        "Connection: close\r\nContent-Type: text/plain\r\n"
        f"{retry}Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body
