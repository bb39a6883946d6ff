# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: embedsignature=True
"""The routing core, compiled. ``_pycore`` states the rules; this file gives the same answers.

How it gets them fast: one pass over the head that visits only the bytes that matter
(``sticky_next`` skips whole blocks without a look at any single byte), then one comparison with the
header's name, then one parse. The leaves are C without Python objects, which ``noexcept nogil``
proves. They get a pointer and an end, and read no byte at or behind the end.
"""

from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_Check, PyByteArray_GET_SIZE
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_Check, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memchr, memcmp, memcpy

import ipaddress

from sticky import rules as constants

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL

cdef extern from *:
    """
    #include <stddef.h>
    #include <stdint.h>
    #include <string.h>
    #if defined(__SSE2__) && !defined(STICKY_PORTABLE)
    #define STICKY_SSE2 1
    #include <emmintrin.h>
    #else
    #define STICKY_SSE2 0
    #endif

    /*
     * One letter of the name that is looked for, with bit 0x20 set, and where it stands in it.
     * Of the first 16 the last tells most: many names begin with x-forwarded-. Of a second name
     * (`two`) the first letter. What is 0 is never met, since 0x20 is set in what is compared.
     */
    typedef struct {
        uint8_t first;
        uint8_t probe;
        uint8_t probe_at;
        uint8_t two;
    } sticky_name;

    /*
     * The next byte from p on that needs a look: NUL, a CR without LF behind it, or an LF before
     * the end of the head, a continuation line, or a line that may begin with the name. May return
     * more than that, never less. `end`: there is none. `base`: from here on there are bytes.
     */
    static const uint8_t *sticky_next_portable(
        const uint8_t *p, const uint8_t *end, const sticky_name *name)
    {
        while (p < end) {
            const uint8_t *lf = (const uint8_t *)memchr(p, '\\n', (size_t)(end - p));
            const uint8_t *stop = lf ? lf : end;
            const uint8_t *cr = (const uint8_t *)memchr(p, '\\r', (size_t)(stop - p));
            const uint8_t *nul = (const uint8_t *)memchr(p, 0, (size_t)((cr ? cr : stop) - p));
            if (nul)
                return nul;
            if (cr && (cr + 1 != lf || !lf))
                return cr;
            if (!lf)
                return end;
            if (lf + 1 < end && (lf[1] <= ' ' || (lf[1] | 0x20) == name->first ||
                                 (lf[1] | 0x20) == name->two))
                return lf;
            p = lf + 1;
        }
        return end;
    }

    /* The next p where size bytes begin with `first` and end with `last`; NULL: there is none. */
    static const uint8_t *sticky_find(
        const uint8_t *p, const uint8_t *end, uint8_t first, uint8_t last, ptrdiff_t size)
    {
    #if STICKY_SSE2
        const __m128i begins = _mm_set1_epi8((char)first), ends = _mm_set1_epi8((char)last);
        while (end - p >= 32 + size) {
            const uint8_t *q = p + size - 1;
            __m128i a = _mm_and_si128(
                _mm_cmpeq_epi8(_mm_loadu_si128((const __m128i *)p), begins),
                _mm_cmpeq_epi8(_mm_loadu_si128((const __m128i *)q), ends));
            __m128i b = _mm_and_si128(
                _mm_cmpeq_epi8(_mm_loadu_si128((const __m128i *)(p + 16)), begins),
                _mm_cmpeq_epi8(_mm_loadu_si128((const __m128i *)(q + 16)), ends));
            uint32_t mask = (uint32_t)_mm_movemask_epi8(a) | (uint32_t)_mm_movemask_epi8(b) << 16;
            if (mask)
                return p + __builtin_ctz(mask);
            p += 32;
        }
    #endif
        while (end - p >= size) {
            p = (const uint8_t *)memchr(p, first, (size_t)(end - p - size + 1));
            if (!p || p[size - 1] == last)
                return p;
            p++;
        }
        return NULL;
    }

    #if STICKY_SSE2
    /* Which of the 16 bytes at p need a look; reads 17, and 16 from p + 1 + probe_at. */
    static inline __m128i sticky_look(
        const uint8_t *p, __m128i probe, size_t probe_at, int has_two, __m128i two)
    {
        const __m128i lf = _mm_set1_epi8('\\n'), space = _mm_set1_epi8(' ');
        __m128i here = _mm_loadu_si128((const __m128i *)p);
        __m128i next = _mm_loadu_si128((const __m128i *)(p + 1));
        __m128i letter = _mm_loadu_si128((const __m128i *)(p + 1 + probe_at));
        __m128i begins = _mm_or_si128(
            _mm_cmpeq_epi8(_mm_min_epu8(next, space), next), /* next <= ' ' */
            _mm_cmpeq_epi8(_mm_or_si128(letter, space), probe));
        if (has_two)
            begins = _mm_or_si128(begins, _mm_cmpeq_epi8(_mm_or_si128(next, space), two));
        __m128i line = _mm_and_si128(_mm_cmpeq_epi8(here, lf), begins);
        __m128i bare = _mm_andnot_si128(
            _mm_cmpeq_epi8(next, lf), _mm_cmpeq_epi8(here, _mm_set1_epi8('\\r')));
        __m128i nul = _mm_cmpeq_epi8(here, _mm_setzero_si128());
        return _mm_or_si128(_mm_or_si128(line, bare), nul);
    }

    static inline uint64_t sticky_look64(
        const uint8_t *p, __m128i probe, size_t probe_at, int has_two, __m128i two)
    {
        __m128i a = sticky_look(p, probe, probe_at, has_two, two);
        __m128i b = sticky_look(p + 16, probe, probe_at, has_two, two);
        __m128i c = sticky_look(p + 32, probe, probe_at, has_two, two);
        __m128i d = sticky_look(p + 48, probe, probe_at, has_two, two);
        if (!_mm_movemask_epi8(_mm_or_si128(_mm_or_si128(a, b), _mm_or_si128(c, d))))
            return 0;
        return (uint64_t)(uint32_t)_mm_movemask_epi8(a)
            | (uint64_t)(uint32_t)_mm_movemask_epi8(b) << 16
            | (uint64_t)(uint32_t)_mm_movemask_epi8(c) << 32
            | (uint64_t)(uint32_t)_mm_movemask_epi8(d) << 48;
    }

    /* Compiled twice, so that a second name costs nothing where there is none. */
    static inline __attribute__((always_inline)) const uint8_t *sticky_next_of(
        const uint8_t *base, const uint8_t *p, const uint8_t *end, const sticky_name *name,
        const int has_two)
    {
        const __m128i cr = _mm_set1_epi8('\\r');
        const __m128i two = _mm_set1_epi8((char)name->two);
        __m128i probe = _mm_set1_epi8((char)name->probe);
        size_t probe_at = name->probe_at;
        uint64_t mask;
        while (end - p > 64) {
            __m128i low = _mm_min_epu8(
                _mm_min_epu8(_mm_loadu_si128((const __m128i *)p),
                             _mm_loadu_si128((const __m128i *)(p + 16))),
                _mm_min_epu8(_mm_loadu_si128((const __m128i *)(p + 32)),
                             _mm_loadu_si128((const __m128i *)(p + 48))));
            /* All that matters is at most 13: without such a byte the 64 are done. */
            if (_mm_movemask_epi8(_mm_cmpeq_epi8(_mm_min_epu8(low, cr), low))) {
                if (end - p < 64 + 16) {
                    /* The probe would reach behind the end; the first letter does not. */
                    probe = _mm_set1_epi8((char)name->first);
                    probe_at = 0;
                }
                mask = sticky_look64(p, probe, probe_at, has_two, two);
                if (mask)
                    return p + __builtin_ctzll(mask);
            }
            p += 64;
        }
        if (end - base > 64 && p < end) {
            /* The rest, as the last bits of the last 64 bytes that have a next one. */
            const uint8_t *last = end - 65;
            if (p - last < 64) {
                mask = sticky_look64(last, _mm_set1_epi8((char)name->first), 0, has_two, two);
                mask >>= p - last;
                if (mask)
                    return p + __builtin_ctzll(mask);
            }
            return end[-1] == 0 ? end - 1 : end;
        }
        return sticky_next_portable(p, end, name);
    }

    static const uint8_t *sticky_next_two(
        const uint8_t *base, const uint8_t *p, const uint8_t *end, const sticky_name *name)
    {
        return sticky_next_of(base, p, end, name, 1);
    }

    static const uint8_t *sticky_next_one(
        const uint8_t *base, const uint8_t *p, const uint8_t *end, const sticky_name *name)
    {
        return sticky_next_of(base, p, end, name, 0);
    }

    static inline const uint8_t *sticky_next(
        const uint8_t *base, const uint8_t *p, const uint8_t *end, const sticky_name *name)
    {
        return (name->two ? sticky_next_two : sticky_next_one)(base, p, end, name);
    }
    #else
    #define sticky_next(base, p, end, name) sticky_next_portable(p, end, name)
    #endif
    """
    ctypedef struct sticky_name:
        uint8_t first
        uint8_t probe
        uint8_t probe_at
        uint8_t two
    const uint8_t *sticky_next(
        const uint8_t *base, const uint8_t *p, const uint8_t *end, const sticky_name *name
    ) noexcept nogil
    const uint8_t *sticky_find(
        const uint8_t *p, const uint8_t *end, uint8_t first, uint8_t last, Py_ssize_t size
    ) noexcept nogil
    const bint STICKY_SSE2

cdef int BY_PEER = constants.BY_PEER
cdef int BY_LEFTMOST = constants.BY_LEFTMOST
cdef int BY_HOPS = constants.BY_HOPS
cdef int BY_BYTES = constants.BY_BYTES
cdef int BY_SESSION = constants.BY_SESSION
cdef int LAST_KEY = constants.LAST_KEY
cdef int ABSENT = constants.ABSENT
cdef int EMPTY = constants.EMPTY
cdef int ONLY_UNKNOWN = constants.ONLY_UNKNOWN
cdef int TOO_FEW = constants.TOO_FEW
cdef int NO_ADDRESS = constants.NO_ADDRESS
cdef int LAST_MISSING = constants.LAST_MISSING
cdef int INCOMPLETE = constants.INCOMPLETE
cdef int NUL = constants.NUL
cdef int BARE_CR = constants.BARE_CR
cdef int SPACE_BEFORE_COLON = constants.SPACE_BEFORE_COLON
cdef int NO_COLON = constants.NO_COLON
cdef int FIRST_FOLDED = constants.FIRST_FOLDED
cdef int SESSION_SPACE = constants.SESSION_SPACE
cdef int SESSION_NO_COLON = constants.SESSION_NO_COLON
cdef int NO_SESSION = constants.NO_SESSION

cdef int NOWHERE = constants.NOWHERE
cdef int IN_QUERY = constants.IN_QUERY
cdef int IN_HEADER = constants.IN_HEADER
cdef int IN_COOKIE = constants.IN_COOKIE

cdef int NEED_MORE_VERDICT = constants.NEED_MORE
cdef int MISSING_VERDICT = constants.MISSING
cdef int MALFORMED_VERDICT = constants.MALFORMED
cdef int ANYWHERE_VERDICT = constants.ANYWHERE

cdef enum:
    MAX_SLOTS = 1024  # sizes of arrays must be known to C; checked when the module is loaded
    MAX_ADDRESS = 128
    RANDOM_BYTES = 15
    MINTED = 20
    MARKED = 16  # lines with session ids that are found again without another scan
    END_OF_HEAD = 100  # of next_field alone: beside the reasons above
    FIELD = 101
    SESSION_FIELD = 102
    IS_OTHER = 0  # what an element of the list is
    IS_UNKNOWN = 1
    IS_ADDRESS = 2

cdef uint32_t SLOT_SALTS[MAX_SLOTS]


# --- the rules of one Router, and what is found by them ------------------------------------------

cdef struct Name:
    const uint8_t *text  # lower case
    const uint8_t *letters  # 0x20 where the name has a letter, 0 elsewhere
    Py_ssize_t size  # 0: there is none

cdef struct Rules:
    uint32_t k0
    uint32_t k1
    int n
    int hops
    int ipv4_prefix
    int ipv6_prefix
    bint forwarded
    bint proxy
    bint anywhere
    int place  # of the session id
    const uint8_t *session  # the name of the parameter or cookie
    Py_ssize_t session_size
    Name header
    Name session_header
    sticky_name probe

cdef struct Key:
    uint32_t hash
    int words  # 1: IPv4, 4: IPv6, 0: bytes
    uint32_t word[4]
    int prefix  # bits of the words that count
    uint8_t *copy  # where to put a copy of a key of bytes, or NULL
    Py_ssize_t copied

cdef struct Text:
    const uint8_t *at
    const uint8_t *end

cdef struct Head:
    const uint8_t *base  # of the request line
    const uint8_t *at  # where to go on
    const uint8_t *end
    const uint8_t *first_lf  # or NULL while nobody has asked

cdef struct Pieces:
    const uint8_t *at  # NULL behind the last piece
    const uint8_t *end
    bint plain  # a quote was not closed: quotes mean nothing any more

cdef struct Values:
    int kind  # FIELD or SESSION_FIELD
    const uint8_t *at  # behind the colon of the first line of the header
    Head head  # as it was then; the lines after the first are found again if they are needed
    int left  # how many lines come after the first


# --- hash and slot -------------------------------------------------------------------------------

cdef struct Sip:
    uint32_t v0
    uint32_t v1
    uint32_t v2
    uint32_t v3
    uint32_t tail
    uint32_t size


cdef inline uint32_t rotate(uint32_t word, int bits) noexcept nogil:
    return (word << bits) | (word >> (32 - bits))


cdef inline void sip_round(Sip *s) noexcept nogil:
    s.v0 += s.v1
    s.v1 = rotate(s.v1, 5) ^ s.v0
    s.v0 = rotate(s.v0, 16)
    s.v2 += s.v3
    s.v3 = rotate(s.v3, 8) ^ s.v2
    s.v0 += s.v3
    s.v3 = rotate(s.v3, 7) ^ s.v0
    s.v2 += s.v1
    s.v1 = rotate(s.v1, 13) ^ s.v2
    s.v2 = rotate(s.v2, 16)


cdef inline void sip_start(Sip *s, uint32_t k0, uint32_t k1) noexcept nogil:
    s.v0 = k0
    s.v1 = k1
    s.v2 = k0 ^ 0x6C796765
    s.v3 = k1 ^ 0x74656462
    s.tail = 0
    s.size = 0


cdef inline void sip_word(Sip *s, uint32_t word) noexcept nogil:
    s.v3 ^= word
    sip_round(s)
    s.v0 ^= word


cdef inline void sip_byte(Sip *s, uint8_t byte) noexcept nogil:
    s.tail |= <uint32_t>byte << (8 * (s.size & 3))
    s.size += 1
    if s.size & 3 == 0:
        sip_word(s, s.tail)
        s.tail = 0


cdef inline uint32_t sip_end(Sip *s, uint32_t last) noexcept nogil:
    sip_word(s, last)
    s.v2 ^= 0xFF
    sip_round(s)
    sip_round(s)
    sip_round(s)
    return s.v1 ^ s.v3


cdef inline uint32_t sip_bytes_end(Sip *s) noexcept nogil:
    return sip_end(s, (s.size & 0xFF) << 24 | s.tail)


cdef inline uint32_t mix(uint32_t word) noexcept nogil:
    word = (word ^ (word >> 16)) * <uint32_t>0x85EBCA6B
    word = (word ^ (word >> 13)) * <uint32_t>0xC2B2AE35
    return word ^ (word >> 16)


cdef inline int pick_slot(uint32_t hash32, int n) noexcept nogil:
    cdef int slot
    cdef uint64_t weight, best = 0
    # The slot rides in the low half: one maximum without a branch finds weight and slot.
    for slot in range(n):
        weight = <uint64_t>mix(hash32 ^ SLOT_SALTS[slot]) << 32 | <uint32_t>slot
        best = weight if weight > best else best
    return <int><uint32_t>best


cdef inline bint is_picked(uint32_t hash32, int slot, int n) noexcept nogil:
    """Whether this is the slot; asks half of the hashes for one other slot only."""
    cdef uint32_t weight = mix(hash32 ^ SLOT_SALTS[slot])
    cdef int other
    for other in range(n):
        if mix(hash32 ^ SLOT_SALTS[other]) > weight:
            return False
    return True


# --- addresses -----------------------------------------------------------------------------------

cdef inline const uint8_t *parse_ipv4(
    const uint8_t *p, const uint8_t *end, uint32_t *word
) noexcept nogil:
    """Behind a dotted quad that starts at p, or NULL."""
    cdef uint32_t value = 0, octet
    cdef int i
    cdef const uint8_t *start
    for i in range(4):
        if i:
            if p == end or p[0] != c'.':
                return NULL
            p += 1
        start = p
        octet = 0
        while p < end and p - start < 3 and <uint8_t>(p[0] - c'0') <= 9:
            octet = octet * 10 + (p[0] - c'0')
            p += 1
        if p == start or octet > 255 or (start[0] == c'0' and p - start > 1):
            return NULL
        value = value << 8 | octet
    word[0] = value
    return p


cdef inline int hex_digit(uint8_t c) noexcept nogil:
    if <uint8_t>(c - c'0') <= 9:
        return c - c'0'
    c |= 0x20
    if <uint8_t>(c - c'a') <= 5:
        return c - c'a' + 10
    return -1


cdef inline bint parse_ipv6(
    const uint8_t *p, const uint8_t *end, uint32_t *word
) noexcept nogil:
    """RFC 4291 section 2.2, all three forms. Fills four words."""
    cdef uint32_t group[8]
    cdef uint32_t value
    cdef int count = 0, gap = -1, digit, i
    cdef const uint8_t *start
    if end - p >= 2 and p[0] == c':' and p[1] == c':':
        gap = 0
        p += 2
    elif p == end:
        return False
    while p < end:
        if count == 8:
            return False
        start = p
        value = 0
        while p < end and p - start < 4:
            digit = hex_digit(p[0])
            if digit < 0:
                break
            value = value << 4 | <uint32_t>digit
            p += 1
        if p == start:
            return False
        if p < end and p[0] == c'.':
            if count > 6 or parse_ipv4(start, end, &value) != end:
                return False
            group[count] = value >> 16
            group[count + 1] = value & 0xFFFF
            count += 2
            break
        group[count] = value
        count += 1
        if p == end:
            break
        if p[0] != c':':
            return False
        p += 1
        if p == end:
            return False
        if p[0] == c':':
            if gap >= 0:
                return False
            gap = count
            p += 1
    if gap < 0:
        if count != 8:
            return False
    elif count == 8:
        return False  # '::' stands for one group at least
    else:
        for i in range(count - gap):
            group[7 - i] = group[count - 1 - i]
        for i in range(gap, gap + 8 - count):
            group[i] = 0
    for i in range(4):
        word[i] = group[2 * i] << 16 | group[2 * i + 1]
    return True


cdef inline bint is_port(const uint8_t *p, const uint8_t *end) noexcept nogil:
    """Nothing, or a colon and one to five digits."""
    if p == end:
        return True
    if p[0] != c':' or not 2 <= end - p <= 6:
        return False
    p += 1
    while p < end:
        if <uint8_t>(p[0] - c'0') > 9:
            return False
        p += 1
    return True


cdef inline bint parse_zoned(
    const uint8_t *p, const uint8_t *end, uint32_t *word
) noexcept nogil:
    """IPv6 with a zone id or without."""
    cdef const uint8_t *percent = <const uint8_t *>memchr(p, c'%', end - p)
    cdef const uint8_t *zone
    if percent == NULL:
        return parse_ipv6(p, end, word)
    if percent + 1 == end:
        return False
    zone = percent + 1
    while zone < end:
        if zone[0] <= 0x20 or zone[0] >= 0x7F or zone[0] == c']':
            return False
        zone += 1
    return parse_ipv6(p, percent, word)


cdef inline int parse_address(
    const uint8_t *p, const uint8_t *end, uint32_t *word
) noexcept nogil:
    """How many words the address has; 0 when the text is none."""
    cdef const uint8_t *bracket
    cdef const uint8_t *after
    if p == end or end - p > MAX_ADDRESS:
        return 0
    if p[0] == c'[':
        bracket = <const uint8_t *>memchr(p, c']', end - p)
        if bracket == NULL or not is_port(bracket + 1, end):
            return 0
        if not parse_zoned(p + 1, bracket, word):
            return 0
    else:
        after = parse_ipv4(p, end, word)
        if after != NULL and is_port(after, end):
            return 1
        if not parse_zoned(p, end, word):
            return 0
    if (word[0] == 0 and word[1] == 0 and word[2] == 0xFFFF) or (
        word[0] == 0x0064FF9B and word[1] == 0 and word[2] == 0
    ):
        word[0] = word[3]
        return 1
    return 4


cdef inline bint key_from_address(
    const Rules *rules, const uint8_t *p, const uint8_t *end, Key *key
) noexcept nogil:
    """Mask and hash, if the text is an address."""
    cdef Sip sip
    cdef int i, bits
    key.words = parse_address(p, end, key.word)
    if key.words == 0:
        return False
    if key.words == 1:
        key.prefix = rules.ipv4_prefix
    elif key.word[0] >> 22 == 0xFE80 >> 6:
        key.prefix = 128  # every link has the same fe80::/64
    else:
        key.prefix = rules.ipv6_prefix
    sip_start(&sip, rules.k0, rules.k1)
    for i in range(key.words):
        bits = key.prefix - 32 * i
        if bits <= 0:
            key.word[i] = 0
        elif bits < 32:
            key.word[i] &= <uint32_t>0xFFFFFFFF << (32 - bits)
        sip_word(&sip, key.word[i])
    key.hash = sip_end(&sip, <uint32_t>key.words << 26)
    return True


# --- lists ---------------------------------------------------------------------------------------

cdef inline bint is_space(uint8_t c) noexcept nogil:
    """White space within a value; CR and LF are there only in a fold."""
    return c == c' ' or c == c'\t' or c == c'\r' or c == c'\n'


cdef inline const uint8_t *closing_quote(const uint8_t *p, const uint8_t *end) noexcept nogil:
    """The quote that closes the one at p, or NULL."""
    p += 1
    while p < end:
        if p[0] == c'"':
            return p
        p += 2 if p[0] == c'\\' and end - p > 1 else 1
    return NULL


cdef inline bint next_piece(Pieces *pieces, uint8_t separator, Text *piece) noexcept nogil:
    """The next piece of a list without the white space around it; False behind the last one."""
    cdef const uint8_t *p = pieces.at
    cdef const uint8_t *closed
    if p == NULL:
        return False
    piece.at = p
    while p < pieces.end and p[0] != separator:
        if p[0] == c'"' and not pieces.plain:
            closed = closing_quote(p, pieces.end)
            if closed == NULL:
                pieces.plain = True
            else:
                p = closed
        p += 1
    piece.end = p
    pieces.at = <const uint8_t *>NULL if p == pieces.end else p + 1
    while piece.at < piece.end and is_space(piece.at[0]):
        piece.at += 1
    while piece.at < piece.end and is_space((piece.end - 1)[0]):
        piece.end -= 1
    return True


cdef inline bint equals_word(
    const uint8_t *p, const uint8_t *end, const char *word, int size
) noexcept nogil:
    """Whether the text is this lower-case word of letters, in any case."""
    cdef int i
    if end - p != size:
        return False
    for i in range(size):
        if p[i] | 0x20 != <uint8_t>word[i]:
            return False
    return True


cdef inline int read_element(const Rules *rules, Text *element, Key *key) noexcept nogil:
    """What an element is; with IS_ADDRESS the key is made."""
    cdef uint8_t unescaped[MAX_ADDRESS]
    cdef int size = 0
    cdef Pieces pairs
    cdef Text node, pair
    node.at = element.at
    node.end = element.end
    if rules.forwarded:
        pairs = Pieces(element.at, element.end, False)
        while True:
            if not next_piece(&pairs, c';', &pair):
                return IS_OTHER
            if pair.end - pair.at >= 4 and pair.at[3] == c'=' and equals_word(
                pair.at, pair.at + 3, "for", 3
            ):
                node.at = pair.at + 4
                node.end = pair.end
                break
    if node.at < node.end and node.at[0] == c'"':
        if closing_quote(node.at, node.end) != node.end - 1:
            return IS_OTHER
        node.at += 1
        node.end -= 1
        if node.end - node.at > MAX_ADDRESS:
            return IS_OTHER
        while node.at < node.end:
            if node.at[0] == c'\\':
                node.at += 1
            unescaped[size] = node.at[0]
            size += 1
            node.at += 1
        node.at = unescaped
        node.end = unescaped + size
    if key_from_address(rules, node.at, node.end, key):
        return IS_ADDRESS
    if equals_word(node.at, node.end, "unknown", 7):
        return IS_UNKNOWN
    return IS_OTHER


# --- the head ------------------------------------------------------------------------------------

cdef inline uint64_t eight(const uint8_t *p) noexcept nogil:
    cdef uint64_t bytes_
    memcpy(&bytes_, p, 8)
    return bytes_


cdef inline bint is_name(const uint8_t *p, const Name *name) noexcept nogil:
    """Whether the name stands at p, where there is room for it."""
    cdef Py_ssize_t i, last = name.size - 8
    if last < 0:
        for i in range(name.size):
            if p[i] | name.letters[i] != name.text[i]:
                return False
        return True
    i = 0
    while i < last:
        if eight(p + i) | eight(name.letters + i) != eight(name.text + i):
            return False
        i += 8
    return eight(p + last) | eight(name.letters + last) == eight(name.text + last)


cdef inline int read_name(Head *head, const uint8_t *p, const Name *name) noexcept nogil:
    """Whether a line that starts at p is of this name: FIELD, a reason, or -1."""
    cdef const uint8_t *end = head.end
    cdef const uint8_t *name_end
    if name.size == 0 or end - p <= name.size or not is_name(p, name):
        return -1
    p += name.size
    name_end = p
    while p < end and (p[0] == c' ' or p[0] == c'\t'):
        p += 1
    if p == end:
        return -1
    if p[0] == c':':
        if p > name_end:
            return SPACE_BEFORE_COLON
        head.at = p + 1
        return FIELD
    if p[0] == c'\n' or (p[0] == c'\r' and end - p > 1 and p[1] == c'\n'):
        return NO_COLON
    return -1


cdef inline int read_line_start(Head *head, const uint8_t *lf, const Rules *rules) noexcept nogil:
    """What begins behind an LF: FIELD or SESSION_FIELD (head.at behind the colon), a reason, or -1
    for nothing."""
    cdef const uint8_t *p = lf + 1
    cdef const uint8_t *end = head.end
    cdef int found
    if p == end:
        return -1
    if p[0] == c'\n':
        return END_OF_HEAD
    if p[0] == c'\r':
        return END_OF_HEAD if end - p > 1 and p[1] == c'\n' else -1
    if p[0] == c' ' or p[0] == c'\t':
        if head.first_lf == NULL:
            head.first_lf = <const uint8_t *>memchr(head.base, c'\n', end - head.base)
        return FIRST_FOLDED if lf == head.first_lf else -1
    found = read_name(head, p, &rules.header)
    if found >= 0:
        return found
    found = read_name(head, p, &rules.session_header)
    if found == FIELD:
        return SESSION_FIELD
    if found == SPACE_BEFORE_COLON:
        return SESSION_SPACE
    return SESSION_NO_COLON if found == NO_COLON else -1


cdef inline int next_field(Head *head, const Rules *rules) noexcept nogil:
    """The next line of the header: FIELD; of the one with the session id: SESSION_FIELD;
    END_OF_HEAD; or the reason why there is none of them."""
    cdef const uint8_t *p = head.at
    cdef int found
    while True:
        p = sticky_next(head.base, p, head.end, &rules.probe)
        if p == head.end:
            return INCOMPLETE
        if p[0] == c'\n':
            found = read_line_start(head, p, rules)
            if found >= 0:
                return found
        elif p[0] == 0:
            return NUL
        elif p[0] == c'\r' and head.end - p > 1 and p[1] != c'\n':
            return BARE_CR
        p += 1


cdef inline void value_at(Pieces *value, const uint8_t *p, const uint8_t *end) noexcept nogil:
    """The value that starts at p, with its folds. The head is known to be complete."""
    value.at = p
    value.plain = False
    while True:
        p = <const uint8_t *>memchr(p, c'\n', end - p)
        if p[1] != c' ' and p[1] != c'\t':
            break
        p += 1
    value.end = p


cdef inline bint next_value(Values *values, const Rules *rules, Pieces *value) noexcept nogil:
    if values.left == 0:
        return False
    values.left -= 1
    while next_field(&values.head, rules) != values.kind:
        pass
    value_at(value, values.head.at, values.head.end)
    return True


cdef inline void feed(Sip *sip, Key *key, uint8_t byte) noexcept nogil:
    sip_byte(sip, byte)
    if key.copy != NULL:
        key.copy[key.copied] = byte
        key.copied += 1


cdef inline Text trimmed(const uint8_t *p, const uint8_t *end) noexcept nogil:
    """The text without the white space at its ends."""
    while p < end and is_space(p[0]):
        p += 1
    while p < end and is_space((end - 1)[0]):
        end -= 1
    return Text(p, end)


cdef inline void unfold(
    const uint8_t *p, const uint8_t *end, Sip *sip, Key *key
) noexcept nogil:
    """Feed a value without the white space at its ends, each fold as one space."""
    cdef Text text = trimmed(p, end)
    cdef bint folded
    while text.at < text.end:
        if is_space(text.at[0]):
            p = text.at
            folded = False
            while is_space(p[0]):
                folded |= p[0] == c'\n'
                p += 1
            if folded:
                feed(sip, key, c' ')
                text.at = p
            while text.at < p:
                feed(sip, key, text.at[0])
                text.at += 1
        else:
            feed(sip, key, text.at[0])
            text.at += 1


cdef int read_bytes(const Rules *rules, const Values *found, Key *key) noexcept nogil:
    """The key is the value: trimmed, folds as one space, several lines joined by ', '."""
    cdef Values values = found[0]
    cdef Pieces value
    cdef Sip sip
    cdef Text text
    value_at(&value, found.at, found.head.end)
    sip_start(&sip, rules.k0, rules.k1)
    key.words = 0
    while True:
        text = trimmed(value.at, value.end)
        if text.at < text.end and sip.size:
            feed(&sip, key, c',')
            feed(&sip, key, c' ')
        unfold(text.at, text.end, &sip, key)
        if not next_value(&values, rules, &value):
            break
    key.hash = sip_bytes_end(&sip)
    return BY_BYTES


cdef int read_leftmost(const Rules *rules, const Values *found, Key *key) noexcept nogil:
    cdef Values values = found[0]
    cdef Pieces value
    cdef Text element
    cdef int why = EMPTY, kind
    value_at(&value, found.at, found.head.end)
    while True:
        while next_piece(&value, c',', &element):
            if element.at == element.end:
                continue
            kind = read_element(rules, &element, key)
            if kind == IS_ADDRESS:
                return BY_LEFTMOST
            if kind == IS_OTHER:
                why = BY_BYTES
            elif why == EMPTY:
                why = ONLY_UNKNOWN
        if not next_value(&values, rules, &value):
            break
    return read_bytes(rules, found, key) if why == BY_BYTES else why


cdef int read_hops(const Rules *rules, const Values *found, Key *key) noexcept nogil:
    """Counts first: quotes can be followed only from the left."""
    cdef Values values = found[0]
    cdef Pieces value
    cdef Text element
    cdef Py_ssize_t count = 0
    value_at(&value, found.at, found.head.end)
    while True:
        while next_piece(&value, c',', &element):
            count += element.at < element.end
        if not next_value(&values, rules, &value):
            break
    if count < rules.hops:
        return TOO_FEW if count else EMPTY
    count -= rules.hops
    values = found[0]
    value_at(&value, found.at, found.head.end)
    while True:
        while next_piece(&value, c',', &element):
            if element.at == element.end:
                continue
            if count == 0:
                if read_element(rules, &element, key) == IS_ADDRESS:
                    return BY_HOPS
                return NO_ADDRESS
            count -= 1
        if not next_value(&values, rules, &value):
            return NO_ADDRESS


# --- session ids ---------------------------------------------------------------------------------

cdef inline uint8_t unquoted(const uint8_t **at, const uint8_t *end) noexcept nogil:
    """The byte that stands at a place of a query, percent-encoded or not; the place moves on."""
    cdef const uint8_t *p = at[0]
    cdef int high, low
    at[0] = p + 1
    if p[0] == c'+':
        return c' '
    if p[0] == c'%' and end - p > 2:
        high = hex_digit(p[1])
        low = hex_digit(p[2])
        if high >= 0 and low >= 0:
            at[0] = p + 3
            return <uint8_t>(high << 4 | low)
    return p[0]


cdef inline bint session_from(
    const Rules *rules, const uint8_t *p, const uint8_t *end, bint encoded, Key *key
) noexcept nogil:
    """The key is this text."""
    cdef Sip sip
    if p == end:
        return False
    sip_start(&sip, rules.k0, rules.k1)
    key.words = 0
    if key.copy == NULL and not (
        encoded and (memchr(p, c'%', end - p) != NULL or memchr(p, c'+', end - p) != NULL)
    ):
        while end - p >= 4:
            sip_word(
                &sip, p[0] | <uint32_t>p[1] << 8 | <uint32_t>p[2] << 16 | <uint32_t>p[3] << 24
            )
            sip.size += 4
            p += 4
    while p < end:
        if encoded:
            feed(&sip, key, unquoted(&p, end))
        else:
            feed(&sip, key, p[0])
            p += 1
    key.hash = sip_bytes_end(&sip)
    return True


cdef inline bint is_blank(uint8_t c) noexcept nogil:
    return c == c' ' or c == c'\t'


cdef inline const uint8_t *before(const uint8_t *p, const uint8_t *end, int byte) noexcept nogil:
    """Where the byte is, or the end."""
    cdef const uint8_t *found = <const uint8_t *>memchr(p, byte, end - p)
    return end if found == NULL else found


cdef bint session_in_query(
    const Rules *rules, const uint8_t *p, const uint8_t *end, Key *key
) noexcept nogil:
    """Look for the parameter in the target of the request line that starts at p.

    The target is what stands between blanks behind the method."""
    cdef const uint8_t *name
    cdef const uint8_t *equals
    cdef const uint8_t *after
    cdef Py_ssize_t i
    end = before(p, end, c'\n')
    if end > p and (end - 1)[0] == c'\r':
        end -= 1
    while p < end and is_blank(p[0]):
        p += 1
    while p < end and not is_blank(p[0]):
        p += 1
    while p < end and is_blank(p[0]):
        p += 1
    end = before(p, end, c' ')
    p = before(p, end, c'?')
    if p == end:
        return False
    end = before(p, end, c'\t')
    while True:
        if p[0] == c'\t':
            return False
        p += 1
        after = before(p, end, c'&')
        # Only these two can begin a name that is the one.
        if p < after and (p[0] == rules.session[0] or p[0] == c'%'):
            equals = before(p, after, c'=')
            if equals + 1 < after:
                name = p
                i = 0
                while name < equals and i < rules.session_size:
                    if unquoted(&name, equals) != rules.session[i]:
                        break
                    i += 1
                else:
                    if name == equals and i == rules.session_size:
                        return session_from(rules, equals + 1, after, True, key)
        if after == end:
            return False
        p = after


cdef bint session_in_cookie(
    const Rules *rules, const uint8_t *start, const uint8_t *end, Key *key
) noexcept nogil:
    """Look for the cookie in the value of one line."""
    cdef Py_ssize_t size = rules.session_size
    cdef const uint8_t *p = start
    cdef const uint8_t *name
    cdef Text text
    while True:
        name = sticky_find(p, end, rules.session[0], rules.session[size - 1], size)
        if name == NULL:
            return False
        p = name + 1
        if memcmp(name, rules.session, size):
            continue
        text = trimmed(start, name)
        if text.at < text.end and (text.end - 1)[0] != c';':
            continue
        text = trimmed(name + size, before(name, end, c';'))
        if text.at == text.end or text.at[0] != c'=':
            continue
        text = trimmed(text.at + 1, text.end)
        if text.end - text.at > 1 and text.at[0] == c'"' and (text.end - 1)[0] == c'"':
            text.at += 1
            text.end -= 1
        if session_from(rules, text.at, text.end, False, key):
            return True


cdef bint session_in_value(const Rules *rules, const Pieces *value, Key *key) noexcept nogil:
    """The session id in one line."""
    cdef Sip sip
    if rules.place == IN_COOKIE:
        return session_in_cookie(rules, value.at, value.end, key)
    sip_start(&sip, rules.k0, rules.k1)
    key.words = 0
    unfold(value.at, value.end, &sip, key)
    if sip.size == 0:
        return False
    key.hash = sip_bytes_end(&sip)
    return True


cdef bint session_in_lines(
    const Rules *rules, const uint8_t **marks, int count, const Values *found, Key *key
) noexcept nogil:
    """The first session id in these lines: those that are marked, and those after them."""
    cdef Values values = found[0]
    cdef Pieces value
    cdef int i
    for i in range(min(count, MARKED)):
        value_at(&value, marks[i], values.head.end)
        if session_in_value(rules, &value, key):
            return True
    values.left = count - MARKED
    while values.left > 0:
        next_value(&values, rules, &value)
        if session_in_value(rules, &value, key):
            return True
    return False


# --- the decision --------------------------------------------------------------------------------

cdef int decide(
    const Rules *rules, const uint8_t *data, Py_ssize_t length, Key *key
) noexcept nogil:
    """Why the request goes where it goes. Up to LAST_KEY the key is made, but for BY_PEER."""
    cdef const uint8_t *end = data + length
    cdef Head head
    cdef Values values, sessions
    cdef const uint8_t *marks[MARKED]
    cdef int lines = 0, session_lines = 0, found
    while data < end:
        if data[0] == c'\n':
            data += 1
        elif data[0] == c'\r' and end - data > 1 and data[1] == c'\n':
            data += 2
        else:
            break
    head.base = head.at = data
    head.end = end
    head.first_lf = NULL
    while True:
        found = next_field(&head, rules)
        if found == FIELD:
            if lines == 0:
                values.kind = FIELD
                values.at = head.at
                values.head = head
            lines += 1
        elif found == SESSION_FIELD:
            if session_lines < MARKED:
                marks[session_lines] = head.at
                sessions.head = head  # of the last one that is marked
            session_lines += 1
        else:
            break
    if found != END_OF_HEAD:
        return found
    if rules.place != NOWHERE:
        if rules.place == IN_QUERY:
            if session_in_query(rules, data, end, key):
                return BY_SESSION
        elif session_lines:
            sessions.kind = SESSION_FIELD
            if session_in_lines(rules, marks, session_lines, &sessions, key):
                return BY_SESSION
        if rules.anywhere:
            return NO_SESSION
        if not rules.proxy:
            return BY_PEER
    if lines == 0:
        return ABSENT
    values.left = lines - 1
    return read_hops(rules, &values, key) if rules.hops else read_leftmost(rules, &values, key)


# --- the shell -----------------------------------------------------------------------------------

cdef class Router:
    """From the first bytes of a connection to the slot that serves it.

    Args:
        n: number of slots, 1 to 1024.
        seed: 8 bytes that key the hash: who does not know them cannot tell where a value goes.
        proxy: route by ``header``; otherwise by the address of the peer alone.
        header: field name, compared without regard to ASCII case; ``forwarded`` is read as
            RFC 7239 has it.
        hops: take this element, counted from the right over all lines; 0 takes the leftmost
            valid address.
        ipv4_prefix: bits of an IPv4 address that count, 0 to 32.
        ipv6_prefix: bits of an IPv6 address that count, 0 to 128. fe80::/10 counts whole.
        ignore_missing_header: use the peer's address where the header is missing.
        session: where a session id is looked for, before any address: ``b"query:NAME"``,
            ``b"header:NAME"``, ``b"cookie:NAME"``, or ``b""``.
        anywhere: where there is no session id, do not ask for the address but say ANYWHERE.

    Raises:
        ValueError: one of them is out of its range.
    """

    cdef Rules rules
    cdef bint looks
    cdef bint ignore_missing_header
    cdef bytes header
    cdef bytes place
    cdef list names

    def __cinit__(
        self,
        n,
        seed,
        *,
        proxy,
        header=b"x-forwarded-for",
        hops=0,
        ipv4_prefix=32,
        ipv6_prefix=64,
        ignore_missing_header=False,
        session=b"",
        anywhere=False,
    ):
        cdef bytes name
        constants.check_router(
            n, seed, header, hops, ipv4_prefix, ipv6_prefix, session, bool(anywhere)
        )
        self.header = header.lower()
        self.place = session
        self.names = []
        self.rules.place, name = constants.session_at(session)
        self.rules.session = self.keep(name)
        self.rules.session_size = PyBytes_GET_SIZE(name)
        self.rules.proxy = proxy
        self.rules.anywhere = anywhere
        self.looks = proxy or session
        self.ignore_missing_header = ignore_missing_header
        self.rules.n = n
        self.rules.k0 = int.from_bytes(seed[:4], "little")
        self.rules.k1 = int.from_bytes(seed[4:], "little")
        self.rules.hops = hops
        self.rules.ipv4_prefix = ipv4_prefix
        self.rules.ipv6_prefix = ipv6_prefix
        self.rules.forwarded = self.header == b"forwarded"
        if proxy:
            self.rules.header = self.name_of(self.header)
            self.rules.probe.first = self.header[0] | 0x20
            self.rules.probe.probe_at = min(len(self.header), 16) - 1
            self.rules.probe.probe = self.header[self.rules.probe.probe_at] | 0x20
        if self.rules.place in (IN_HEADER, IN_COOKIE):
            name = name if self.rules.place == IN_HEADER else b"cookie"
            self.rules.session_header = self.name_of(name)
            self.rules.probe.two = name[0] | 0x20

    cdef const uint8_t *keep(self, bytes text) except NULL:
        """Where this text lies for as long as this object lives."""
        self.names.append(text)
        return <const uint8_t *>PyBytes_AS_STRING(text)

    cdef Name name_of(self, bytes name) except *:
        cdef bytes letters = bytes(
            [0x20 if letter in b"abcdefghijklmnopqrstuvwxyz" else 0 for letter in name]
        )
        return Name(self.keep(name), self.keep(letters), PyBytes_GET_SIZE(name))

    def route(self, data, Py_ssize_t length, str peer not None):
        """The slot for the request that starts ``data[:length]``, or a verdict (below zero).

        Args:
            data: what has arrived; looked at only with ``proxy`` or ``session``.
            length: how many bytes of ``data`` count.
            peer: the peer's address as the socket module gives it; "" for a Unix socket.

        Raises:
            TypeError: ``data`` is neither bytes nor a bytearray, or ``peer`` is no str.
            ValueError: ``length`` is negative or exceeds ``data``.
        """
        cdef Key key
        cdef int missing
        cdef int why
        key.copy = NULL
        why = self.decide(start_of(data, length), length, peer, &key, &missing)
        if why <= LAST_KEY:
            return pick_slot(key.hash, self.rules.n)
        if why <= LAST_MISSING:
            return MISSING_VERDICT
        if why == NO_SESSION:
            return ANYWHERE_VERDICT
        return NEED_MORE_VERDICT if why == INCOMPLETE else MALFORMED_VERDICT

    def explain(self, data, Py_ssize_t length, str peer not None):
        """What ``route`` returns, the key (b"" with a verdict), and one sentence that says why.

        Takes and raises what ``route`` does.
        """
        cdef Key key
        cdef int missing = -1
        cdef int why
        cdef const uint8_t *start = start_of(data, length)
        # A key of bytes is never longer than what it was read from: a name and a colon are at
        # least as long as the ', ' that stands for them.
        key.copy = <uint8_t *>malloc(max(length, 1))
        key.copied = 0
        if key.copy == NULL:
            raise MemoryError
        try:
            why = self.decide(start, length, peer, &key, &missing)
            text = constants.sentence(
                why, None if missing < 0 else missing, self.header, self.rules.hops, self.place
            )
            if why > LAST_KEY:
                return constants.verdict(why), b"", text
            slot = pick_slot(key.hash, self.rules.n)
            if key.words:
                return slot, address_text(&key), text
            if why == BY_PEER:
                return slot, peer.encode(), text
            return slot, key.copy[:key.copied], text
        finally:
            free(key.copy)

    def session(self, data, Py_ssize_t length):
        """The session id of the request that starts ``data[:length]``, or b"".

        Raises what ``route`` does.
        """
        _, key, why = self.explain(data, length, "")
        return key if why.startswith("session id") else b""

    def owner(self, bytes session not None):
        """The slot that requests with this session id go to."""
        cdef Sip sip
        cdef Py_ssize_t i
        cdef const uint8_t *text = <const uint8_t *>PyBytes_AS_STRING(session)
        sip_start(&sip, self.rules.k0, self.rules.k1)
        for i in range(PyBytes_GET_SIZE(session)):
            sip_byte(&sip, text[i])
        return pick_slot(sip_bytes_end(&sip), self.rules.n)

    def mint(self, int slot, bytes random not None):
        """A session id of 20 characters of base64 (RFC 4648, section 5) that leads to a slot.

        Its first 16 characters are those of the random bytes; the last 3 bytes are counted up until
        the id leads where it should. Who does not know the seed can neither aim nor guess.

        Args:
            slot: 0 to n-1.
            random: 15 bytes that nobody can predict.

        Raises:
            ValueError: there is no such slot, or these are not 15 bytes.
            LookupError: none of these ids leads there, which is as good as impossible.
        """
        cdef uint8_t text[MINTED]
        cdef const uint8_t *raw = <const uint8_t *>PyBytes_AS_STRING(random)
        cdef Sip begun, sip
        cdef uint32_t last, step
        cdef int i
        if not 0 <= slot < self.rules.n:
            raise ValueError(f"slot must be 0 to {self.rules.n - 1}, not {slot}")
        if PyBytes_GET_SIZE(random) != RANDOM_BYTES:
            raise ValueError(
                f"random must be {RANDOM_BYTES} bytes, not {PyBytes_GET_SIZE(random)}"
            )
        sip_start(&begun, self.rules.k0, self.rules.k1)
        for i in range(4):
            base64(text + 4 * i, raw[3 * i] << 16 | raw[3 * i + 1] << 8 | raw[3 * i + 2])
        for i in range(16):
            sip_byte(&begun, text[i])
        last = raw[12] << 16 | raw[13] << 8 | raw[14]
        for step in range(1 << 24):
            sip = begun
            base64(text + 16, (last + step) & 0xFFFFFF)
            for i in range(16, MINTED):
                sip_byte(&sip, text[i])
            if is_picked(sip_bytes_end(&sip), slot, self.rules.n):
                return (<char *>text)[:MINTED]
        raise LookupError("no id leads to this slot")

    cdef inline int decide(
        self, const uint8_t *start, Py_ssize_t length, str peer, Key *key, int *missing
    ) except -1:
        """Why, and the key. ``missing``: why the peer stands in for the header, if it does."""
        cdef int why
        if self.looks:
            why = decide(&self.rules, start, length, key)
            if self.ignore_missing_header and LAST_KEY < why <= LAST_MISSING:
                missing[0] = why
            elif why != BY_PEER:
                return why
        self.key_from_peer(peer, key)
        return BY_PEER

    cdef inline int key_from_peer(self, str peer, Key *key) except -1:
        cdef Py_ssize_t size, i
        cdef const uint8_t *text = <const uint8_t *>PyUnicode_AsUTF8AndSize(peer, &size)
        cdef Sip sip
        if key_from_address(&self.rules, text, text + size, key):
            return 0
        sip_start(&sip, self.rules.k0, self.rules.k1)
        for i in range(size):
            sip_byte(&sip, text[i])
        key.hash = sip_bytes_end(&sip)
        return 0


cdef inline void base64(uint8_t *to, uint32_t three) noexcept nogil:
    """Four characters for three bytes (RFC 4648, section 5)."""
    cdef const char *alphabet = (
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    )
    cdef int i
    for i in range(4):
        to[i] = alphabet[three >> (18 - 6 * i) & 63]


cdef inline const uint8_t *start_of(object data, Py_ssize_t length) except NULL:
    """Where the data lies, once it is known to be of the right type and long enough."""
    cdef const uint8_t *start
    cdef Py_ssize_t size
    if PyBytes_Check(data):
        start = <const uint8_t *>PyBytes_AS_STRING(data)
        size = PyBytes_GET_SIZE(data)
    elif PyByteArray_Check(data):
        start = <const uint8_t *>PyByteArray_AS_STRING(data)
        size = PyByteArray_GET_SIZE(data)
    else:
        raise TypeError(f"data must be bytes or bytearray, not {type(data).__name__}")
    if not 0 <= length <= size:
        raise ValueError(f"length must be 0 to {size}, not {length}")
    return start


cdef bytes address_text(const Key *key):
    cdef int i
    value = 0
    for i in range(key.words):
        value = value << 32 | key.word[i]
    bits = 32 * key.words
    address = ipaddress.IPv4Address(value) if bits == 32 else ipaddress.IPv6Address(value)
    return (str(address) if key.prefix == bits else f"{address}/{key.prefix}").encode()


def siphash(bytes key8 not None, bytes data not None):
    """HalfSipHash-1-3 of ``data`` with 32 bits of output, keyed with 8 bytes.

    Raises:
        ValueError: the key is not exactly 8 bytes.
    """
    cdef Sip sip
    cdef Py_ssize_t i
    cdef const uint8_t *text = <const uint8_t *>PyBytes_AS_STRING(data)
    if len(key8) != 8:
        raise ValueError(f"key8 must be exactly 8 bytes, not {len(key8)}")
    sip_start(&sip, int.from_bytes(key8[:4], "little"), int.from_bytes(key8[4:], "little"))
    for i in range(PyBytes_GET_SIZE(data)):
        sip_byte(&sip, text[i])
    return sip_bytes_end(&sip)


def pick(long long hash32, long long n):
    """The slot, 0 to n-1, for a 32-bit hash: rendezvous hashing.

    With one slot more, 1/(n+1) of all hashes move, all of them to the new slot.

    Raises:
        ValueError: the hash has more than 32 bits, or n is not 1 to 1024.
    """
    if not 1 <= n <= MAX_SLOTS:
        raise ValueError(f"n must be 1 to {MAX_SLOTS}, not {n}")
    if not 0 <= hash32 <= 0xFFFFFFFF:
        raise ValueError(f"hash32 must be a number of 32 bits without a sign, not {hash32}")
    return pick_slot(<uint32_t>hash32, <int>n)


SSE2 = bool(STICKY_SSE2)

if (constants.MAX_SLOTS, constants.MAX_ADDRESS, constants.RANDOM_BYTES) != (
    MAX_SLOTS, MAX_ADDRESS, RANDOM_BYTES
):
    raise ImportError("sticky._core was built for other constants than sticky.verdicts has")
for number, salt in enumerate(constants.SLOT_SALTS):
    SLOT_SALTS[number] = salt
