"""The same as clients.js, with python-socketio's own client."""

from __future__ import annotations

import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import requests
import socketio

CONFIG = json.loads(sys.argv[1])
TRANSPORTS = {
    "polling": ["polling"],
    "websocket": ["websocket"],
    "upgrade": ["polling", "websocket"],
}
DEADLINE = 60

opened: list[socketio.Client] = []


def client(address: str) -> dict[str, Any]:
    answer: dict[str, Any] = {"address": address, "workers": [], "acks": 0, "events": 0}
    sent: dict[int, str] = {}
    heard = threading.Event()
    # The headers given to connect() are those of the first request only; the session's are of all.
    session = requests.Session()
    session.headers["X-Forwarded-For"] = address
    sio = socketio.Client(
        reconnection=False, handle_sigint=False, request_timeout=DEADLINE, http_session=session
    )
    opened.append(sio)

    @sio.event
    def welcome(data: dict[str, Any]) -> None:
        answer["workers"].append(data["worker"])

    @sio.event
    def echo(event: dict[str, Any]) -> None:
        answer["workers"].append(event["worker"])
        answer["events"] += event["data"]["text"] == sent[event["data"]["number"]]
        if answer["events"] == CONFIG["echoes"]:
            heard.set()

    sio.connect(
        CONFIG["url"],
        headers={"X-Forwarded-For": address},
        transports=TRANSPORTS[CONFIG["mode"]],
        wait_timeout=DEADLINE,
    )
    answer["sid"] = sio.eio.sid
    answer["transport"] = sio.transport()
    for number in range(CONFIG["echoes"]):
        sent[number] = text = f"{address}/{number}/" + "äöü" * (number * 20)
        ack = sio.call("echo", {"number": number, "text": text}, timeout=DEADLINE)
        answer["workers"].append(ack["worker"])
        answer["acks"] += ack["data"] == {"number": number, "text": text}
    if CONFIG["echoes"] and not heard.wait(DEADLINE):
        raise TimeoutError("never: all events")
    return answer


def safely(address: str) -> dict[str, Any]:
    try:
        return client(address)
    except Exception as error:
        return {"address": address, "error": repr(error)}


with ThreadPoolExecutor(len(CONFIG["addresses"])) as pool:
    answers = list(pool.map(safely, CONFIG["addresses"]))
    print(json.dumps(answers), flush=True)
    sys.stdin.read()
    # Not one after the other: a client that polls waits for the end of its poll.
    list(pool.map(lambda sio: sio.disconnect(), opened))
