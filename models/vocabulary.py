"""Keep the part of a tokenizer's vocabulary that a task needs, and its rows of the embeddings.

Kept: what the tokenizer emits on the task's texts, its added and special tokens, what it falls
back on for text it has not seen (single characters or bytes), and the first other rows (ids run
roughly by frequency). The order stays, so that a token's new id is its rank among the kept ones;
the rows up to padding's are all kept, because RoBERTa counts positions from padding's id.

Text that was kept for encodes as before, up to the new ids: a greedy longest match (WordPiece),
a merge order (BPE) and a best path (Unigram) stay what they are when only alternatives that were
not taken go. Other text may encode into more pieces.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn

from models.checkpoint import Bundle
from models.delta import trim_embeddings
from models.errors import GeneralistError

__all__ = ["trim_vocabulary"]

_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_NEVER_EMITTED = re.compile(r"[\[<]unused_?\d+[\]>]")  # places that were left free in training


@torch.no_grad()
def trim_vocabulary(bundle: Bundle, texts: Iterable[str], *, extra: int) -> Bundle:
    """Return a copy of a text ``bundle`` whose vocabulary is what ``texts`` need, and a margin.

    Args:
        texts: all that is at hand of the task; their encoding does not change but for ids.
        extra: how many other tokens to keep, in the vocabulary's order.

    The change is recorded as ``{"op": "vocabulary", "rows": kept rows}``.

    Raises:
        GeneralistError: not a text model, or a tokenizer without a fallback for unseen words.
    """
    if bundle.tokenizer is None:
        raise GeneralistError("vocabulary: an image model has none; only text models do")
    if extra < 0:
        raise GeneralistError(f"vocabulary: extra is {extra}; it must not be negative")
    spec = json.loads(bundle.tokenizer)
    model = spec["model"]
    kind = model.get("type")
    if kind not in _FALLBACKS:
        raise GeneralistError(
            f"vocabulary: a {kind} tokenizer has no fallback for words outside its vocabulary, so "
            f"it cannot be trimmed; supported: {', '.join(_FALLBACKS)}"
        )
    ids = _ids(model) | {token["content"]: token["id"] for token in spec["added_tokens"]}
    tokens = {row: token for token, row in ids.items()}
    embeddings: nn.Embedding = bundle.model.encoder.get_input_embeddings()  # type: ignore
    padding = max(int(bundle.preprocess.get("pad_id") or 0), embeddings.padding_idx or 0)

    kept = set(range(padding + 1))
    for encoding in Tokenizer.from_str(bundle.tokenizer).encode_batch(list(texts)):
        kept.update(encoding.ids)
    named = [token["content"] for token in spec["added_tokens"]]
    named += [*_named(spec.get("post_processor")), model.get("unk_token")]
    kept.update(ids[token] for token in named if token in ids)
    kept.update(ids[token] for token in _FALLBACKS[kind](model))
    others = (
        row for row in sorted(tokens) if row not in kept and not _NEVER_EMITTED.match(tokens[row])
    )
    kept.update(row for row, _ in zip(others, range(extra), strict=False))
    if kind == "BPE":
        kept = _with_ancestors(model, ids, kept)

    rows = sorted(row for row in kept if row < embeddings.num_embeddings)
    new = {row: number for number, row in enumerate(rows)}
    copied = bundle.copy()
    _rewrite(spec, {tokens[row]: number for row, number in new.items() if row in tokens})
    copied.tokenizer = Tokenizer.from_str(json.dumps(spec, ensure_ascii=False)).to_str()
    weight = embeddings.weight.detach()[rows].clone()
    trim_embeddings(copied.model, len(rows))
    trimmed: nn.Embedding = copied.model.encoder.get_input_embeddings()  # type: ignore
    trimmed.weight.copy_(weight)
    if "pad_id" in copied.preprocess:
        copied.preprocess["pad_id"] = new[int(copied.preprocess["pad_id"] or 0)]
    copied.delta = [record for record in copied.delta if record["op"] != "vocabulary"]
    copied.delta.append({"op": "vocabulary", "rows": len(rows)})
    return copied


def _ids(model: dict[str, Any]) -> dict[str, int]:
    """Return the id of every token of the model; Unigram's ids are places in a list."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        return dict(vocabulary)
    return {token: row for row, (token, _) in enumerate(vocabulary)}


def _spelled(vocabulary: Iterable[str], plain: Callable[[str], str]) -> set[str]:
    """Return the tokens of one character; ``plain`` takes the marks of a position off."""
    return {token for token in vocabulary if len(plain(token)) == 1 or _BYTE.fullmatch(token)}


def _wordpiece_fallback(model: dict[str, Any]) -> set[str]:
    """Characters at the start of a word and inside one; and tokens that these cannot spell."""
    prefix = model["continuing_subword_prefix"]
    vocabulary = model["vocab"]
    kept = _spelled(vocabulary, lambda token: token.removeprefix(prefix))
    for token in filter(None, vocabulary):
        inside = token.startswith(prefix) and len(token) > len(prefix)
        characters = token[len(prefix) :] if inside else token
        first = prefix + characters[0] if inside else characters[0]
        pieces = [first, *(prefix + character for character in characters[1:])]
        if not _NEVER_EMITTED.match(token) and not all(piece in kept for piece in pieces):
            kept.add(token)
    return kept


def _bpe_fallback(model: dict[str, Any]) -> set[str]:
    """The characters (bytes) that merging starts from."""
    prefix = model.get("continuing_subword_prefix") or ""
    suffix = model.get("end_of_word_suffix") or ""
    return _spelled(
        model["vocab"], lambda token: token.removeprefix(prefix).removesuffix(suffix) or token
    )


def _unigram_fallback(model: dict[str, Any]) -> set[str]:
    """Characters, tokens that these cannot spell, and what fixes the cost of an unknown one."""
    scores = dict(model["vocab"])
    kept = _spelled(scores, lambda token: token)
    kept |= {token for token in scores if not all(character in kept for character in token)}
    kept.add(min(scores, key=lambda token: scores[token]))  # unknown costs this minus a constant
    if model.get("unk_id") is not None:
        kept.add(model["vocab"][model["unk_id"]][0])
    return kept


_FALLBACKS: dict[str, Callable[[dict[str, Any]], set[str]]] = {
    "WordPiece": _wordpiece_fallback,
    "BPE": _bpe_fallback,
    "Unigram": _unigram_fallback,
}


def _merges(model: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return (left, right, result) of every merge; stored as a pair, or as one string."""
    prefix = model.get("continuing_subword_prefix") or ""
    found = []
    for merge in model["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        found.append((left, right, left + right.removeprefix(prefix)))
    return found


def _with_ancestors(model: dict[str, Any], ids: dict[str, int], kept: set[int]) -> set[int]:
    """Add the parts that the kept tokens are merged from, down to characters."""
    parts: dict[str, set[str]] = {}
    for left, right, result in _merges(model):
        parts.setdefault(result, set()).update((left, right))
    tokens = {row: token for token, row in ids.items()}
    grown, waiting = set(kept), [tokens[row] for row in kept if row in tokens]
    while waiting:
        for part in parts.get(waiting.pop(), ()):
            if ids[part] not in grown:
                grown.add(ids[part])
                waiting.append(part)
    return grown


def _processors(processor: dict[str, Any] | None) -> list[dict[str, Any]]:
    if processor is None:
        return []
    inner = processor.get("processors", [])
    return [processor, *(found for part in inner for found in _processors(part))]


def _named(processor: dict[str, Any] | None) -> list[str]:
    """Return the tokens that a post-processor puts around a text."""
    found: list[str] = []
    for part in _processors(processor):
        for special in part.get("special_tokens", {}).values():
            found += special["tokens"]
        found += [part[role][0] for role in ("cls", "sep") if role in part]
    return found


def _rewrite(spec: dict[str, Any], ids: dict[str, int]) -> None:
    """Put the new ids, and no token without one, into tokenizer.json's content."""
    model = spec["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {token: ids[token] for token in model["vocab"] if token in ids}
    else:
        unknown = None if model["unk_id"] is None else model["vocab"][model["unk_id"]][0]
        model["vocab"] = [entry for entry in model["vocab"] if entry[0] in ids]
        model["unk_id"] = None if unknown is None else ids[unknown]
    if "merges" in model:
        model["merges"] = [
            [left, right]
            for left, right, result in _merges(model)
            if left in ids and right in ids and result in ids
        ]
    spec["added_tokens"] = [
        token | {"id": ids[token["content"]]}
        for token in spec["added_tokens"]
        if token["content"] in ids
    ]
    for part in _processors(spec.get("post_processor")):
        for special in part.get("special_tokens", {}).values():
            special["ids"] = [ids[token] for token in special["tokens"]]
        for role in ("cls", "sep"):
            if role in part:
                part[role] = [part[role][0], ids[part[role][0]]]
    if spec.get("padding"):
        spec["padding"]["pad_id"] = ids[spec["padding"]["pad_token"]]
