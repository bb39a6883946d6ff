"""Run the soak; see ``make soak``.

    python -m tests.soak --seconds 60 --seed 7 --kinds eventlet,asgi --only kill,hup

The seed decides what is done to the server, and when; what is under way just then depends on the
machine as well. The time is that of the disturbances: starting and ending takes about ten seconds a
class more.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.harness import KINDS

from .disturbances import DISTURBANCES, chosen
from .game import Game, Result
from .program import prepare
from .report import problems, summary


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="for all classes together")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--kinds", default="", help=", ".join(KINDS))
    parser.add_argument("--only", default="", help=", ".join(DISTURBANCES) + ", or none")
    parser.add_argument("--size", type=float, default=0.5, help="of the load")
    asked = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 32) if asked.seed is None else asked.seed
    kinds = [name for name in asked.kinds.split(",") if name] or list(KINDS)
    try:
        names = chosen(asked.only)
    except ValueError as error:
        parser.error(str(error))
    if unknown := set(kinds) - KINDS.keys():
        parser.error(f"no such kind: {', '.join(unknown)}")
    prepare(4096)
    return soak(kinds, names, asked.seconds, seed, asked.size)


def soak(kinds: list[str], names: list[str], seconds: float, seed: int, size: float) -> int:
    """The exit status."""
    print(f"seed {seed}: {', '.join(kinds)}; {', '.join(names) or 'no disturbances'}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="sticky-soak-"))
    folder.chmod(0o700)
    results: list[Result] = []
    for kind in kinds:
        game = Game(kind, folder, names, seconds / len(kinds), seed, size)
        results.append(asyncio.run(game.play()))
        print(summary(results[-1]), flush=True)
    bad = [result for result in results if result.oracle.violations]
    for result in bad:
        print(problems(result))
    total = sum((result.done for result in results), Counter[str]())
    print(f"disturbances: {', '.join(f'{name} {count}' for name, count in total.most_common())}")
    if bad:
        again = f"make soak SEED={seed} KINDS={','.join(it.kind for it in bad)}"
        print(f"FAILED, seed {seed}; all logs are in {folder}; again: {again}")
        return 1
    shutil.rmtree(folder)
    print(f"passed, seed {seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
