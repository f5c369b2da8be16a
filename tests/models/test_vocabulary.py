from __future__ import annotations

import json
import random
from collections.abc import Callable

import pytest
import torch
import transformers
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from models.checkpoint import Bundle, load_bundle, save_bundle
from models.errors import GeneralistError
from models.text import TextClassifier, encoder_config
from models.vocabulary import trim_vocabulary
from tests.models.conftest import image_bundle

TEXT = (
    "my card was swallowed by the machine and I want a refund for duplicate payments today "
    "exchange rates are changing while transferring money abroad takes longer than expected "
    "naïve café über straße crème brûlée please unblock unlock relocate reallocation payment"
)
WORDS = TEXT.split()
CORPUS = [" ".join(random.Random(seed).choices(WORDS, k=12)) for seed in range(120)] + [
    "Prices: 12.50€, 99%!",
    "a_b-c/d (e) [f] {g} 0123456789",
    "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
]
TASK = ["my card was swallowed", "refund the duplicate payment", "crème brûlée 12.50€!"]
UNSEEN = ["reallocated cards", "unlockable", "Zebra 7_7", "straßencafé"]


def wordpiece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    specials = ["[PAD]", "[unused0]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=420, special_tokens=specials)
    )
    cls, sep = (tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", cls), ("[SEP]", sep)]
    )
    spec = json.loads(tokenizer.to_str())
    # BERT's free places are tokens of the vocabulary and no added ones
    spec["added_tokens"] = [t for t in spec["added_tokens"] if "unused" not in t["content"]]
    return Tokenizer.from_str(json.dumps(spec))


def bytelevel() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=520, special_tokens=specials, initial_alphabet=alphabet),
    )
    tokenizer.add_special_tokens(["<mask>"])  # behind the vocabulary
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.UnigramTrainer(
            vocab_size=300, special_tokens=specials, unk_token="<unk>", show_progress=False
        ),
    )
    pair = [("<s>", 0), ("</s>", 2)]
    tokenizer.post_processor = processors.Sequence(
        [processors.TemplateProcessing(single="<s> $A </s>", special_tokens=pair)]
    )
    return tokenizer


BUILD: dict[str, Callable[[], Tokenizer]] = {
    "WordPiece": wordpiece,
    "BPE": bytelevel,
    "Unigram": unigram,
}


def bundle_of(kind: str) -> Bundle:
    """A small encoder with the tokenizer of that kind; RoBERTa where padding is not 0."""
    torch.manual_seed(0)
    tokenizer = BUILD[kind]()
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    small |= {"intermediate_size": 32, "vocab_size": tokenizer.get_vocab_size() + 3}
    if kind == "WordPiece":
        settings, padding = transformers.BertConfig(**small), 0
    else:
        settings, padding = transformers.RobertaConfig(**small, pad_token_id=1), 1
    encoder = transformers.AutoModel.from_config(settings, attn_implementation="eager")
    return Bundle(
        model=TextClassifier(encoder).eval(),
        modality="text",
        labels=None,
        preprocess={"modality": "text", "max_length": 64, "pad_id": padding},
        tokenizer=tokenizer.to_str(),
        config={
            "library": "transformers",
            "encoder": encoder_config(encoder),
            "pooling": "mean",
            "normalize": False,
            "neck": None,
            "classes": 0,
        },
    )


@torch.no_grad()
def embed(bundle: Bundle, texts: list[str]) -> torch.Tensor:
    tokenizer = Tokenizer.from_str(bundle.tokenizer)
    tokenizer.enable_padding(pad_id=bundle.preprocess["pad_id"], pad_token="<pad>")
    made = tokenizer.encode_batch(texts)
    ids = torch.tensor([encoding.ids for encoding in made])
    mask = torch.tensor([encoding.attention_mask for encoding in made])
    return bundle.model(ids, mask)


@pytest.mark.parametrize("extra", [0, 40])
@pytest.mark.parametrize("kind", list(BUILD))
def test_task_texts_encode_and_embed_as_before(kind, extra, tmp_path):
    bundle = bundle_of(kind)
    trimmed = trim_vocabulary(bundle, TASK, extra=extra)
    old, new = Tokenizer.from_str(bundle.tokenizer), Tokenizer.from_str(trimmed.tokenizer)
    assert new.get_vocab_size() < old.get_vocab_size()
    for text in TASK:
        assert new.encode(text).tokens == old.encode(text).tokens
        for ids, token in zip(new.encode(text).ids, new.encode(text).tokens, strict=True):
            assert new.token_to_id(token) == ids
    rows = trimmed.model.encoder.get_input_embeddings().num_embeddings
    assert trimmed.delta == [{"op": "vocabulary", "rows": rows}]
    assert sorted(new.get_vocab().values()) == list(range(rows))
    # padding in the batch: RoBERTa counts positions from padding's id
    torch.testing.assert_close(embed(trimmed, TASK), embed(bundle, TASK))
    save_bundle(trimmed, tmp_path)
    loaded = load_bundle(tmp_path)
    assert torch.equal(embed(loaded, TASK), embed(trimmed, TASK))
    assert loaded.model.encoder.get_input_embeddings().padding_idx is not None


def unknowns(tokenizer: Tokenizer, text: str) -> list[str]:
    return [
        text[slice(*offset)]
        for token, offset in zip(
            tokenizer.encode(text).tokens, tokenizer.encode(text).offsets, strict=True
        )
        if token in ("[UNK]", "<unk>")
    ]


@pytest.mark.parametrize("kind", list(BUILD))
def test_unseen_text_gains_no_unknown_token(kind):
    bundle = bundle_of(kind)
    trimmed = trim_vocabulary(bundle, TASK, extra=5)
    old, new = Tokenizer.from_str(bundle.tokenizer), Tokenizer.from_str(trimmed.tokenizer)
    rng = random.Random(0)
    letters = sorted(set("".join(CORPUS)))
    drawn = ["".join(rng.choices(letters, k=rng.randint(1, 14))) for _ in range(300)]
    for text in [*UNSEEN, *CORPUS, *drawn, "日本 😀"]:
        assert unknowns(new, text) == unknowns(old, text), text
    if kind == "BPE":
        for text in [*UNSEEN, "日本 😀"]:
            assert new.decode(new.encode(text).ids) == text


@pytest.mark.parametrize("kind", list(BUILD))
def test_everything_extra_changes_nothing_but_what_no_text_can_use(kind):
    bundle = bundle_of(kind)
    trimmed = trim_vocabulary(bundle, TASK, extra=10_000)
    old, new = Tokenizer.from_str(bundle.tokenizer), Tokenizer.from_str(trimmed.tokenizer)
    assert set(old.get_vocab()) - set(new.get_vocab()) == (
        {"[unused0]", "[unused1]"} if kind == "WordPiece" else set()
    )
    for text in [*CORPUS, *UNSEEN]:
        assert new.encode(text).tokens == old.encode(text).tokens


def test_extra_rows_are_the_first_others():
    bundle = bundle_of("WordPiece")
    none, some = (trim_vocabulary(bundle, TASK, extra=extra) for extra in (0, 7))
    kept = set(Tokenizer.from_str(none.tokenizer).get_vocab())
    order = sorted(
        Tokenizer.from_str(bundle.tokenizer).get_vocab().items(), key=lambda entry: entry[1]
    )
    others = [token for token, _ in order if token not in kept and "unused" not in token]
    assert set(Tokenizer.from_str(some.tokenizer).get_vocab()) == kept | set(others[:7])


def test_every_merge_left_can_be_carried_out_and_every_token_reached():
    spec = json.loads(trim_vocabulary(bundle_of("BPE"), TASK, extra=20).tokenizer)["model"]
    vocabulary, merges = spec["vocab"], [tuple(merge) for merge in spec["merges"]]
    assert all({left, right, left + right} <= set(vocabulary) for left, right in merges)
    specials = {"<s>", "<pad>", "</s>", "<unk>"}
    longer = {token for token in vocabulary if len(token) > 1} - specials
    assert longer == {left + right for left, right in merges} and longer


def test_trimming_twice_leaves_one_record(tmp_path):
    twice = trim_vocabulary(trim_vocabulary(bundle_of("BPE"), TASK, extra=40), TASK[:1], extra=0)
    assert len(twice.delta) == 1
    save_bundle(twice, tmp_path)
    assert torch.equal(embed(load_bundle(tmp_path), TASK), embed(twice, TASK))


def test_what_has_no_vocabulary_or_no_fallback_is_refused():
    with pytest.raises(GeneralistError, match="only text models"):
        trim_vocabulary(image_bundle("test_resnet"), TASK, extra=0)
    bundle = bundle_of("WordPiece")
    with pytest.raises(GeneralistError, match="must not be negative"):
        trim_vocabulary(bundle, TASK, extra=-1)
    bundle.tokenizer = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?")).to_str()
    with pytest.raises(GeneralistError, match="WordLevel tokenizer has no fallback"):
        trim_vocabulary(bundle, TASK, extra=0)
