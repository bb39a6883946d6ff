"""The chat example (a socketio.Server, with ``sticky.cluster``), in a real Chromium."""

from __future__ import annotations

from tests.e2e.conftest import HERE, ROOT, Start, requires
from tests.harness import serve


def test_the_chat_example_goes_on_working_when_the_worker_of_a_page_is_killed(
    script: Start,
) -> None:
    chromium = requires("chromium")
    artifacts = HERE / "artifacts"
    artifacts.mkdir(exist_ok=True)
    app = ROOT / "examples" / "chat" / "app.py"
    with serve(str(app), script=True, options=["0"], num=4) as running:
        before = running.worker_pids()
        browser = script(
            "browser.js",
            port=running.port,
            chromium=chromium,
            screenshot=str(artifacts / "chat.png"),
        )
        answer = browser.answer()
        browser.end()

        assert answer["problems"] == []
        anna, bert, back = answer["anna"], answer["bert"], answer["annaAfter"]
        assert int(anna["pid"]) == before[int(anna["slot"])]
        assert int(bert["pid"]) == before[int(bert["slot"])]
        assert anna["slot"] != bert["slot"]
        assert back["slot"] == anna["slot"]  # the successor took the slot of the killed one
        assert back["pid"] != anna["pid"]
        assert answer["bertAfter"] == {"slot": bert["slot"], "pid": bert["pid"]}
        running.wait_for_successor(int(anna["slot"]), int(anna["pid"]))
        assert running.worker_pids() == {**before, int(anna["slot"]): int(back["pid"])}
