"""Texts that say nearly the same: one key for spelling variants, embedding neighbours beyond it.

The key looks past case, punctuation, spacing, full-width letters and English contractions, so that
"What's my card limit?" and "what is my card-limit" are one text. Beyond it a pair counts where its
spelling is alike, no word stands for another one, and its embeddings are neighbours: spelling
alone cannot tell a typing error from another question out of one template ("... to seattle",
"... to japan").
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from rapidfuzz import fuzz, process

from tasks.near import Near
from tasks.progress import Callback

# The bounds were set on one half of CLINC150's intents; benchmarks/leaks.py judges them by the
# other.
ALIKE = 96.0  # per cent: normalised indel similarity of the words, as they come or sorted
NEARLY = 86.0  # per cent: enough where the embeddings are almost one
ALMOST_ONE = 0.99  # cosine
NEIGHBOURS = 5  # a text's nearest in the support set, by embedding
_SAME_WORD = 60.0  # per cent: a typing error or another form of the word
_TYPING_ERROR = 80.0  # per cent: enough of one word of four letters or more, all others the same
_OTHER_WORDS = 50  # one word in so many may stand for another one: a date in a long report

_MOST_LETTERS = 1000  # of a text that are compared beyond the key
_ROWS_AT_ONCE = 256  # of the first side: bounds the table of similarities

# embed(texts) -> float (N, D), rows of length one
Embed = Callable[[Sequence[str]], np.ndarray]

_APOSTROPHES = dict.fromkeys(map(ord, "'`\u2018\u2019\u02bc\u00b4"))
_SUBJECTS = ("i", "you", "he", "she", "it", "we", "they", "that", "there", "what", "who")
_ASKING = ("where", "how", "when", "why", "here")
_VERBS: dict[str, tuple[str, tuple[str, ...]]] = {  # ending: verb, and the words it leans on
    "s": ("is", _SUBJECTS + _ASKING),
    "m": ("am", ("i",)),
    "re": ("are", _SUBJECTS + _ASKING),
    "ll": ("will", _SUBJECTS),
    "d": ("would", _SUBJECTS),
    "ve": ("have", (*_SUBJECTS, "could", "would", "should", "might", "must")),
}
_NEGATED = (
    *("do", "does", "did", "is", "are", "was", "were", "have", "has", "had"),
    *("would", "could", "should", "must", "need", "might"),
)
_NO = {f"{word}nt" for word in (*_NEGATED, "ca", "wo")} | {"not", "no", "never", "without", "nor"}
_OPPOSITE = ("un", "de", "dis", "in", "im", "non", "mis")
# towards the short form ("whats"), because a lost apostrophe cannot be told from it
_SHORT = {f"{word} {verb}": word + end for end, (verb, words) in _VERBS.items() for word in words}
_SHORT |= {f"{word} not": f"{word}nt" for word in _NEGATED}
_SHORT |= {"cannot": "cant", "can not": "cant", "will not": "wont", "let us": "lets"}
_LONG_FORM = re.compile(rf"\b(?:{'|'.join(_SHORT)})\b")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_NOT_IN_A_NUMBER = re.compile(r"(?<!\d)[.,:]|[.,:](?!\d)")
_JOINED = re.compile(r"(?<!\d) | (?!\d)")  # every space but one between two digits


class _Letters(dict[int, str]):
    """A table for `str.translate`: what is neither letter, mark, digit nor sign is a space."""

    def __missing__(self, code: int) -> str:
        letter = chr(code)
        group = unicodedata.category(letter)
        if group == "Cf" or 0xFE00 <= code <= 0xFE0F:
            kept = ""  # joiners and variation selectors, which nobody sees
        elif group[0] in "LMN" or group in ("Sm", "So") or letter in "#.,:":
            kept = letter  # signs and emoji carry meaning ("c++", a smile); numbers keep their dots
        else:
            kept = " "
        self[code] = kept
        return kept


_LETTERS = _Letters()


def words_of(text: str) -> str:
    """The text's words in lower case and short forms, one space between them."""
    # apostrophes first: NFKC takes an acute accent that stands for one apart
    whole = unicodedata.normalize("NFKC", text.translate(_APOSTROPHES))
    plain = whole.casefold().translate(_LETTERS)
    plain = _NOT_IN_A_NUMBER.sub(" ", _THOUSANDS.sub("", plain))
    plain = _LONG_FORM.sub(lambda found: _SHORT[found[0]], " ".join(plain.split()))
    return plain or " ".join(text.split())  # a text of nothing but punctuation stays as it is


def text_key(text: str) -> str:
    """What spelling variants of one text share; spaces go too ("e-mail", "email", "e mail")."""
    return _JOINED.sub("", words_of(text))


def near_texts(
    support: Sequence[str],
    test: Sequence[str],
    embed: Embed,
    progress: Callback,
    *,
    least_alike: float = ALIKE,
) -> tuple[list[Near], list[Near]]:
    """Pairs of a support and a test text, and pairs of two support texts.

    Embeddings are neighbours where the support text is among the five of the support set that are
    nearest to the other one. Beside the support set, only texts are embedded whose spelling is
    like that of one of it.
    """
    texts = [*support, *test]  # a pair's second row counts through both
    progress(0, 2, "spelling")
    found = [Near(*pair, "text", 1.0) for pair in _equal(support, texts)]
    known = {pair[:2] for pair in found}
    words = [words_of(text)[:_MOST_LETTERS] for text in texts]
    alike = [
        (one, other, spelling)
        for one, other, spelling in _alike(words[: len(support)], words)
        if (one, other) not in known and same_words(words[one], words[other])
    ]
    if alike:
        progress(1, 2, "embeddings")
        asked = sorted({other for _, other, _ in alike} - set(range(len(support))))
        column = {row: at for at, row in enumerate([*range(len(support)), *asked])}
        vectors = embed([texts[row] for row in column])
        cosines = vectors[: len(support)] @ vectors.T  # (N, N + asked)
        np.fill_diagonal(cosines, -1)  # no text is its own neighbour
        for one, other, spelling in alike:
            near = cosines[:, column[other]]
            close = (near > near[one]).sum() < NEIGHBOURS
            enough = spelling >= least_alike or near[one] >= ALMOST_ONE
            if close and (enough or _typing_error(words[one], words[other])):
                found.append(Near(one, other, "embedding", spelling / 100))
    first = len(support)
    across = [pair._replace(second=pair.second - first) for pair in found if pair.second >= first]
    return sorted(across), sorted(pair for pair in found if pair.second < first)


def same_words(one: str, other: str) -> bool:
    """Whether two texts differ in forms, errors, order or number of words, but in none's meaning.

    Every word of the one that the other lacks must have a look-alike there; words with digits, and
    how often something is denied, must be the same. One in fifty words may be another.
    """
    ours, theirs = one.split(), other.split()
    if sum(word in _NO for word in ours) != sum(word in _NO for word in theirs):
        return False
    fewer, more = sorted(_apart(ours, theirs), key=len)
    changed = 0
    for word in fewer:
        best = max(more, key=lambda candidate: fuzz.ratio(word, candidate))
        more.remove(best)
        changed += not _same_word(word, best)
    return changed <= max(len(ours), len(theirs)) // _OTHER_WORDS


def _apart(one: Sequence[str], other: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of each that the other lacks."""
    ours, theirs = Counter(one), Counter(other)
    return list((ours - theirs).elements()), list((theirs - ours).elements())


def _same_word(one: str, other: str) -> bool:
    """Whether a word may be an error in, or a form of, another, and neither a number of it nor its
    opposite ("lock", "unlock").
    """
    short, long = sorted((one, other), key=len)
    if any(letter.isdigit() for letter in one + other):
        return False
    return long not in {prefix + short for prefix in _OPPOSITE} and (
        fuzz.ratio(one, other) >= _SAME_WORD
    )


def _typing_error(one: str, other: str) -> bool:
    """Whether two texts are the same but for an error in one longer word, not at its beginning."""
    ours, theirs = _apart(one.split(), other.split())
    if len(ours) != 1 or len(theirs) != 1:
        return False
    longer = min(len(ours[0]), len(theirs[0])) >= 4
    return longer and ours[0][0] == theirs[0][0] and fuzz.ratio(ours[0], theirs[0]) >= _TYPING_ERROR


def _equal(support: Sequence[str], texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Pairs with equal keys: rows of the support set, and later rows of `texts`, which begin with
    it.
    """
    rows: dict[str, list[int]] = defaultdict(list)
    for row, text in enumerate(texts):
        rows[text_key(text)].append(row)
    for one, text in enumerate(support):
        yield from ((one, other) for other in rows[text_key(text)] if one < other)


def _alike(support: Sequence[str], texts: Sequence[str]) -> Iterator[tuple[int, int, float]]:
    """The same for pairs whose spelling is alike, in per cent; words may have changed places."""
    for start in range(0, len(support), _ROWS_AT_ONCE):
        rows = support[start : start + _ROWS_AT_ONCE]
        tables = (
            process.cdist(rows, texts, scorer=scorer, score_cutoff=NEARLY, dtype=np.float32)
            for scorer in (fuzz.ratio, fuzz.token_sort_ratio)
        )
        spelling = np.maximum(*tables)
        for one, other in np.argwhere(spelling > 0).tolist():
            if start + one < other:
                yield start + one, other, float(spelling[one, other])
