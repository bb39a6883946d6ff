"""Try the frameworks that keep sessions in the process: ``make frameworks``, or

python -m tests.frameworks --only streamlit,gradio
"""

from __future__ import annotations

import argparse
import sys

from tests.frameworks import presets, table, trial
from tests.frameworks.environments import Environment
from tests.frameworks.presets import PRESETS
from tests.frameworks.servers import SERVERS


def _list(text: str, known: list[str]) -> list[str]:
    names = [name for name in text.split(",") if name] or known
    if unknown := set(names) - set(known):
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)} is none of {', '.join(known)}")
    return names


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.frameworks")
    for name, known in (
        ("only", list(PRESETS)),
        ("servers", list(SERVERS)),
        ("ways", list(trial.WAYS)),
        ("checks", list(presets.ALL)),
    ):
        parser.add_argument(
            f"--{name}",
            type=lambda text, known=known: _list(text, known),
            default=known,
            help=f"some of {', '.join(known)}",
        )
    parser.add_argument(
        "--thorough", action="store_true", help="not only what of uvicorn fails first"
    )
    chosen = parser.parse_args()
    seen = []
    for name in chosen.only:
        preset = PRESETS[name]
        environment = Environment(name, preset.packages)
        environment.make()
        seen.append(
            trial.run(
                preset,
                environment,
                lambda line: print(line, flush=True),
                servers=chosen.servers,
                ways=chosen.ways,
                checks=chosen.checks,
                thorough=chosen.thorough,
            )
        )
    print(table.table({one.preset.name: table.row(one) for one in seen}))
    whole = (chosen.servers, chosen.ways, chosen.checks)
    if whole == (list(SERVERS), list(trial.WAYS), list(presets.ALL)):
        table.write(seen)
    wrong = [one.preset.name for one in seen if not one.is_right]
    # The line by which a run is judged.
    print(f"{len(seen) - len(wrong)} passed, {len(wrong)} failed")
    return 1 if wrong else 0


sys.exit(main())
