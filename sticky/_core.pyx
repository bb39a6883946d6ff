# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# cython: embedsignature=True
"""The routing core, compiled. ``_pycore`` states the rules; this file gives the same answers.

How it gets them fast: one pass over the head that visits only the bytes that matter
(``sticky_next`` skips whole blocks without a look at any single byte), then one comparison with the
header's name, then one parse. The leaves are C without Python objects, which ``noexcept nogil``
proves. They get a pointer and an end, and read no byte at or behind the end.
"""

from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_Check, PyByteArray_GET_SIZE
from cpython.buffer cimport PyBUF_C_CONTIGUOUS, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport (
    PyBytes_AS_STRING, PyBytes_Check, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
)
from cpython.unicode cimport PyUnicode_DecodeASCII, PyUnicode_DecodeLatin1
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memchr, memcmp, memcpy, memset

cimport cython

import ipaddress

from sticky import rules as constants

cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL
    str PyUnicode_New(Py_ssize_t size, Py_UCS4 largest)
    void *PyUnicode_DATA(object text)

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
     * Of the first 16 the last tells most: many names begin with x-forwarded-. Of other names
     * the first letter. What is 0 is never met, since 0x20 is set in what is compared.
     */
    typedef struct {
        uint8_t first;
        uint8_t probe;
        uint8_t probe_at;
        uint8_t count; /* of the others */
        uint8_t others[4];
    } sticky_name;

    /*
     * The next byte from p on that needs a look: NUL, a CR without LF behind it, another byte with
     * one, or an LF before the end of the head, a continuation line, or a line that may begin with
     * the name. May return more than that, never less. `end`: there is none. `base`: from here on
     * there are bytes, and the first of them is no LF.
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
            if (!cr && lf > p)
                return lf - 1;
            if (lf + 1 < end) {
                const uint8_t letter = lf[1] | 0x20;
                if (lf[1] <= ' ' || letter == name->first)
                    return lf;
                for (int i = 0; i < name->count; i++)
                    if (letter == name->others[i])
                        return lf;
            }
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
        while (end - p >= 64 + size) {
            __m128i at[4];
            for (int i = 0; i < 4; i++)
                at[i] = _mm_and_si128(
                    _mm_cmpeq_epi8(_mm_loadu_si128((const __m128i *)(p + 16 * i)), begins),
                    _mm_cmpeq_epi8(
                        _mm_loadu_si128((const __m128i *)(p + size - 1 + 16 * i)), ends));
            if (_mm_movemask_epi8(
                    _mm_or_si128(_mm_or_si128(at[0], at[1]), _mm_or_si128(at[2], at[3])))) {
                for (int i = 0; i < 4; i++) {
                    int mask = _mm_movemask_epi8(at[i]);
                    if (mask)
                        return p + 16 * i + __builtin_ctz((unsigned)mask);
                }
            }
            p += 64;
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
        const uint8_t *p, __m128i probe, size_t probe_at, int count, const __m128i *others)
    {
        const __m128i lf = _mm_set1_epi8('\\n'), space = _mm_set1_epi8(' ');
        __m128i here = _mm_loadu_si128((const __m128i *)p);
        __m128i next = _mm_loadu_si128((const __m128i *)(p + 1));
        __m128i letter = _mm_loadu_si128((const __m128i *)(p + 1 + probe_at));
        __m128i begins = _mm_or_si128(
            _mm_cmpeq_epi8(_mm_min_epu8(next, space), next), /* next <= ' ' */
            _mm_cmpeq_epi8(_mm_or_si128(letter, space), probe));
        for (int i = 0; i < count; i++)
            begins = _mm_or_si128(
                begins, _mm_cmpeq_epi8(_mm_or_si128(next, space), others[i]));
        __m128i line = _mm_and_si128(_mm_cmpeq_epi8(here, lf), begins);
        /* CR and LF belong together: one without the other is bare. */
        __m128i bare = _mm_xor_si128(
            _mm_cmpeq_epi8(next, lf), _mm_cmpeq_epi8(here, _mm_set1_epi8('\\r')));
        __m128i nul = _mm_cmpeq_epi8(here, _mm_setzero_si128());
        return _mm_or_si128(_mm_or_si128(line, bare), nul);
    }

    static inline uint64_t sticky_look64(
        const uint8_t *p, __m128i probe, size_t probe_at, int count, const __m128i *others)
    {
        __m128i a = sticky_look(p, probe, probe_at, count, others);
        __m128i b = sticky_look(p + 16, probe, probe_at, count, others);
        __m128i c = sticky_look(p + 32, probe, probe_at, count, others);
        __m128i d = sticky_look(p + 48, probe, probe_at, count, others);
        if (!_mm_movemask_epi8(_mm_or_si128(_mm_or_si128(a, b), _mm_or_si128(c, d))))
            return 0;
        return (uint64_t)(uint32_t)_mm_movemask_epi8(a)
            | (uint64_t)(uint32_t)_mm_movemask_epi8(b) << 16
            | (uint64_t)(uint32_t)_mm_movemask_epi8(c) << 32
            | (uint64_t)(uint32_t)_mm_movemask_epi8(d) << 48;
    }

    /* Compiled for each number of other names, so that one costs nothing where there is none. */
    static inline __attribute__((always_inline)) const uint8_t *sticky_next_of(
        const uint8_t *base, const uint8_t *p, const uint8_t *end, const sticky_name *name,
        const int count)
    {
        const __m128i cr = _mm_set1_epi8('\\r');
        __m128i others[4];
        for (int i = 0; i < count; i++)
            others[i] = _mm_set1_epi8((char)name->others[i]);
        __m128i probe = _mm_set1_epi8((char)name->probe);
        size_t probe_at = name->probe_at;
        uint64_t mask;
        while (end - p > 64) {
            __m128i low = _mm_min_epu8(
                _mm_min_epu8(_mm_loadu_si128((const __m128i *)p),
                             _mm_loadu_si128((const __m128i *)(p + 16))),
                _mm_min_epu8(_mm_loadu_si128((const __m128i *)(p + 32)),
                             _mm_loadu_si128((const __m128i *)(p + 48))));
            /* All that matters is at most 13: without such a byte the 64 are done, if no LF
             * follows them. */
            if (_mm_movemask_epi8(_mm_cmpeq_epi8(_mm_min_epu8(low, cr), low)) || p[64] == '\\n') {
                if (end - p < 64 + 16) {
                    /* The probe would reach behind the end; the first letter does not. */
                    probe = _mm_set1_epi8((char)name->first);
                    probe_at = 0;
                }
                mask = sticky_look64(p, probe, probe_at, count, others);
                if (mask)
                    return p + __builtin_ctzll(mask);
            }
            p += 64;
        }
        if (end - base > 64 && p < end) {
            /* The rest, as the last bits of the last 64 bytes that have a next one. */
            const uint8_t *last = end - 65;
            if (p - last < 64) {
                mask = sticky_look64(
                    last, _mm_set1_epi8((char)name->first), 0, count, others);
                mask >>= p - last;
                if (mask)
                    return p + __builtin_ctzll(mask);
            }
            return end[-1] == 0 ? end - 1 : end;
        }
        return sticky_next_portable(p, end, name);
    }

    #define STICKY_NEXT(count) \\
        static const uint8_t *sticky_next_##count( \\
            const uint8_t *base, const uint8_t *p, const uint8_t *end, const sticky_name *name) \\
        { \\
            return sticky_next_of(base, p, end, name, count); \\
        }
    STICKY_NEXT(0)
    STICKY_NEXT(1)
    STICKY_NEXT(2)
    STICKY_NEXT(3)
    STICKY_NEXT(4)

    static inline const uint8_t *sticky_next(
        const uint8_t *base, const uint8_t *p, const uint8_t *end, const sticky_name *name)
    {
        switch (name->count) {
        case 0:
            return sticky_next_0(base, p, end, name);
        case 1:
            return sticky_next_1(base, p, end, name);
        case 2:
            return sticky_next_2(base, p, end, name);
        case 3:
            return sticky_next_3(base, p, end, name);
        default:
            return sticky_next_4(base, p, end, name);
        }
    }
    #else
    #define sticky_next(base, p, end, name) sticky_next_portable(p, end, name)
    #endif

    /* Words of memory that other processes change, too. */
    static inline uint64_t sticky_load(const uint64_t *p)
    {
        return __atomic_load_n(p, __ATOMIC_SEQ_CST);
    }

    static inline int sticky_swap(uint64_t *p, uint64_t old, uint64_t word)
    {
        return __atomic_compare_exchange_n(p, &old, word, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    }

    /* The first byte that a field value may not hold: a control character other than HTAB. */
    static inline const uint8_t *sticky_text_end(const uint8_t *p, const uint8_t *end)
    {
    #if STICKY_SSE2
        const __m128i last = _mm_set1_epi8(0x1f), del = _mm_set1_epi8(0x7f);
        const __m128i tab = _mm_set1_epi8('\\t');
        while (end - p >= 16) {
            __m128i x = _mm_loadu_si128((const __m128i *)p);
            __m128i low = _mm_andnot_si128(
                _mm_cmpeq_epi8(x, tab), _mm_cmpeq_epi8(_mm_min_epu8(x, last), x));
            int mask = _mm_movemask_epi8(_mm_or_si128(low, _mm_cmpeq_epi8(x, del)));
            if (mask)
                return p + __builtin_ctz((unsigned)mask);
            p += 16;
        }
    #endif
        while (p < end && (*p >= ' ' || *p == '\\t') && *p != 0x7f)
            p++;
        return p;
    }
    """
    ctypedef struct sticky_name:
        uint8_t first
        uint8_t probe
        uint8_t probe_at
        uint8_t count
        uint8_t others[4]
    const uint8_t *sticky_next(
        const uint8_t *base, const uint8_t *p, const uint8_t *end, const sticky_name *name
    ) noexcept nogil
    const uint8_t *sticky_find(
        const uint8_t *p, const uint8_t *end, uint8_t first, uint8_t last, Py_ssize_t size
    ) noexcept nogil
    uint64_t sticky_load(const uint64_t *p) noexcept nogil
    int sticky_swap(uint64_t *p, uint64_t old, uint64_t word) noexcept nogil
    const uint8_t *sticky_text_end(const uint8_t *p, const uint8_t *end) noexcept nogil
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
cdef int BARE_LF = constants.BARE_LF
cdef int FOLDED = constants.FOLDED
cdef int SPACE_BEFORE_COLON = constants.SPACE_BEFORE_COLON
cdef int NO_COLON = constants.NO_COLON
cdef int SESSION_SPACE = constants.SESSION_SPACE
cdef int SESSION_NO_COLON = constants.SESSION_NO_COLON
cdef int NO_SESSION = constants.NO_SESSION

cdef int CONTROL = constants.CONTROL
cdef int REQUEST_LINE = constants.REQUEST_LINE
cdef int LONG_METHOD = constants.LONG_METHOD
cdef int BAD_TARGET = constants.BAD_TARGET
cdef int NO_VERSION = constants.NO_VERSION
cdef int OTHER_VERSION = constants.OTHER_VERSION
cdef int NAME_SPACE = constants.NAME_SPACE
cdef int BAD_NAME = constants.BAD_NAME
cdef int LINE_WITHOUT_COLON = constants.LINE_WITHOUT_COLON
cdef int NO_HOST = constants.NO_HOST
cdef int HOST_TWICE = constants.HOST_TWICE
cdef int BAD_HOST = constants.BAD_HOST
cdef int BAD_LENGTH = constants.BAD_LENGTH
cdef int LENGTH_TWICE = constants.LENGTH_TWICE
cdef int LENGTH_AND_CODING = constants.LENGTH_AND_CODING
cdef int OLD_CODING = constants.OLD_CODING
cdef int CODING_TWICE = constants.CODING_TWICE
cdef int BAD_CODING = constants.BAD_CODING
cdef int OTHER_CODING = constants.OTHER_CODING
cdef int TOO_LARGE = constants.TOO_LARGE

cdef int CHUNKED = constants.CHUNKED
cdef uint64_t MAX_CHUNK = constants.MAX_CHUNK

cdef int IN_QUERY = constants.IN_QUERY
cdef int IN_HEADER = constants.IN_HEADER
cdef int IN_COOKIE = constants.IN_COOKIE
cdef int IN_PATH = constants.IN_PATH
cdef int PLAIN = constants.PLAIN
cdef int MARK = constants.MARK
cdef int AFFIX = constants.AFFIX

cdef int NEED_MORE_VERDICT = constants.NEED_MORE
cdef int MISSING_VERDICT = constants.MISSING
cdef int MALFORMED_VERDICT = constants.MALFORMED
cdef int ANYWHERE_VERDICT = constants.ANYWHERE

cdef enum:
    MAX_SLOTS = 1024  # sizes of arrays must be known to C; checked when the module is loaded
    MAX_ADDRESS = 128
    RANDOM_BYTES = 15
    MINTED = 20
    TAG = 11
    MARK_SIZE = 31
    MAX_SOURCES = 4
    AGREED_FOR = 2000
    MARKED = 16  # lines with session ids that are found again without another scan
    END_OF_HEAD = 100  # of next_field alone: beside the reasons above
    FIELD = 101
    SESSION_FIELD = 102  # of the first header with session ids; then those of the others
    IS_OTHER = 0  # what an element of the list is
    IS_UNKNOWN = 1
    IS_ADDRESS = 2
    PASS = -1  # of the leaves that read a head: what they look for is there (0: not yet)
    OTHER = -2  # something else is, which is allowed in a line
    MAX_METHOD = 64
    MAX_LENGTH_DIGITS = 18
    MAX_PORT = 65535
    IS_TOKEN = 1  # what a byte may be a part of
    IS_TARGET = 2
    IS_REG_NAME = 4
    IS_BASE64 = 8
    KNOWN = 63  # names of fields, in the order of constants.KNOWN_NAMES
    UNKNOWN = -1
    KNOWN_HOST = 0
    KNOWN_CONTENT_LENGTH = 1
    KNOWN_TRANSFER_ENCODING = 2
    KNOWN_CONNECTION = 3
    KNOWN_EXPECT = 4
    KNOWN_UPGRADE = 5
    KNOWN_COOKIE = 6
    KNOWN_USER_AGENT = 53
    AT_CHUNK = 0
    AT_SIZE = 1
    AT_SPACE = 2
    AT_QUOTED_END = 11
    AT_DATA = 13
    AT_DATA_END = 14
    AT_TRAILER = 16
    AT_END = 21
    AT_ERROR = 22
    MAX_SIZE_DIGITS = 16
    MAX_CHUNK_LINE = 4096
    MAX_EXTENSIONS = 16384
    MAX_TRAILERS = 16384

cdef struct Name:
    const uint8_t *text  # lower case
    const uint8_t *letters  # 0x20 where the name has a letter, 0 elsewhere
    Py_ssize_t size  # 0: there is none

cdef uint32_t SLOT_SALTS[MAX_SLOTS]
cdef Name KNOWN_AS[KNOWN]
cdef int KNOWN_AT[256]  # a hash table of them
cdef tuple NAMES = constants.KNOWN_NAMES
cdef tuple ENVIRON_NAMES = tuple(map(constants.environ_name, NAMES))
cdef list LETTERS = []  # kept for KNOWN_AS
cdef uint8_t CHUNK_STEPS[AT_ERROR + 1][256]
cdef uint8_t KINDS[256]  # of bytes: IS_TOKEN and so on
cdef uint8_t LOWER[256]
cdef uint8_t ENVIRON[256]  # as the byte of a name is written in a WSGI environ


# --- the rules of one Router, and what is found by them ------------------------------------------

cdef struct Source:
    int place  # IN_QUERY and so on
    int kind  # PLAIN, MARK or AFFIX
    int field  # which of the rules' fields, if it is in one
    const uint8_t *name  # of the parameter or cookie; of a path what stands before the id
    Py_ssize_t size
    const uint8_t *behind  # the id in a path
    Py_ssize_t behind_size

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
    uint64_t tag0  # the key of the tags
    uint64_t tag1
    Name header
    int count  # of the sources of session ids
    Source sources[MAX_SOURCES]
    int fields  # headers that have to be read for them
    Name field[MAX_SOURCES]
    sticky_name probe

cdef struct Key:
    uint32_t hash
    int words  # 1: IPv4, 4: IPv6, 0: bytes
    uint32_t word[4]
    int prefix  # bits of the words that count
    int source  # of a session id, or of what is wrong with its header
    uint8_t *copy  # where to put a copy of a key of bytes, or NULL
    Py_ssize_t copied

cdef struct Text:
    const uint8_t *at
    const uint8_t *end

cdef struct Scan:
    const uint8_t *base  # of the request line
    const uint8_t *at  # where to go on; at the colon, once a header has been found
    const uint8_t *end
    int field  # of the rules: the one with session ids that a line was about

cdef struct Pieces:
    const uint8_t *at  # NULL behind the last piece
    const uint8_t *end
    bint plain  # a quote was not closed: quotes mean nothing any more

cdef struct Values:
    int kind  # FIELD or SESSION_FIELD or one of those behind it
    const uint8_t *at  # the colon of the first line of the header
    Scan head  # as it was then; the lines after the first are found again if they are needed
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


cdef inline uint64_t rotate64(uint64_t word, int bits) noexcept nogil:
    return (word << bits) | (word >> (64 - bits))


cdef inline void tag_rounds(uint64_t *v, int count) noexcept nogil:
    cdef int _
    for _ in range(count):
        v[0] += v[1]
        v[1] = rotate64(v[1], 13) ^ v[0]
        v[0] = rotate64(v[0], 32)
        v[2] += v[3]
        v[3] = rotate64(v[3], 16) ^ v[2]
        v[0] += v[3]
        v[3] = rotate64(v[3], 21) ^ v[0]
        v[2] += v[1]
        v[1] = rotate64(v[1], 17) ^ v[2]
        v[2] = rotate64(v[2], 32)


cdef uint64_t siphash64(
    uint64_t k0, uint64_t k1, const uint8_t *p, Py_ssize_t size
) noexcept nogil:
    """SipHash-2-4 with 64 bits of output (Aumasson and Bernstein, 2012)."""
    cdef uint64_t v[4]
    cdef uint64_t word
    cdef Py_ssize_t left = size
    cdef int i
    v[0] = k0 ^ <uint64_t>0x736F6D6570736575
    v[1] = k1 ^ <uint64_t>0x646F72616E646F6D
    v[2] = k0 ^ <uint64_t>0x6C7967656E657261
    v[3] = k1 ^ <uint64_t>0x7465646279746573
    while True:
        word = <uint64_t>size << 56 if left < 8 else 0
        for i in range(<int>min(left, 8)):
            word |= <uint64_t>p[i] << (8 * i)
        v[3] ^= word
        tag_rounds(v, 2)
        v[0] ^= word
        if left < 8:
            break
        p += 8
        left -= 8
    v[2] ^= 0xFF
    tag_rounds(v, 4)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


cdef inline void write_tag(
    const Rules *rules, const uint8_t *minted, Py_ssize_t size, uint8_t *to
) noexcept nogil:
    """The characters by which an id of ours is known."""
    cdef uint64_t word = siphash64(rules.tag0, rules.tag1, minted, size)
    cdef uint8_t raw[9]
    cdef uint8_t text[12]
    cdef int i
    for i in range(8):
        raw[i] = word >> (8 * i) & 0xFF
    raw[8] = 0
    for i in range(3):
        base64(text + 4 * i, raw[3 * i] << 16 | raw[3 * i + 1] << 8 | raw[3 * i + 2])
    memcpy(to, text, TAG)


cdef bint is_tagged(
    const Rules *rules, int kind, const uint8_t *p, Py_ssize_t size
) noexcept nogil:
    """Whether a value begins with an id that has the right tag, as its kind has it."""
    cdef uint8_t tag[TAG]
    if kind == MARK:
        if size != MARK_SIZE:
            return False
    elif size < MARK_SIZE + 2 or p[MARK_SIZE] != c'.':
        return False
    write_tag(rules, p, MINTED, tag)
    return memcmp(tag, p + MINTED, TAG) == 0


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

cdef inline bint is_blank(uint8_t c) noexcept nogil:
    """White space within a line."""
    return c == c' ' or c == c'\t'


cdef inline Text trimmed(const uint8_t *p, const uint8_t *end) noexcept nogil:
    """The text without the white space at its ends."""
    while p < end and is_blank(p[0]):
        p += 1
    while p < end and is_blank((end - 1)[0]):
        end -= 1
    return Text(p, end)


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
    cdef const uint8_t *start = p
    cdef const uint8_t *closed
    if p == NULL:
        return False
    while p < pieces.end and p[0] != separator:
        if p[0] == c'"' and not pieces.plain:
            closed = closing_quote(p, pieces.end)
            if closed == NULL:
                pieces.plain = True
            else:
                p = closed
        p += 1
    pieces.at = <const uint8_t *>NULL if p == pieces.end else p + 1
    piece[0] = trimmed(start, p)
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


cdef inline int line_ends(const uint8_t *p, const uint8_t *end) noexcept nogil:
    """Whether a line ends at p: PASS, 0 (not known yet), OTHER, or why it can neither end nor go
    on."""
    if p == end:
        return 0
    if p[0] > c' ' and p[0] != 0x7F:
        return OTHER
    if p[0] == c'\r':
        if end - p == 1:
            return 0
        return PASS if p[1] == c'\n' else BARE_CR
    if p[0] == c'\n':
        return BARE_LF
    if p[0] == c' ':
        return OTHER
    return CONTROL if p[0] else NUL


cdef inline const uint8_t *behind_empty_lines(
    const uint8_t *p, const uint8_t *end
) noexcept nogil:
    """Where the request line begins (RFC 9112, 2.2)."""
    while line_ends(p, end) == PASS:
        p += 2
    return p


cdef inline int read_name(Scan *head, const uint8_t *p, const Name *name) noexcept nogil:
    """Whether a line that starts at p is of this name: FIELD, a reason, or -1."""
    cdef const uint8_t *end = head.end
    cdef const uint8_t *name_end
    if name.size == 0 or end - p <= name.size or not is_name(p, name):
        return -1
    p += name.size
    name_end = p
    while p < end and is_blank(p[0]):
        p += 1
    if p < end and p[0] == c':':
        if p > name_end:
            return SPACE_BEFORE_COLON
        head.at = p
        return FIELD
    return NO_COLON if line_ends(p, end) == PASS else -1


cdef inline int read_line_start(
    Scan *head, const uint8_t *p, const Rules *rules
) noexcept nogil:
    """What begins at p: FIELD, SESSION_FIELD or one behind it (head.at at the colon), END_OF_HEAD,
    a reason, or -1 for nothing."""
    cdef int found, i
    if p == head.end:
        return -1
    if p[0] == c'\r':
        return END_OF_HEAD if line_ends(p, head.end) == PASS else -1
    if p[0] == c'\n':
        return BARE_LF
    if is_blank(p[0]):
        return FOLDED
    found = read_name(head, p, &rules.header)
    if found >= 0:
        return found
    for i in range(rules.fields):
        found = read_name(head, p, &rules.field[i])
        if found >= 0:
            head.field = i
            if found == FIELD:
                return SESSION_FIELD + i
            return SESSION_SPACE if found == SPACE_BEFORE_COLON else SESSION_NO_COLON
    return -1


cdef inline int next_field(Scan *head, const Rules *rules) noexcept nogil:
    """The next line of the header: FIELD; of one with session ids: SESSION_FIELD or one behind it;
    END_OF_HEAD; or the reason why there is none of them."""
    cdef const uint8_t *p = head.at
    cdef int found
    while True:
        p = sticky_next(head.base, p, head.end, &rules.probe)
        if p == head.end:
            return INCOMPLETE
        if p[0] == c'\n':
            found = read_line_start(head, p + 1, rules)
            if found >= 0:
                return found
        elif p[0] == 0 or p[0] == c'\r':
            found = line_ends(p, head.end)
            if found > 0:
                return found
        elif head.end - p > 1 and p[1] == c'\n':
            return BARE_LF
        p += 1


cdef inline void value_at(Pieces *value, const uint8_t *colon, const uint8_t *end) noexcept nogil:
    """The value behind this colon. The head is known to be complete."""
    value.at = colon + 1
    value.plain = False
    value.end = <const uint8_t *>memchr(colon, c'\r', end - colon)


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


cdef inline void feed_text(const Text *text, Sip *sip, Key *key) noexcept nogil:
    cdef const uint8_t *p = text.at
    while p < text.end:
        feed(sip, key, p[0])
        p += 1


cdef int read_bytes(const Rules *rules, const Values *found, Key *key) noexcept nogil:
    """The key is the value: trimmed, several lines joined by ', '."""
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
        feed_text(&text, &sip, key)
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
    const Rules *rules, int kind, const uint8_t *p, const uint8_t *end, bint encoded, Key *key
) noexcept nogil:
    """The key is this text, or the tagged id in it; False: there is none."""
    cdef Sip sip
    if p == end:
        return False
    if kind != PLAIN:
        if not is_tagged(rules, kind, p, end - p):
            return False
        end = p + MINTED
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


cdef inline const uint8_t *before(const uint8_t *p, const uint8_t *end, int byte) noexcept nogil:
    """Where the byte is, or the end."""
    cdef const uint8_t *found = <const uint8_t *>memchr(p, byte, end - p)
    return end if found == NULL else found


cdef Text target_at(const uint8_t *p, const uint8_t *end) noexcept nogil:
    """What stands between blanks behind the method, in the request line that starts at p."""
    end = before(p, end, c'\r')
    while p < end and is_blank(p[0]):
        p += 1
    while p < end and not is_blank(p[0]):
        p += 1
    while p < end and is_blank(p[0]):
        p += 1
    return Text(p, before(p, before(p, end, c' '), c'\t'))


cdef bint session_in_query(
    const Rules *rules, const Source *source, const Text *target, Key *key
) noexcept nogil:
    """Look for the parameter in the target of a request."""
    cdef const uint8_t *end = target.end
    cdef const uint8_t *p = before(target.at, end, c'?')
    cdef const uint8_t *name
    cdef const uint8_t *equals
    cdef const uint8_t *after
    cdef Py_ssize_t i
    if p == end:
        return False
    while True:
        p += 1
        after = before(p, end, c'&')
        # Only these two can begin a name that is the one.
        if p < after and (p[0] == source.name[0] or p[0] == c'%'):
            equals = before(p, after, c'=')
            if equals + 1 < after:
                name = p
                i = 0
                while name < equals and i < source.size:
                    if unquoted(&name, equals) != source.name[i]:
                        break
                    i += 1
                else:
                    if name == equals and i == source.size:
                        return session_from(rules, PLAIN, equals + 1, after, True, key)
        if after == end:
            return False
        p = after


cdef inline const uint8_t *behind_authority(const Text *target) noexcept nogil:
    """Where the path of a target begins, in absolute form, too (RFC 9112, 3.2.2)."""
    cdef const uint8_t *p = target.at
    cdef Text scheme
    if p == target.end or p[0] == c'/':
        return p
    scheme = Text(p, before(p, target.end, c':'))
    if not equals(&scheme, "http", 4) and not equals(&scheme, "https", 5):
        return p
    p = scheme.end
    if target.end - p < 3 or p[1] != c'/' or p[2] != c'/':
        return target.at
    p += 3
    return before(p, before(p, target.end, c'/'), c'?')


cdef bint session_in_path(
    const Rules *rules, const Source *source, const Text *target, Key *key
) noexcept nogil:
    """Look for what stands in the place of the id."""
    cdef const uint8_t *p = behind_authority(target)
    cdef const uint8_t *end = before(p, target.end, c'?')
    cdef const uint8_t *after
    if end - p < source.size or memcmp(p, source.name, source.size):
        return False
    p += source.size
    after = before(p, end, c'/')
    if end - after < source.behind_size or memcmp(after, source.behind, source.behind_size):
        return False
    return session_from_path(rules, p, after, key)


cdef bint session_from_path(
    const Rules *rules, const uint8_t *p, const uint8_t *end, Key *key
) noexcept nogil:
    """The key is this text, decoded; '+' is no space in a path."""
    cdef Sip sip
    if p == end:
        return False
    sip_start(&sip, rules.k0, rules.k1)
    key.words = 0
    while p < end:
        if p[0] == c'+':
            feed(&sip, key, c'+')
            p += 1
        else:
            feed(&sip, key, unquoted(&p, end))
    key.hash = sip_bytes_end(&sip)
    return True


cdef bint session_in_cookie(
    const Rules *rules, const Source *source, const uint8_t *start, const uint8_t *end, Key *key
) noexcept nogil:
    """Look for the cookie in the value of one line."""
    cdef Py_ssize_t size = source.size
    cdef const uint8_t *p = start
    cdef const uint8_t *name
    cdef Text text
    while True:
        name = sticky_find(p, end, source.name[0], source.name[size - 1], size)
        if name == NULL:
            return False
        p = name + 1
        if memcmp(name, source.name, size):
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
        if session_from(rules, source.kind, text.at, text.end, False, key):
            return True


cdef bint session_in_value(
    const Rules *rules, const Source *source, const Pieces *value, Key *key
) noexcept nogil:
    """The session id in one line."""
    cdef Text text
    if source.place == IN_COOKIE:
        return session_in_cookie(rules, source, value.at, value.end, key)
    text = trimmed(value.at, value.end)
    return session_from(rules, source.kind, text.at, text.end, False, key)


cdef struct Lines:  # those of one header with session ids
    int count
    const uint8_t *marks[MARKED]  # the colons of the first
    Scan head  # as it was at the last one that is marked


cdef bint session_in_lines(
    const Rules *rules, const Source *source, const Lines *lines, Key *key
) noexcept nogil:
    """The first session id in these lines: those that are marked, and those after them."""
    cdef Values values
    cdef Pieces value
    cdef int i
    for i in range(min(lines.count, MARKED)):
        value_at(&value, lines.marks[i], lines.head.end)
        if session_in_value(rules, source, &value, key):
            return True
    values.kind = SESSION_FIELD + source.field
    values.head = lines.head
    values.left = lines.count - MARKED
    while values.left > 0:
        next_value(&values, rules, &value)
        if session_in_value(rules, source, &value, key):
            return True
    return False


cdef bint find_session(
    const Rules *rules, const uint8_t *line, const uint8_t *end, const Lines *lines, Key *key
) noexcept nogil:
    """The session id of a request in the first source that has one.

    line: the request line. lines: those of each of the rules' fields."""
    cdef const Source *source
    cdef Text target
    cdef bint known = False, found
    cdef int i
    for i in range(rules.count):
        source = &rules.sources[i]
        if source.place == IN_QUERY or source.place == IN_PATH:
            if not known:
                target = target_at(line, end)
                known = True
            if source.place == IN_QUERY:
                found = session_in_query(rules, source, &target, key)
            else:
                found = session_in_path(rules, source, &target, key)
        else:
            found = lines[source.field].count and session_in_lines(
                rules, source, &lines[source.field], key
            )
        if found:
            key.source = i
            return True
    return False


# --- what several processes agree about ----------------------------------------------------------

@cython.final
cdef class Firsts:
    """To which slot clients without an id were sent in the last two seconds: the same for all
    processes that have this memory, whoever chooses first.

    A cell is one word, so that it is there as a whole or not at all: 36 bits of who it is, 18 of
    when that was in milliseconds, 10 of the slot. It is put there only in the place of what was
    seen there before (compare and swap). Four cells share a place; when all are taken, the oldest
    goes.

    Args:
        cells: a memoryview of memory that stays where it is: 32 bytes, or 2, 4, 8 ... times that.

    Raises:
        ValueError: it has another size.
    """

    cdef object cells
    cdef uint64_t *cell
    cdef uint64_t mask

    def __cinit__(self, cells):
        cdef Py_buffer shared
        PyObject_GetBuffer(cells, &shared, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE)
        PyBuffer_Release(&shared)  # see Router.follow
        if shared.len < 32 or shared.len & (shared.len - 1):
            raise ValueError("this takes 32 bytes of memory, or 2, 4, 8 ... times that")
        self.cells = cells
        self.cell = <uint64_t *>shared.buf
        self.mask = <uint64_t>shared.len // 32 - 1

    def agree(self, uint64_t who, uint64_t now, int slot):
        """Where a client goes, and since when.

        Args:
            who: 64 bits, as ``Router.who`` gives them.
            now: milliseconds, on a clock that all processes share.
            slot: where it goes unless that was chosen before; -1: only say whether it was.

        Returns:
            The slot and the time of the choice (18 bits); -1 and 0: there is none.
        """
        cdef uint64_t *place = self.cell + 4 * (who & self.mask)
        cdef uint64_t word, old, oldest
        cdef uint64_t fingerprint = who >> 28
        cdef uint64_t age
        cdef int i, at, _
        now &= 0x3FFFF
        for _ in range(8):  # others change it meanwhile, but not for ever
            old = oldest = 0
            at = 0
            for i in range(4):
                word = sticky_load(place + i)
                age = (now - (word >> 10)) & 0x3FFFF
                if age >= 0x20000:
                    age = 0  # by a clock that was read a little later
                if not word:
                    age = 0x40000
                elif word >> 28 == fingerprint:
                    if age < AGREED_FOR:
                        return <int>(word & 0x3FF), <int>(word >> 10 & 0x3FFFF)
                    age = 0x80000  # it must not be there twice
                if age > oldest or i == 0:
                    old, oldest, at = word, age, i
            if slot < 0:
                break
            word = fingerprint << 28 | now << 10 | <uint64_t>slot
            if sticky_swap(place + at, old, word):
                return slot, <int>now
        return -1, 0


# --- the head of a request -----------------------------------------------------------------------

cdef struct Request:
    const uint8_t *line
    const uint8_t *method_end
    const uint8_t *target
    const uint8_t *target_end
    const uint8_t *fields
    const uint8_t *end  # behind the empty line
    Text host
    int minor
    int64_t length
    bint has_host
    bint has_length
    bint chunked
    bint close
    bint keep_alive
    bint expects
    bint names_upgrade  # Connection does
    bint upgrade  # there is such a field
    bint websocket


cdef inline const uint8_t *run_of(
    int kind, const uint8_t *p, const uint8_t *end
) noexcept nogil:
    """Behind the bytes of this kind that stand at p."""
    while p < end and KINDS[p[0]] & kind:
        p += 1
    return p


cdef inline bint equals(const Text *text, const char *word, Py_ssize_t size) noexcept nogil:
    """Whether the text is this lower-case word, in any case."""
    cdef Py_ssize_t i
    if text.end - text.at != size:
        return False
    for i in range(size):
        if LOWER[text.at[i]] != <uint8_t>word[i]:
            return False
    return True


cdef inline bint lists(const Text *value, const char *word, Py_ssize_t size) noexcept nogil:
    """Whether a list, divided by commas, has this lower-case word in it."""
    cdef Pieces pieces = Pieces(value.at, value.end, True)
    cdef Text piece
    while next_piece(&pieces, c',', &piece):
        if equals(&piece, word, size):
            return True
    return False


cdef inline unsigned int known_place(const uint8_t *p, Py_ssize_t size) noexcept nogil:
    """Where the search for a name begins in KNOWN_AT."""
    cdef unsigned int first = p[0] | 0x20, middle = p[size >> 1] | 0x20, last = p[size - 1] | 0x20
    return (<unsigned int>size * 37 + first * 7 + middle * 59 + last * 19) & 0xFF


cdef inline int known(const uint8_t *p, const uint8_t *end) noexcept nogil:
    """Which of the KNOWN names this is, or UNKNOWN."""
    cdef Py_ssize_t size = end - p
    cdef unsigned int place = known_place(p, size)
    cdef int number
    while True:
        number = KNOWN_AT[place]
        if number == UNKNOWN:
            return UNKNOWN
        if KNOWN_AS[number].size == size and is_name(p, &KNOWN_AS[number]):
            return number
        place = (place + 1) & 0xFF


cdef inline bint is_reg_name(const uint8_t *p, const uint8_t *end) noexcept nogil:
    """RFC 3986, section 3.2.2; not empty."""
    if p == end:
        return False
    while True:
        p = run_of(IS_REG_NAME, p, end)
        if p == end:
            return True
        if p[0] != c'%' or end - p < 3 or hex_digit(p[1]) < 0 or hex_digit(p[2]) < 0:
            return False
        p += 3


cdef inline bint is_host(const uint8_t *p, const uint8_t *end, bint with_port) noexcept nogil:
    """Whether this is ``host [":" port]``; with_port: with a port that has a digit."""
    cdef uint32_t address[4]
    cdef const uint8_t *colon
    cdef int port = 0
    if p < end and p[0] == c'[':
        colon = before(p, end, c']')
        if colon == end or not parse_ipv6(p + 1, colon, address):
            return False
        colon += 1
    else:
        colon = before(p, end, c':')
        if not is_reg_name(p, colon):
            return False
    if colon == end:
        return not with_port
    if colon[0] != c':':
        return False
    p = colon + 1
    if p == end:
        return not with_port
    while p < end:
        if <uint8_t>(p[0] - c'0') > 9:
            return False
        port = port * 10 + (p[0] - c'0')
        if port > MAX_PORT:
            return False
        p += 1
    return True


cdef inline bint is_target(
    const uint8_t *method, const uint8_t *method_end, const uint8_t *p, const uint8_t *end
) noexcept nogil:
    """Whether the target has a form that this method may have (RFC 9112, section 3.2)."""
    cdef Py_ssize_t size = method_end - method
    if size == 7 and memcmp(method, b"CONNECT", 7) == 0:
        return is_host(p, end, True)
    if p[0] == c'/':
        return True
    if p[0] == c'*':
        return end - p == 1 and size == 7 and memcmp(method, b"OPTIONS", 7) == 0
    if end - p > 7 and equals_word(p, p + 4, "http", 4):
        p += 4
        if p[0] | 0x20 == c's':
            p += 1
        if end - p > 3 and p[0] == c':' and p[1] == c'/' and p[2] == c'/':
            p += 3
            end = before(p, before(p, end, c'?'), c'/')
            return is_host(p, end, False)
    return False


cdef inline int read_version(
    const uint8_t **at, const uint8_t *end, Request *request
) noexcept nogil:
    """PASS behind the end of the request line; ``at``: the version."""
    cdef const uint8_t *p = at[0]
    cdef const char *form = "HTTP/"
    cdef int i, found
    for i in range(8):
        found = line_ends(p + i, end)
        if found != OTHER:
            return NO_VERSION if found == PASS else found
        if i < 5:
            if p[i] != <uint8_t>form[i]:
                return NO_VERSION
        elif i == 6:
            if p[i] != c'.':
                return NO_VERSION
        elif <uint8_t>(p[i] - c'0') > 9:
            return NO_VERSION
    found = line_ends(p + 8, end)
    if found != PASS:
        return REQUEST_LINE if found == OTHER else found
    if p[5] != c'1':
        return OTHER_VERSION
    request.minor = p[7] != c'0'
    at[0] = p + 10
    return PASS


cdef int read_request_line(
    const uint8_t **at, const uint8_t *end, Request *request
) noexcept nogil:
    cdef const uint8_t *p = at[0]
    cdef int found
    request.line = p
    p = run_of(IS_TOKEN, p, end)
    if p - request.line > MAX_METHOD:
        return LONG_METHOD
    request.method_end = p
    found = line_ends(p, end)
    if found != OTHER:
        return REQUEST_LINE if found == PASS else found
    if p[0] != c' ' or p == request.line:
        return REQUEST_LINE
    request.target = p + 1
    p = run_of(IS_TARGET, p + 1, end)
    request.target_end = p
    found = line_ends(p, end)
    if found != OTHER:
        return REQUEST_LINE if found == PASS else found
    if p[0] != c' ':
        return BAD_TARGET
    if p == request.target:
        return REQUEST_LINE
    p += 1
    found = read_version(&p, end, request)
    if found != PASS:
        return found
    if not is_target(request.line, request.method_end, request.target, request.target_end):
        return BAD_TARGET
    at[0] = p
    return PASS


cdef inline int read_length(const Text *value, Request *request) noexcept nogil:
    cdef const uint8_t *p = value.at
    if request.has_length:
        return LENGTH_TWICE
    if request.chunked:
        return LENGTH_AND_CODING
    if not 1 <= value.end - p <= MAX_LENGTH_DIGITS:
        return BAD_LENGTH
    while p < value.end:
        if <uint8_t>(p[0] - c'0') > 9:
            return BAD_LENGTH
        request.length = request.length * 10 + (p[0] - c'0')
        p += 1
    request.has_length = True
    return PASS


cdef bint is_coding(const Text *coding) noexcept nogil:
    """Whether this is a name with parameters or without (RFC 9112, section 7)."""
    cdef Pieces pieces = Pieces(coding.at, coding.end, False)
    cdef Text piece
    cdef const uint8_t *p
    cdef bint first = True
    while next_piece(&pieces, c';', &piece):
        p = run_of(IS_TOKEN, piece.at, piece.end)
        if p == piece.at:
            return False
        if first:
            first = False
            if p != piece.end:
                return False
            continue
        piece = trimmed(p, piece.end)
        if piece.at == piece.end or piece.at[0] != c'=':
            return False
        piece = trimmed(piece.at + 1, piece.end)
        if piece.at == piece.end:
            return False
        if piece.at[0] == c'"':
            if closing_quote(piece.at, piece.end) != piece.end - 1:
                return False
        elif run_of(IS_TOKEN, piece.at, piece.end) != piece.end:
            return False
    return True


cdef int read_coding(const Text *value, Request *request) noexcept nogil:
    cdef Pieces pieces = Pieces(value.at, value.end, False)
    cdef Text piece
    cdef int others = 0
    if request.minor == 0:
        return OLD_CODING
    if request.chunked:
        return CODING_TWICE
    if request.has_length:
        return LENGTH_AND_CODING
    while next_piece(&pieces, c',', &piece):
        if request.chunked or not is_coding(&piece):
            return BAD_CODING
        if equals(&piece, "chunked", 7):
            request.chunked = True
        else:
            others += 1
    if not request.chunked:
        return BAD_CODING
    return OTHER_CODING if others else PASS


cdef inline int read_host(const Text *value, Request *request) noexcept nogil:
    if request.has_host:
        return HOST_TWICE
    if value.at < value.end and not is_host(value.at, value.end, False):
        return BAD_HOST
    request.has_host = True
    request.host = value[0]
    return PASS


cdef inline int read_field(int name, const Text *value, Request *request) noexcept nogil:
    """What a field says about the request itself: PASS, or a reason."""
    if name == KNOWN_HOST:
        return read_host(value, request)
    if name == KNOWN_CONTENT_LENGTH:
        return read_length(value, request)
    if name == KNOWN_TRANSFER_ENCODING:
        return read_coding(value, request)
    if name == KNOWN_CONNECTION:
        request.close |= lists(value, "close", 5)
        request.keep_alive |= lists(value, "keep-alive", 10)
        request.names_upgrade |= lists(value, "upgrade", 7)
    elif name == KNOWN_EXPECT:
        request.expects |= lists(value, "100-continue", 12)
    elif name == KNOWN_UPGRADE:
        request.upgrade |= value.at < value.end
        request.websocket |= lists(value, "websocket", 9)
    return PASS


cdef inline int read_field_line(
    const uint8_t **at, const uint8_t *end, Request *request
) noexcept nogil:
    """PASS behind the end of the line that begins at ``at``, 0, or a reason."""
    cdef const uint8_t *start = at[0]
    cdef const uint8_t *p
    cdef const uint8_t *colon
    cdef Text value
    cdef int found, name
    colon = run_of(IS_TOKEN, start, end)
    if colon == end:
        return 0
    if is_blank(colon[0]):
        return FOLDED if colon == start else NAME_SPACE
    if colon[0] != c':' or colon == start:
        found = line_ends(colon, end)
        if found == OTHER:
            return BAD_NAME
        return LINE_WITHOUT_COLON if found == PASS else found
    p = sticky_text_end(colon + 1, end)
    found = line_ends(p, end)
    if found != PASS:
        return found
    name = known(start, colon)
    if 0 <= name <= KNOWN_UPGRADE:
        value = trimmed(colon + 1, p)
        found = read_field(name, &value, request)
        if found != PASS:
            return found
    at[0] = p + 2
    return PASS


cdef int read_head(const uint8_t *p, const uint8_t *end, Request *request) noexcept nogil:
    """PASS with a complete head, 0 while there is nothing wrong, or a reason."""
    cdef int found
    memset(request, 0, sizeof(Request))
    p = behind_empty_lines(p, end)
    found = read_request_line(&p, end, request)
    request.fields = p
    while found == PASS:
        if line_ends(p, end) == PASS:
            request.end = p + 2
            return PASS if request.has_host or request.minor == 0 else NO_HOST
        found = read_field_line(&p, end, request)
    return found


# --- the decision --------------------------------------------------------------------------------

cdef int decide(
    const Rules *rules, const uint8_t *data, Py_ssize_t length, Key *key
) noexcept nogil:
    """Why the request goes where it goes. Up to LAST_KEY the key is made, but for BY_PEER."""
    cdef const uint8_t *end = data + length
    cdef Scan head
    cdef Values values
    cdef Lines sessions[MAX_SOURCES]
    cdef Lines *session
    cdef int lines = 0, found, i
    key.source = 0
    data = behind_empty_lines(data, end)
    if data < end and data[0] == c'\n':
        return BARE_LF
    for i in range(rules.fields):
        sessions[i].count = 0
    head.base = head.at = data
    head.end = end
    while True:
        found = next_field(&head, rules)
        if found == FIELD:
            if lines == 0:
                values.kind = FIELD
                values.at = head.at
                values.head = head
            lines += 1
        elif found >= SESSION_FIELD:
            session = &sessions[found - SESSION_FIELD]
            if session.count < MARKED:
                session.marks[session.count] = head.at
                session.head = head
            session.count += 1
        else:
            break
    if found != END_OF_HEAD:
        if found == SESSION_SPACE or found == SESSION_NO_COLON:
            while (
                rules.sources[key.source].place < IN_HEADER
                or rules.sources[key.source].place > IN_COOKIE
                or rules.sources[key.source].field != head.field
            ):
                key.source += 1
        return found
    if rules.count:
        if find_session(rules, data, end, sessions, key):
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
        session: where session ids are looked for, before any address and in this order: of
            ``b"query:NAME"``, ``b"header:NAME"``, ``b"cookie:NAME"``, ``b"path:/PATH/{id}/"`` and
            ``b"mark:NAME"`` (a cookie with a tagged id) one, or a tuple of at most 4.
        affix: the values in headers and cookies begin with a tagged id; others have none.
        anywhere: where there is no session id, do not ask for the address but say ANYWHERE.

    Raises:
        ValueError: one of them is out of its range.
    """

    cdef Rules rules
    cdef bint looks
    cdef bint ignore_missing_header
    cdef bytes header
    cdef tuple sources
    cdef list names
    cdef object cells
    cdef const uint64_t *cell  # in them: the number of slots, where others may change it

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
        affix=False,
        anywhere=False,
    ):
        constants.check_router(
            n, seed, header, hops, ipv4_prefix, ipv6_prefix, session, bool(anywhere)
        )
        self.header = header.lower()
        self.names = []
        self.sources = constants.sources_of(session, affix)
        self.rules.proxy = proxy
        self.rules.anywhere = anywhere
        self.looks = proxy or bool(self.sources)
        self.ignore_missing_header = ignore_missing_header
        self.rules.n = n
        self.cell = NULL
        self.rules.k0 = int.from_bytes(seed[:4], "little")
        self.rules.k1 = int.from_bytes(seed[4:], "little")
        key = [siphash(seed, label) for label in constants.TAG_LABELS]
        self.rules.tag0 = key[0] | key[1] << 32
        self.rules.tag1 = key[2] | key[3] << 32
        self.rules.hops = hops
        self.rules.ipv4_prefix = ipv4_prefix
        self.rules.ipv6_prefix = ipv6_prefix
        self.rules.forwarded = self.header == b"forwarded"
        if proxy:
            self.rules.header = self.name_of(self.header)
            self.rules.probe.first = self.header[0] | 0x20
            self.rules.probe.probe_at = min(len(self.header), 16) - 1
            self.rules.probe.probe = self.header[self.rules.probe.probe_at] | 0x20
        self.look_for()

    cdef int look_for(self) except -1:
        """The sources, as the leaves read them."""
        cdef bytes name, behind
        cdef Source *source
        cdef list fields = [], letters = []
        self.rules.count = len(self.sources)
        for number, (place, name, kind) in enumerate(self.sources):
            source = &self.rules.sources[number]
            source.place = place
            source.kind = kind
            behind = b""
            if place == IN_PATH:
                name, _, behind = name.partition(constants.ID_IN_PATH)
            source.name = self.keep(name)
            source.size = PyBytes_GET_SIZE(name)
            source.behind = self.keep(behind)
            source.behind_size = PyBytes_GET_SIZE(behind)
            name = self.sources[number].field
            if not name:
                continue
            if name not in fields:
                self.rules.field[len(fields)] = self.name_of(name)
                fields.append(name)
            source.field = fields.index(name)
            if name[0] | 0x20 not in letters:
                letters.append(name[0] | 0x20)
        self.rules.fields = len(fields)
        self.rules.probe.count = len(letters)
        for number, letter in enumerate(letters):
            self.rules.probe.others[number] = letter
        return 0

    def follow(self, cells):
        """Read the number of slots from the first 8 bytes of this memory from now on, at each call:
        what several processes share changes for all of them at the same moment.

        Args:
            cells: a memoryview of at least 8 bytes, aligned, of memory that stays where it is.

        Raises:
            ValueError: it is too small, or followed already.
        """
        cdef Py_buffer shared
        if self.cell != NULL:
            raise ValueError("the number of slots is read from other memory already")
        PyObject_GetBuffer(cells, &shared, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE)
        # Not kept: at the interpreter's end a memoryview that is exported cannot be cleared.
        PyBuffer_Release(&shared)
        if shared.len < 8:
            raise ValueError("the number of slots takes 8 bytes")
        self.cells = cells
        self.cell = <const uint64_t *>shared.buf

    cdef inline int count(self) noexcept:
        """How many slots there are now."""
        if self.cell == NULL:
            return self.rules.n
        return <int>min(max(self.cell[0], 1), MAX_SLOTS)

    @property
    def n(self):
        """How many slots there are now."""
        return self.count()

    cdef const uint8_t *keep(self, bytes text) except NULL:
        """Where this text lies for as long as this object lives."""
        self.names.append(text)
        return <const uint8_t *>PyBytes_AS_STRING(text)

    cdef Name name_of(self, bytes name) except *:
        return Name(self.keep(name), self.keep(letters_of(name)), PyBytes_GET_SIZE(name))

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
            return pick_slot(key.hash, self.count())
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
                why, None if missing < 0 else missing, self.header, self.rules.hops, self.sources,
                key.source,
            )
            if why > LAST_KEY:
                return constants.verdict(why), b"", text
            slot = pick_slot(key.hash, self.count())
            if key.words:
                return slot, address_text(&key), text
            if why == BY_PEER:
                return slot, peer.encode(), text
            return slot, key.copy[:key.copied], text
        finally:
            free(key.copy)

    def find(self, data, Py_ssize_t length):
        """The session id of the request that starts ``data[:length]``: which of the sources has it,
        and the id; -1 and b"" where there is none.

        Raises what ``route`` does.
        """
        cdef Key key
        cdef int missing
        cdef const uint8_t *start = start_of(data, length)
        key.copy = <uint8_t *>malloc(max(length, 1))
        key.copied = 0
        if key.copy == NULL:
            raise MemoryError
        try:
            if self.decide(start, length, "", &key, &missing) != BY_SESSION:
                return -1, b""
            return key.source, key.copy[:key.copied]
        finally:
            free(key.copy)

    def who(self, data, Py_ssize_t length, str peer not None):
        """64 bits that tell a client from others by what it has without any id: the address by
        which it would be routed, and the value of its first User-Agent.

        Args:
            data, length: a whole head, as for ``route``.
            peer: stands in where the routing header gives no key.

        Raises what ``route`` does.
        """
        cdef Key key
        cdef Rules rules = self.rules
        cdef const uint8_t *start = start_of(data, length)
        cdef int why = ABSENT, i
        cdef Text agent
        cdef bytes text
        cdef uint8_t *to
        key.copy = NULL
        if rules.proxy:
            rules.count = rules.fields = rules.probe.count = 0
            rules.anywhere = False
            why = decide(&rules, start, length, &key)
        if why > LAST_KEY:
            self.key_from_peer(peer, &key)
        agent = agent_of(start, start + length)
        text = PyBytes_FromStringAndSize(NULL, 4 + (agent.end - agent.at))
        to = <uint8_t *>PyBytes_AS_STRING(text)
        for i in range(4):
            to[i] = key.hash >> (8 * i) & 0xFF
        memcpy(to + 4, agent.at, agent.end - agent.at)
        return siphash64(rules.tag0, rules.tag1, to, PyBytes_GET_SIZE(text))

    def tag(self, bytes minted not None):
        """The 11 characters by which an id of ours is known."""
        cdef uint8_t text[TAG]
        write_tag(
            &self.rules,
            <const uint8_t *>PyBytes_AS_STRING(minted),
            PyBytes_GET_SIZE(minted),
            text,
        )
        return (<char *>text)[:TAG]

    def tagged_id(self, bytes value not None, int kind):
        """The id in a value of this kind (``rules.MARK``, ``rules.AFFIX``), if it has the right
        tag; else b""."""
        return self.tagged(value, kind)

    def random(self, bytes text not None):
        """15 bytes for ``mint`` that are the same for the same text, and that nobody can predict
        who does not know the seed."""
        cdef bytes labelled, made = b""
        cdef int number
        for number in range(2):
            labelled = bytes([number]) + text
            made += siphash64(
                self.rules.tag0,
                self.rules.tag1,
                <const uint8_t *>PyBytes_AS_STRING(labelled),
                PyBytes_GET_SIZE(labelled),
            ).to_bytes(8, "little")
        return made[:RANDOM_BYTES]

    def strip(self, Head head not None):
        """Take out of a head what is ours: marks, also those of another server or none, by what
        they look like; and affixes with the right tag.

        Returns:
            For each source the tagged id that the request has there, or b"".
        """
        cdef Py_ssize_t size = PyBytes_GET_SIZE(head.lines)
        cdef bytes made = PyBytes_FromStringAndSize(NULL, size)
        cdef const uint8_t *lines = <const uint8_t *>PyBytes_AS_STRING(head.lines)
        cdef uint8_t *to = <uint8_t *>PyBytes_AS_STRING(made)
        cdef Text ids[MAX_SOURCES]
        cdef Py_ssize_t left
        cdef int i
        memset(ids, 0, sizeof(ids))
        left = strip_lines(&self.rules, lines, lines + size, to, ids)
        # Before the lines go, in which they lie.
        found = [b"" if ids[i].at == NULL else bytes_of(&ids[i]) for i in range(self.rules.count)]
        if left < size:
            head.lines = made[:left]
        return tuple(found)

    cdef bytes tagged(self, bytes value, int kind):
        """The id in a value that has the right tag, or b""."""
        cdef const uint8_t *text = <const uint8_t *>PyBytes_AS_STRING(value)
        if is_tagged(&self.rules, kind, text, PyBytes_GET_SIZE(value)):
            return value[:MINTED]
        return b""

    def owner(self, bytes session not None, int n=0):
        """The slot that requests with this session id go to; among ``n`` slots, if it is given."""
        cdef Sip sip
        cdef Py_ssize_t i
        cdef const uint8_t *text = <const uint8_t *>PyBytes_AS_STRING(session)
        sip_start(&sip, self.rules.k0, self.rules.k1)
        for i in range(PyBytes_GET_SIZE(session)):
            sip_byte(&sip, text[i])
        return pick_slot(sip_bytes_end(&sip), min(n, MAX_SLOTS) if n > 0 else self.count())

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
        cdef int n = self.count()
        if not 0 <= slot < n:
            raise ValueError(f"slot must be 0 to {n - 1}, not {slot}")
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
            if is_picked(sip_bytes_end(&sip), slot, n):
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


@cython.final
@cython.freelist(16)
cdef class Head:
    """The head of a request, read and found to be in order. ``parse`` makes them.

    Attributes:
        end: where it ends in the data: behind the empty line.
        method: as it was sent.
        target: as it was sent, in any of the four forms of RFC 9112, section 3.2.
        minor: 1, or 0 for HTTP/1.0. Later versions of HTTP/1 count as 1 (RFC 9110, 2.5).
        length: bytes of the body, or ``rules.CHUNKED``.
        keep_alive: whether the client allows another request on its connection.
        expects: whether it waits for a 100 (Continue).
        upgrade: whether it offers another protocol: an Upgrade field that is not empty and that
            Connection names.
        websocket: whether that is a WebSocket, as RFC 6455 opens one: with GET, without a body.
        host: the value of Host; b"" without one.
    """

    cdef readonly Py_ssize_t end
    cdef readonly str method
    cdef readonly bytes target
    cdef readonly int minor
    cdef readonly int64_t length
    cdef readonly bint keep_alive
    cdef readonly bint expects
    cdef readonly bint upgrade
    cdef readonly bint websocket
    cdef readonly bytes host
    cdef bytes lines  # the field lines, without the empty one

    def __cinit__(self):
        self.lines = b""

    def __init__(self):
        raise TypeError("a Head is made by parse")

    def fields(self):
        """The fields in their order: (name in lower case, value).

        Several Cookie fields are one, joined by b"; ", in the place of the first
        (RFC 9113, section 8.2.3).
        """
        cdef const uint8_t *p = <const uint8_t *>PyBytes_AS_STRING(self.lines)
        cdef const uint8_t *end = p + PyBytes_GET_SIZE(self.lines)
        cdef Text name, text
        cdef bytes value
        cdef list found = [], cookies = []
        cdef Py_ssize_t cookie_at = 0
        cdef int number
        while p < end:
            number = next_line(&p, end, &name, &text)
            value = bytes_of(&text)
            if number == KNOWN_COOKIE:
                cookies.append(value)
                if len(cookies) > 1:
                    continue
                cookie_at = len(found)
            found.append((lower_name(&name) if number == UNKNOWN else NAMES[number], value))
        if len(cookies) > 1:
            found[cookie_at] = (NAMES[KNOWN_COOKIE], b"; ".join(cookies))
        return found

    def environ(self, dict into not None):
        """Put the fields into a WSGI environ (PEP 3333): HTTP_*, CONTENT_TYPE, CONTENT_LENGTH.

        Several fields of one name are joined by a comma, Cookie by "; ". Names with an underscore
        are left out: they would meet those with a hyphen.
        """
        cdef const uint8_t *p = <const uint8_t *>PyBytes_AS_STRING(self.lines)
        cdef const uint8_t *end = p + PyBytes_GET_SIZE(self.lines)
        cdef Text name, text
        cdef str key, value
        cdef dict several = {}
        cdef set others = set()
        cdef uint64_t met = 0
        cdef bint again
        cdef int number
        while p < end:
            number = next_line(&p, end, &name, &text)
            if number != UNKNOWN:
                key = ENVIRON_NAMES[number]
                again = met >> number & 1
                met |= <uint64_t>1 << number
            elif memchr(name.at, c'_', name.end - name.at) != NULL:
                continue
            else:
                key = environ_name(&name)
                again = key in others
                others.add(key)
            value = PyUnicode_DecodeLatin1(<const char *>text.at, text.end - text.at, NULL)
            if not again:
                into[key] = value
            elif key in several:
                (<list>several[key]).append(value)
            else:
                several[key] = [into[key], value]
        for key, values in several.items():
            into[key] = ("; " if key == "HTTP_COOKIE" else ",").join(values)


cdef bint is_like_mark(const Text *text) noexcept nogil:
    cdef const uint8_t *p = text.at
    if text.end - p != MARK_SIZE:
        return False
    while p < text.end:
        if not KINDS[p[0]] & IS_BASE64:
            return False
        p += 1
    return True


cdef inline uint8_t *copied(const uint8_t *p, const uint8_t *end, uint8_t *to) noexcept nogil:
    """Behind a copy of this text."""
    memcpy(to, p, end - p)
    return to + (end - p)


cdef inline bint take_id(
    const Rules *rules, int at, const Text *value, Text *ids
) noexcept nogil:
    """Whether a value has a tagged id, which is kept if it is the first of its source."""
    if not is_tagged(rules, rules.sources[at].kind, value.at, value.end - value.at):
        return False
    if ids[at].at == NULL:
        ids[at] = Text(value.at, value.at + MINTED)
    return True


cdef uint8_t *strip_cookies(
    const Rules *rules, const Text *value, uint8_t *to, Text *ids, bint *changed
) noexcept nogil:
    """Copy the value of a Cookie field without what is ours. Returns the end of the copy."""
    cdef const uint8_t *p = value.at
    cdef const uint8_t *stop
    cdef const uint8_t *equal
    cdef uint8_t *start = to
    cdef Text name, text
    cdef const Source *source
    cdef bint kept, some = False
    cdef int i
    while True:
        stop = before(p, value.end, c';')
        equal = before(p, stop, c'=')
        name = trimmed(p, equal)
        kept = True
        text = Text(stop, stop)
        if equal < stop:
            for i in range(rules.count):
                source = &rules.sources[i]
                if (
                    source.place != IN_COOKIE
                    or source.kind == PLAIN
                    or name.end - name.at != source.size
                    or memcmp(name.at, source.name, source.size)
                ):
                    continue
                text = trimmed(equal + 1, stop)
                if text.end - text.at > 1 and text.at[0] == c'"' and (text.end - 1)[0] == c'"':
                    text = Text(text.at + 1, text.end - 1)
                if source.kind == MARK:
                    kept = not is_like_mark(&text)
                    if not kept:
                        take_id(rules, i, &text, ids)
                    text.at = text.end = stop
                elif take_id(rules, i, &text, ids):
                    text.at += MARK_SIZE + 1
                else:
                    text.at = text.end = stop
                break
        if kept:
            if some:
                to[0] = c';'
                to += 1
            elif changed[0]:  # what was before it is gone, and this may begin with white space
                while p < stop and is_blank(p[0]):
                    p += 1
            some = True
            if text.at < text.end:
                to = copied(text.at, text.end, copied(p, equal + 1, to))
                changed[0] = True
            else:
                to = copied(p, stop, to)
        else:
            changed[0] = True
        if stop == value.end:
            break
        p = stop + 1
    if changed[0]:
        while to > start and is_blank((to - 1)[0]):
            to -= 1
    return to


cdef Py_ssize_t strip_lines(
    const Rules *rules, const uint8_t *p, const uint8_t *end, uint8_t *to, Text *ids
) noexcept nogil:
    """Copy the lines of a head without what is ours. Returns the size of the copy; as long as the
    lines are it is they."""
    cdef uint8_t *start = to
    cdef uint8_t *value_start
    cdef const uint8_t *line
    cdef Text name, text
    cdef const Source *source
    cdef bint changed
    cdef int number, i
    while p < end:
        line = p
        number = next_line(&p, end, &name, &text)
        changed = False
        if number == KNOWN_COOKIE:
            value_start = copied(name.at, name.end, to)
            value_start[0] = c':'
            value_start += 1
            to = strip_cookies(rules, &text, value_start, ids, &changed)
            if changed:
                if to == value_start:  # there is nothing left
                    to = value_start - 1 - (name.end - name.at)
                    continue
                to[0] = c'\r'
                to[1] = c'\n'
                to += 2
                continue
            to = value_start - 1 - (name.end - name.at)
        else:
            for i in range(rules.count):
                source = &rules.sources[i]
                if (
                    source.place == IN_HEADER
                    and source.kind == AFFIX
                    and name.end - name.at == source.size
                    and is_name(name.at, &rules.field[source.field])
                    and take_id(rules, i, &text, ids)
                ):
                    to = copied(name.at, name.end, to)
                    to[0] = c':'
                    to = copied(text.at + MARK_SIZE + 1, p, to + 1)
                    changed = True
                    break
            if changed:
                continue
        to = copied(line, p, to)
    return to - start


cdef Text agent_of(const uint8_t *p, const uint8_t *end) noexcept nogil:
    """The value of the first User-Agent in a complete head."""
    cdef const Name *name = &KNOWN_AS[KNOWN_USER_AGENT]
    cdef const uint8_t *colon
    p = behind_empty_lines(p, end)
    while True:
        p = <const uint8_t *>memchr(p, c'\n', end - p)
        if p == NULL or end - p <= name.size + 1 or p[1] == c'\r':
            return Text(end, end)
        p += 1
        colon = p + name.size
        if colon[0] == c':' and is_name(p, name):
            return trimmed(colon + 1, before(colon, end, c'\r'))


cdef inline int next_line(
    const uint8_t **at, const uint8_t *end, Text *name, Text *value
) noexcept nogil:
    """Read a field line that has been read before. Returns which of the KNOWN names it has."""
    cdef const uint8_t *colon = <const uint8_t *>memchr(at[0], c':', end - at[0])
    cdef const uint8_t *line_end = <const uint8_t *>memchr(colon, c'\r', end - colon)
    name[0] = Text(at[0], colon)
    value[0] = trimmed(colon + 1, line_end)
    at[0] = line_end + 2
    return known(name.at, colon)


cdef inline bytes bytes_of(const Text *text):
    return PyBytes_FromStringAndSize(<const char *>text.at, text.end - text.at)


cdef bytes lower_name(const Text *name):
    cdef bytes made = PyBytes_FromStringAndSize(NULL, name.end - name.at)
    cdef uint8_t *to = <uint8_t *>PyBytes_AS_STRING(made)
    cdef Py_ssize_t i
    for i in range(name.end - name.at):
        to[i] = LOWER[name.at[i]]
    return made


cdef str environ_name(const Text *name):
    cdef str made = PyUnicode_New(name.end - name.at + 5, 0x7F)
    cdef uint8_t *to = <uint8_t *>PyUnicode_DATA(made)
    cdef Py_ssize_t i
    memcpy(to, b"HTTP_", 5)
    for i in range(name.end - name.at):
        to[5 + i] = ENVIRON[name.at[i]]
    return made


cdef str method_of(const uint8_t *p, const uint8_t *end):
    if end - p == 3 and memcmp(p, b"GET", 3) == 0:
        return "GET"
    if end - p == 4 and memcmp(p, b"POST", 4) == 0:
        return "POST"
    return PyUnicode_DecodeASCII(<const char *>p, end - p, NULL)


def parse(data, Py_ssize_t start, Py_ssize_t limit):
    """The head of the request that begins at ``data[start:]``.

    Reads a head as RFC 9112 has it, and strictly: what readers could disagree about is refused.
    ``rules.status`` and ``rules.refusal`` say with what and why. The first thing that is wrong in
    the bytes is the reason; it is reported as soon as it is certain, whether the head is complete
    or not, and it stays the reason whatever comes after.

    Args:
        data: what has arrived. Nothing keeps it.
        start: where the request, or an empty line before it, begins.
        limit: how many bytes a head may have, empty lines before it included.

    Returns:
        A Head; 0 while the head is not complete; or why it is refused: an int above 0.

    Raises:
        TypeError: ``data`` is neither bytes nor a bytearray.
        ValueError: ``start`` is negative or exceeds ``data``, or ``limit`` is negative.
    """
    cdef Request request
    cdef Py_ssize_t size = 0
    cdef const uint8_t *base = whole(data, &size)
    cdef Py_ssize_t room
    cdef int found
    check_within("start", start, 0, size)
    if limit < 0:
        raise ValueError(f"limit must not be negative, but is {limit}")
    room = min(size - start, limit)
    found = read_head(base + start, base + start + room, &request)
    if found == 0:
        return TOO_LARGE if room == limit else 0
    if found != PASS:
        return found
    return head_of(&request, base)


cdef Head head_of(const Request *request, const uint8_t *base):
    cdef Head head = Head.__new__(Head)
    head.end = request.end - base
    head.method = method_of(request.line, request.method_end)
    head.target = (<char *>request.target)[:request.target_end - request.target]
    head.minor = request.minor
    head.length = CHUNKED if request.chunked else request.length
    head.keep_alive = not request.close and (request.minor or request.keep_alive)
    head.expects = request.expects and request.minor
    head.upgrade = request.upgrade and request.names_upgrade and request.minor
    head.websocket = (
        head.upgrade and request.websocket and head.length == 0 and head.method == "GET"
    )
    head.host = b"" if not request.has_host else bytes_of(&request.host)
    head.lines = (<char *>request.fields)[:request.end - 2 - request.fields]
    return head


def end_of_head(data, Py_ssize_t start, Py_ssize_t seen):
    """Whether ``parse`` has something to decide in what has arrived since it returned 0.

    Looks only at what is new, so that a head that comes byte by byte is read in linear time.

    Args:
        data: what has arrived.
        start: where the request begins, as for ``parse``.
        seen: up to where an earlier call of this or of ``parse`` looked; ``start`` at first.

    Returns:
        The index behind the first LF in ``data[max(start, seen):]`` that no CR stands before, or
        that ends an empty line behind one that is not empty: ``Head.end``, if it is a head. 0:
        there is none, and ``parse`` would find at most that the limit has been reached, or a byte
        that no head may have, which it will find later as well.

    Raises:
        TypeError: ``data`` is neither bytes nor a bytearray.
        ValueError: ``start`` or ``seen`` is negative or exceeds ``data``.
    """
    cdef Py_ssize_t size = 0
    cdef const uint8_t *base = whole(data, &size)
    check_within("start", start, 0, size)
    check_within("seen", seen, 0, size)
    return find_end(base, base + start, base + max(start, seen), base + size)


cdef Py_ssize_t find_end(
    const uint8_t *base, const uint8_t *start, const uint8_t *p, const uint8_t *end
) noexcept nogil:
    cdef const uint8_t *lf
    while True:
        lf = <const uint8_t *>memchr(p, c'\n', end - p)
        if lf == NULL:
            return 0
        p = lf + 1
        if lf == start or (lf - 1)[0] != c'\r':
            return p - base
        if lf - start >= 4 and memcmp(lf - 3, b"\r\n\r", 3) == 0 and (lf - 4)[0] != c'\n':
            return p - base


# --- chunked bodies ------------------------------------------------------------------------------

class ChunkError(ValueError):
    """A chunked body is malformed. Its text is for people."""


@cython.final
cdef class Chunks:
    """The chunked body of one request (RFC 9112, section 7.1), as it arrives.

    Strict: CRLF alone ends a line, a size is 1 to 16 hexadecimal digits below 2**62, extensions and
    trailers have to be in order, and are dropped. A line with a size may have 4096 bytes, all
    trailers 16384, and all extensions 16384 more than there has been payload. Every byte is
    looked at once, however they are cut.

    Attributes:
        over: whether the end of the body has been read.
    """

    cdef int at
    cdef int digits  # of the size that is being read
    cdef int line  # bytes of the line with it
    cdef int trailers  # bytes of all trailers
    cdef uint64_t left  # payload of the chunk that is to come
    cdef int64_t spare  # bytes that extensions may still have

    def __cinit__(self):
        self.at = AT_CHUNK
        self.spare = MAX_EXTENSIONS

    @property
    def over(self):
        return self.at == AT_END

    def feed(self, data, Py_ssize_t start, Py_ssize_t end):
        """Read ``data[start:end]``, or as much of it as belongs to the body.

        Returns:
            Up to where it has been read, as an index of ``data``, and the payload in it.

        Raises:
            ChunkError: the body is malformed; nothing can be read from it any more.
            TypeError: ``data`` is neither bytes nor a bytearray.
            ValueError: ``start`` and ``end`` do not lie within ``data``, in this order.
        """
        cdef Py_ssize_t size = 0
        cdef const uint8_t *base = whole(data, &size)
        cdef const uint8_t *p
        cdef const uint8_t *stop
        cdef const uint8_t *piece = NULL  # the first, while it is the only one
        cdef Py_ssize_t piece_size = 0, made_size = 0, count
        cdef bytes made = None
        check_within("end", end, 0, size)
        check_within("start", start, 0, end)
        p = base + start
        stop = base + end
        while p < stop and self.at != AT_END:
            if self.at != AT_DATA:
                if not self.step(p[0]):
                    self.refuse(p[0])
                p += 1
                continue
            count = <Py_ssize_t>min(self.left, <uint64_t>(stop - p))
            if piece == NULL:
                piece = p
                piece_size = count
            else:
                if made is None:
                    made = PyBytes_FromStringAndSize(NULL, piece_size + (stop - p))
                    memcpy(PyBytes_AS_STRING(made), piece, piece_size)
                    made_size = piece_size
                memcpy(PyBytes_AS_STRING(made) + made_size, p, count)
                made_size += count
            self.take(count)
            p += count
        if made is None:
            return p - base, b"" if piece == NULL else (<char *>piece)[:piece_size]
        return p - base, made[:made_size]

    cdef inline void take(self, Py_ssize_t count) noexcept:
        self.left -= count
        self.spare += count
        if self.left == 0:
            self.at = AT_DATA_END

    cdef inline bint step(self, uint8_t byte) noexcept:
        """Go on by a byte that is no payload; False: it has no place here, or is one too many."""
        cdef int at = CHUNK_STEPS[self.at][byte]
        if at == AT_ERROR:
            return False
        if at == AT_SIZE:
            if self.at == AT_CHUNK:
                self.digits = self.line = 0
                self.left = 0
            self.digits += 1
            self.line += 1
            if self.digits > MAX_SIZE_DIGITS:
                return False
            self.left = self.left << 4 | <uint64_t>hex_digit(byte)
            if self.left >= MAX_CHUNK:
                return False
        elif AT_SPACE <= at <= AT_QUOTED_END:
            self.line += 1
            self.spare -= 1
            if self.line > MAX_CHUNK_LINE or self.spare < 0:
                return False
        elif at == AT_DATA and self.left == 0:
            at = AT_TRAILER
        elif self.at >= AT_TRAILER:
            self.trailers += 1
            if self.trailers > MAX_TRAILERS:
                return False
        self.at = at
        return True

    cdef int refuse(self, uint8_t byte) except -1:
        cdef int at = self.at, to = CHUNK_STEPS[at][byte]
        self.at = AT_ERROR
        if to == AT_SIZE:
            raise ChunkError(constants.LONG_SIZE)
        if to == AT_ERROR:
            raise ChunkError(constants.CHUNK_ERRORS[at])
        raise ChunkError(
            constants.LONG_EXTENSIONS if to <= AT_QUOTED_END else constants.LONG_TRAILERS
        )


# --- small things --------------------------------------------------------------------------------

cdef inline void base64(uint8_t *to, uint32_t three) noexcept nogil:
    """Four characters for three bytes (RFC 4648, section 5)."""
    cdef const char *alphabet = (
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    )
    cdef int i
    for i in range(4):
        to[i] = alphabet[three >> (18 - 6 * i) & 63]


cdef bytes letters_of(bytes name):
    return bytes([0x20 if letter in b"abcdefghijklmnopqrstuvwxyz" else 0 for letter in name])


cdef inline const uint8_t *whole(object data, Py_ssize_t *size) except NULL:
    """Where the data lies, once it is known to be of the right type."""
    if PyBytes_Check(data):
        size[0] = PyBytes_GET_SIZE(data)
        return <const uint8_t *>PyBytes_AS_STRING(data)
    if PyByteArray_Check(data):
        size[0] = PyByteArray_GET_SIZE(data)
        return <const uint8_t *>PyByteArray_AS_STRING(data)
    raise TypeError(f"data must be bytes or bytearray, not {type(data).__name__}")


cdef inline int check_within(str name, Py_ssize_t value, Py_ssize_t low, Py_ssize_t high) except -1:
    if not low <= value <= high:
        raise ValueError(f"{name} must be {low} to {high}, not {value}")
    return 0


cdef inline const uint8_t *start_of(object data, Py_ssize_t length) except NULL:
    """Where the data lies, once it is known to be of the right type and long enough."""
    cdef Py_ssize_t size = 0
    cdef const uint8_t *start = whole(data, &size)
    check_within("length", length, 0, size)
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


def siphash_2_4(bytes key16 not None, bytes data not None):
    """SipHash-2-4 of ``data`` with 64 bits of output (Aumasson and Bernstein, 2012).

    Args:
        key16: 16 bytes.
        data: any bytes.

    Raises:
        ValueError: the key is not exactly 16 bytes.
    """
    if len(key16) != 16:
        raise ValueError(f"key16 must be exactly 16 bytes, not {len(key16)}")
    return siphash64(
        int.from_bytes(key16[:8], "little"),
        int.from_bytes(key16[8:], "little"),
        <const uint8_t *>PyBytes_AS_STRING(data),
        PyBytes_GET_SIZE(data),
    )


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

AGREED = {
    "MAX_SLOTS": MAX_SLOTS,
    "MAX_ADDRESS": MAX_ADDRESS,
    "RANDOM_BYTES": RANDOM_BYTES,
    "MINTED": MINTED,
    "TAG": TAG,
    "MARK_SIZE": MARK_SIZE,
    "MAX_SOURCES": MAX_SOURCES,
    "AGREED_FOR": AGREED_FOR,
    "MAX_METHOD": MAX_METHOD,
    "MAX_LENGTH_DIGITS": MAX_LENGTH_DIGITS,
    "MAX_PORT": MAX_PORT,
    "MAX_SIZE_DIGITS": MAX_SIZE_DIGITS,
    "MAX_CHUNK_LINE": MAX_CHUNK_LINE,
    "MAX_EXTENSIONS": MAX_EXTENSIONS,
    "MAX_TRAILERS": MAX_TRAILERS,
    "AT_CHUNK": AT_CHUNK,
    "AT_SIZE": AT_SIZE,
    "AT_SPACE": AT_SPACE,
    "AT_QUOTED_END": AT_QUOTED_END,
    "AT_DATA": AT_DATA,
    "AT_DATA_END": AT_DATA_END,
    "AT_TRAILER": AT_TRAILER,
    "AT_END": AT_END,
    "AT_ERROR": AT_ERROR,
}
if (
    len(constants.KNOWN_NAMES) != KNOWN
    or constants.KNOWN_NAMES[KNOWN_USER_AGENT] != b"user-agent"
    or any(getattr(constants, name) != value for name, value in AGREED.items())
):
    raise ImportError("sticky._core was built for other constants than sticky.rules has")


cdef fill_tables():
    cdef int number
    cdef unsigned int place
    cdef bytes name, letters
    for number in range(MAX_SLOTS):
        SLOT_SALTS[number] = constants.SLOT_SALTS[number]
    for number in range(256):
        LOWER[number] = bytes([number]).lower()[0]
        ENVIRON[number] = bytes([number]).upper().replace(b"-", b"_")[0]
        KINDS[number] = (
            IS_TOKEN * (number in constants.TOKEN)
            | IS_TARGET * (number in constants.TARGET)
            | IS_REG_NAME * (number in constants.REG_NAME)
            | IS_BASE64 * (number in constants.IN_BASE64)
        )
        KNOWN_AT[number] = UNKNOWN
    memcpy(CHUNK_STEPS, PyBytes_AS_STRING(constants.CHUNK_STEPS), sizeof(CHUNK_STEPS))
    for number in range(KNOWN):
        name = NAMES[number]
        letters = letters_of(name)
        LETTERS.append(letters)
        KNOWN_AS[number] = Name(
            <const uint8_t *>PyBytes_AS_STRING(name),
            <const uint8_t *>PyBytes_AS_STRING(letters),
            PyBytes_GET_SIZE(name),
        )
        place = known_place(KNOWN_AS[number].text, KNOWN_AS[number].size)
        while KNOWN_AT[place] != UNKNOWN:
            place = (place + 1) & 0xFF
        KNOWN_AT[place] = number


fill_tables()
