"""The C, broken on purpose: a suite that cannot see these would prove nothing."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from .core_kit import build, run_suite_over

MUTANTS = {
    "the end of a long name keeps its case": (
        "return eight(p + last) | eight(name.letters + last) == eight(name.text + last)",
        "return eight(p + last) == eight(name.text + last)",
    ),
    "blocks with nothing but a bare CR are skipped": (
        r"const __m128i cr = _mm_set1_epi8('\\r');",
        r"const __m128i cr = _mm_set1_epi8('\\n');",
    ),
    "a backslash escapes nothing": (
        r"p += 2 if p[0] == c'\\' and end - p > 1 else 1",
        r"p += 1",
    ),
    "'::' may stand for no group at all": (
        "elif count == 8:\n        return False  # '::' stands",
        "elif count == 9:\n        return False  # '::' stands",
    ),
    "a parameter may have a longer name": (
        "if name == equals and i == rules.session_size:",
        "if i == rules.session_size:",
    ),
    "a percent sign needs one digit only": (
        "if high >= 0 and low >= 0:",
        "if high >= 0:",
    ),
    "a cookie may be within another one": (
        "if text.at < text.end and (text.end - 1)[0] != c';':",
        "if False:",
    ),
    "the second name is not looked for in whole blocks": (
        "        if (has_two)",
        "        if (0)",
    ),
    "a tab does not fold": (
        "if p[1] != c' ' and p[1] != c'\\t':",
        "if p[1] != c' ':",
    ),
}


@pytest.mark.timeout(300)  # it compiles, and then runs tests of its own
@pytest.mark.skipif("STICKY_CORE_UNDER_TEST" in os.environ, reason="this is a mutant itself")
def test_each_mutant_is_caught(tmp_path):
    def hunt(number_and_change):
        number, change = number_and_change
        folder = tmp_path / str(number)
        folder.mkdir()
        module = build(folder, replace=change)
        return run_suite_over(module, "tests/unit/test_core_differential.py")

    with ThreadPoolExecutor(2) as pool:
        hunted = list(pool.map(hunt, enumerate(MUTANTS.values())))
    survivors = [name for name, done in zip(MUTANTS, hunted, strict=True) if done.returncode != 1]
    assert not survivors, "\n".join(done.stdout for done in hunted)
