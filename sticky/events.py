"""What python-socketio's managers tell each other, as it travels: JSON, most of it a short list.

Pickle would let whoever can send run code; and what comes out of JSON is what comes out of a broker
with python-socketio 5.14 and later.
"""

from __future__ import annotations

from typing import Any

_EMIT = ("event", "data", "namespace", "room", "skip_sid", "binary", "callback", "host_id")
_SHORT = 6  # without a callback nobody has to know who asks


def pack(message: dict[str, Any], json: Any) -> bytes:
    """What is sent.

    Args:
        message: as python-socketio's managers make it.
        json: the module that the server uses.
    """
    content: Any = message
    if message["method"] == "emit":
        names = _EMIT if message.get("callback") is not None else _EMIT[:_SHORT]
        content = [message.get(name) for name in names]
    data = json.dumps(content)
    return data.encode() if isinstance(data, str) else bytes(data)


def unpack(data: bytes, json: Any) -> dict[str, Any]:
    """The opposite.

    Raises:
        ValueError: this is nothing of the kind.
    """
    content = json.loads(data)
    if isinstance(content, list):
        if len(content) not in (_SHORT, len(_EMIT)):
            raise ValueError("an event has another number of parts")
        message = dict(zip(_EMIT, content))  # noqa: B905 - there may be fewer parts
        message["method"] = "emit"
        return message
    if not isinstance(content, dict):
        raise ValueError("an event is a list or a dict")
    return content
