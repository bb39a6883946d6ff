"""What a client is told that is not served: one form for all of our own answers."""

from __future__ import annotations

from http import HTTPStatus

from .options import Options


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


def texts(options: Options) -> dict[int, str]:
    """One sentence for people for each status that we answer with ourselves (RFC 9110, 15)."""
    header = options.header.title()
    return {
        400: f"The request is malformed, or it has no usable {header} field.",
        408: f"The head of the request was not complete within {options.head_timeout:g} s.",
        431: f"The head of the request is longer than {options.max_head_size} bytes.",
        500: "The server could not answer this request.",
        501: "This server does not implement that method or transfer coding.",
        503: "The worker for this client is busy or restarting. Please try again.",
        505: "This server speaks HTTP/1.1 and HTTP/1.0.",
    }


def refusals(options: Options) -> dict[int, bytes]:
    """Whole answers for those who are not served, by status."""
    return {status: answer(status, text) for status, text in texts(options).items()}
