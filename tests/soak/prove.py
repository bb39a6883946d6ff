"""Whether the soak finds what it is there to find: each fault of ``plants.py``, one after another.

python -m tests.soak.prove --only blind,cross --kind asgi
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
import tempfile
from pathlib import Path

from tests.harness import KINDS

from .game import Game
from .plants import PLANTS
from .program import prepare

SECONDS = 6.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.prove", description=__doc__)
    parser.add_argument("--kind", default="asgi", help=", ".join(KINDS))
    parser.add_argument("--only", default="", help=", ".join(PLANTS))
    asked = parser.parse_args()
    prepare(4096)
    status = 0
    for name in asked.only.split(",") if asked.only else PLANTS:
        folder = Path(tempfile.mkdtemp(prefix="sticky-prove-"))
        os.environ["SOAK_PLANT"] = name
        found = asyncio.run(Game(asked.kind, folder, ["hup"], SECONDS, 1, 0.5).play())
        violations = found.oracle.violations
        good = bool(PLANTS[name][1] & violations.keys())
        counted = ", ".join(f"{kind} {len(texts)}" for kind, texts in violations.items())
        print(f"{name}: {'found' if good else 'NOT FOUND'} ({counted})", flush=True)
        status |= not good
        shutil.rmtree(folder)
    return status


if __name__ == "__main__":
    sys.exit(main())
