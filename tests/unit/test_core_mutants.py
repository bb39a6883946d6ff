"""The C, broken on purpose: a suite that cannot see these would prove nothing."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from .core_kit import build, run_suite_over

ROUTING = {
    "the end of a long name keeps its case": (
        "return eight(p + last) | eight(name.letters + last) == eight(name.text + last)",
        "return eight(p + last) == eight(name.text + last)",
    ),
    "blocks with nothing but a bare CR are skipped": (
        r"const __m128i cr = _mm_set1_epi8('\\r');",
        r"const __m128i cr = _mm_set1_epi8('\\n');",
    ),
    "a bare LF at the beginning of a block is not seen": (
        r" || p[64] == '\\n') {",
        ") {",
    ),
    "an LF needs no CR": (
        "__m128i bare = _mm_xor_si128(",
        "__m128i bare = _mm_andnot_si128(",
    ),
    "a folded line is skipped": (
        "    if is_blank(p[0]):\n        return FOLDED\n    found = read_name",
        "    if is_blank(p[0]):\n        return -1\n    found = read_name",
    ),
    "behind a colon an LF needs no CR": (
        "            return SPACE_BEFORE_COLON\n        head.at = p\n",
        "            return SPACE_BEFORE_COLON\n        head.at = p + 1\n",
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
        "if name == equals and i == source.size:",
        "if i == source.size:",
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
        "        for (int i = 0; i < count; i++)\n            begins",
        "        for (int i = 1; i < count; i++)\n            begins",
    ),
}

MARKS = {
    "a third name is not looked for in whole blocks": (
        "        for (int i = 0; i < count; i++)\n            begins",
        "        for (int i = 0; i < count && i < 1; i++)\n            begins",
    ),
    "a tag counts whatever it is": (
        "return memcmp(tag, p + MINTED, TAG) == 0",
        "return True",
    ),
    "only the first letters of a tag count": (
        "return memcmp(tag, p + MINTED, TAG) == 0",
        "return memcmp(tag, p + MINTED, 5) == 0",
    ),
    "something may stand behind a mark": (
        "        if size != MARK_SIZE:\n            return False",
        "        if size < MARK_SIZE:\n            return False",
    ),
    "an affix needs nothing behind it": (
        "elif size < MARK_SIZE + 2 or p[MARK_SIZE] != c'.':",
        "elif size < MARK_SIZE + 1 or p[MARK_SIZE] != c'.':",
    ),
    "the last source decides": (
        "(rules.count):\n        source = &rules.sources[i]\n        if source.pl",
        "(rules.count - 1, -1, -1):\n        source = &rules.sources[i]\n        if source.pl",
    ),
    "an id in a path may be longer than its place": (
        "    after = before(p, end, c'/')\n",
        "    after = end\n",
    ),
    "a plus in a path is a space": (
        "        if p[0] == c'+':\n            feed(&sip, key, c'+')",
        "        if p[0] == c'+':\n            feed(&sip, key, c' ')",
    ),
    "a choice lasts for ever": (
        "if age < AGREED_FOR:",
        "if True:",
    ),
    "somebody else's choice counts": (
        "elif word >> 28 == fingerprint:",
        "elif True:",
    ),
    "a clock that is read a little later is taken for an old one": (
        "if age >= 0x20000:\n                    age = 0",
        "if False:\n                    age = 0",
    ),
    "the newest choice makes room": (
        "if age > oldest or i == 0:",
        "if age < oldest or i == 0:",
    ),
    "the agent does not tell clients apart": (
        "agent = agent_of(start, start + length)",
        "agent = agent_of(start, start)",
    ),
}

HTTP = {
    "a field may have no name": (
        "    if colon[0] != c':' or colon == start:",
        "    if colon[0] != c':':",
    ),
    "DEL may stand in a value": (
        "int mask = _mm_movemask_epi8(_mm_or_si128(low, _mm_cmpeq_epi8(x, del)));",
        "int mask = _mm_movemask_epi8(low);",
    ),
    "a second Host is taken": (
        "    if request.has_host:\n        return HOST_TWICE",
        "    if False:\n        return HOST_TWICE",
    ),
    "a port has no limit": ("if port > MAX_PORT:", "if False:"),
    "a host may have white space within": (
        "    return not with_port\n    if colon[0] != c':':",
        "    return not with_port\n    if False:",
    ),
    "the last digit of a length is dropped": (
        "if not 1 <= value.end - p <= MAX_LENGTH_DIGITS:",
        "if not 1 <= value.end - p <= MAX_LENGTH_DIGITS + 1:",
    ),
    "a length beside a coding is taken": (
        "    if request.has_length:\n        return LENGTH_AND_CODING",
        "    if False:\n        return LENGTH_AND_CODING",
    ),
    "chunked need not come last": (
        "if request.chunked or not is_coding(&piece):",
        "if not is_coding(&piece):",
    ),
    "HTTP/1.0 may be chunked": (
        "if request.minor == 0:\n        return OLD_CODING",
        "if False:\n        return OLD_CODING",
    ),
    "an option has to be in lower case": (
        "        if LOWER[text.at[i]] != <uint8_t>word[i]:",
        "        if text.at[i] != <uint8_t>word[i]:",
    ),
    "an empty line before a request ends a head": (
        "if lf - start >= 4 and",
        "if lf - start >= 3 and",
    ),
    "names that hash alike are one": (
        "if KNOWN_AS[number].size == size and is_name(p, &KNOWN_AS[number]):",
        "if KNOWN_AS[number].size == size:",
    ),
    "a name that is not known is given as it was sent": (
        "        to[i] = LOWER[name.at[i]]",
        "        to[i] = name.at[i]",
    ),
    "names with an underscore are kept": (
        "elif memchr(name.at, c'_', name.end - name.at) != NULL:",
        "elif False:",
    ),
    "a head may be one byte larger": (
        "room = min(size - start, limit)",
        "room = min(size - start, limit + 1)",
    ),
    "a chunk's size overflows": ("if self.digits > MAX_SIZE_DIGITS:", "if self.digits > 99:"),
    "a chunk of 2**62 bytes is taken": ("if self.left >= MAX_CHUNK:", "if self.left > MAX_CHUNK:"),
    "extensions have no limit in all": (
        "if self.line > MAX_CHUNK_LINE or self.spare < 0:",
        "if self.line > MAX_CHUNK_LINE:",
    ),
    "the second piece of payload overwrites the first": (
        "                made_size += count",
        "                made_size += count - 1",
    ),
    "trailers have no limit": ("if self.trailers > MAX_TRAILERS:", "if False:"),
}


@pytest.mark.timeout(600)  # it compiles, and then runs tests of its own
@pytest.mark.skipif("STICKY_CORE_UNDER_TEST" in os.environ, reason="this is a mutant itself")
@pytest.mark.parametrize(
    ("mutants", "files"),
    [
        (ROUTING, ["differential"]),
        (MARKS, ["marks"]),
        (HTTP, ["http", "chunks", "http_differential"]),
    ],
    ids=["routing", "marks", "http"],
)
def test_each_mutant_is_caught(tmp_path, mutants, files):
    def hunt(number_and_change):
        number, change = number_and_change
        folder = tmp_path / str(number)
        folder.mkdir()
        module = build(folder, replace=change, flags=("-O0",))  # compiled faster than it is run
        return run_suite_over(module, *(f"tests/unit/test_core_{name}.py" for name in files))

    with ThreadPoolExecutor(2) as pool:
        hunted = list(pool.map(hunt, enumerate(mutants.values())))
    survivors = [name for name, done in zip(mutants, hunted, strict=True) if done.returncode != 1]
    assert not survivors, survivors
