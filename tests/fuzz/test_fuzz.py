"""``make fuzz`` for a moment: that it builds, runs, and sees what it should."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.timeout(400)  # it compiles with two sanitizers
def test_the_fuzzing_runs_and_finds_nothing():
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz"],
        cwd=ROOT,
        env=os.environ | {"FUZZ_SECONDS": "2", "FUZZ_SEED": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("seed 1\n")
    assert done.stdout.endswith("nothing found\n")
