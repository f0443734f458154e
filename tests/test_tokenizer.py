"""The same ids as Hugging Face's for the same files, on any text; what cannot be reproduced is refused."""

import json
import os
import random
import re
import shutil
import string
import time
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minprefix import tokenizer
from minprefix.checks import InputError
from minprefix.tokenizer import BART_SPECIAL, BYTE_OF_CHAR, GPT2_SPECIAL, load_tokenizer

transformers = pytest.importorskip("transformers", reason="compares with transformers' tokenizer")
tokenizers = pytest.importorskip("tokenizers", reason="trains a small vocabulary")

WEIGHTS = Path(__file__).parent.parent / "weights"
BPE_FILES = Path(os.environ.get("MINPREFIX_DATA", "/nowhere")) / "bpe"
SENTENCES = [
    "The Blue Spice is a coffee shop near Crowne Plaza Hotel; it isn't family-friendly, we've heard.",
    "name : Wildwood | Type : pub | food : Indian | price : £20-25 | customer rating : 3 out of 5",
    "In 1999 they'd 12345 cafés, naïve señores, Ελληνικά, русский язык, 日本語, 한국어, हिन्दी, عربى.",
    "    def f(x):\n\n\t\treturn   x  \r\n  She said: \"I'm I'll he's we're don't DON'T\"…",
]
PARTS = [
    "a<|sep|>",
    "'s",
    "'re",
    "'LL",
    "’s",
    "the",
    " the",
    "1",
    "12",
    " 3",
    "½²Ⅷ٣",
    " ",
    "  ",
    "\n",
    " \n",
    "\t",
]
PARTS += ["\x1d", "\x85", "\xa0", "\u3000", "\u200b", "(", " !", "_", "\u0301", "日本", "😀👩🏽", "é"]
PARTS += ["<|endoftext|>", "<|ENDOFTEXT|>", "<|sep|>", "<|pad|>", "covid", "covid19", "<s>", "</s>", "<mask>"]
PARTS += [" <mask> ", "\x04", "\x06\x13", "<unk>", "<|im_end|>", "\U0005ffff", *SENTENCES]
LETTERS = "".join(random.Random(0).choices(string.ascii_letters, k=12_000))  # no merge ends early
UNITS = ("a", LETTERS, "1", " ", "\n", " \n", "(", "'", '"', "é", "日", "a ", "<", " <mask>", "\x04 ")
LATE = st.characters(exclude_categories=["Cs"])
KNOWN = st.characters(exclude_categories=["Cs", "Cn"])  # on those that Unicode got lately, libraries differ


def texts(characters: st.SearchStrategy) -> st.SearchStrategy:
    return st.lists(st.sampled_from(PARTS) | st.text(characters, max_size=6), max_size=12).map("".join)


def save(folder: Path, contents: dict) -> Path:
    for name, content in contents.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def copy_files(folder: Path, name: str) -> Path:
    """As bundled: vocab.json and merges.txt."""
    for file in ("vocab.json", "merges.txt", "config.json", "tokenizer_config.json"):
        shutil.copy(WEIGHTS / name / file, folder)
    return folder


def write_json(folder: Path, name: str) -> Path:
    """As transformers 5 writes it: tokenizer.json, with tokens added to it."""
    theirs = transformers.AutoTokenizer.from_pretrained(copy_files(folder, name))
    theirs.add_special_tokens({"pad_token": "<|pad|>", "additional_special_tokens": ["<|sep|>"]})
    theirs.add_special_tokens({"mask_token": tokenizers.AddedToken("<mask>", lstrip=True, special=True)})
    theirs.add_tokens(["covid", "covid19", "a<|sep"])
    theirs.save_pretrained(folder)
    return folder


def write_older(folder: Path, name: str) -> Path:
    """As transformers 4 wrote it: what was added stands in files beside vocab.json."""
    mask = {"content": "<mask>", "lstrip": True, "rstrip": False, "normalized": False, "single_word": False}
    count = len(json.loads((copy_files(folder, name) / "vocab.json").read_text()))
    named = {"additional_special_tokens": ["<|sep|>"]} | ({"mask_token": mask} if name == "bart-mini" else {})
    added = {"<|sep|>": count, "covid": count + 1}
    return save(folder, {"added_tokens.json": added, "special_tokens_map.json": named})


def train_like_smollm2(folder: Path, name: str = "") -> Path:
    """Single digits, BOS and EOS of their own, and most bytes without a token."""
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    digits = tokenizers.pre_tokenizers.Digits(individual_digits=True)
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([digits, byte_level])
    bpe.decoder = tokenizers.decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    bpe.train_from_iterator(SENTENCES[:2] * 20, trainer)
    bpe.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|im_start|>"}
    return save(folder, {"config.json": {"model_type": "llama"}, "tokenizer_config.json": config})


def copy_gpt2(folder: Path, name: str) -> Path:
    if not BPE_FILES.is_dir():
        pytest.skip("GPT-2's own vocabulary (bpe/ under MINPREFIX_DATA) is not here")
    shutil.copyfile(BPE_FILES / "encoder.json", folder / "vocab.json")
    shutil.copyfile(BPE_FILES / "vocab.bpe", folder / "merges.txt")
    return save(folder, {"config.json": {"model_type": "gpt2"}})


def copy_smollm2(folder: Path, name: str) -> Path:
    if not (WEIGHTS / "smollm2-135m").is_dir():
        pytest.skip("weights/smollm2-135m is not here: python weights/get_smollm2.py")
    for file in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        shutil.copy(WEIGHTS / "smollm2-135m" / file, folder)
    return folder


WAYS = (copy_files, write_json, write_older)
MAKERS = [(make, name) for make in WAYS for name in ("gpt2-mini", "bart-mini")]
MAKERS += [(train_like_smollm2, "smollm2"), (copy_gpt2, "gpt2"), (copy_smollm2, "smollm2-135m")]


@pytest.fixture(scope="module", params=MAKERS, ids=lambda made: f"{made[0].__name__} {made[1]}")
def pair(request, tmp_path_factory) -> tuple:
    """(ours, Hugging Face's) from one folder."""
    make, name = request.param
    folder = make(tmp_path_factory.mktemp("tokenizer"), name)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    return load_tokenizer(folder, BART_SPECIAL if name == "bart-mini" else GPT2_SPECIAL), theirs


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_any_text_has_the_ids_of_hugging_face_and_comes_back(pair, data):
    ours, theirs = pair
    text = data.draw(texts(KNOWN if ours.missing else LATE))
    ids = ours.encode(text)
    assert ids == theirs.encode(text, add_special_tokens=False)
    assert ours.decode(ids) == theirs.decode(ids)
    assert ours.missing or ours.strips or ours.decode(ids) == text


@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_any_ids_decode_as_by_hugging_face(pair, data):
    """Cut characters become as many replacement characters, and an id without a token nothing."""
    ours, theirs = pair
    ids = data.draw(st.lists(st.sampled_from([*ours.bytes_of_id, 10**6]), max_size=20))
    assert ours.decode(ids) == theirs.decode(ids)
    assert ours.special_ids >= set(theirs.all_special_ids)


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_the_first_ids_of_a_text_are_those_of_all_of_it(pair, data):
    """Wherever it is cut, here after some five characters."""
    ours, _ = pair
    text, count = data.draw(texts(LATE)), data.draw(st.integers(0, 30))
    with mock.patch.object(tokenizer, "PART", re.compile(tokenizer.PART.pattern.replace("10000", "5"))):
        assert ours.encode_first(text, count) == ours.encode(text)[:count]


def test_a_token_with_white_space_in_it_is_never_cut(tmp_path):
    parts = json.loads((train_like_smollm2(tmp_path) / "tokenizer.json").read_text())
    parts["added_tokens"].append(parts["added_tokens"][0] | {"content": "a  b", "id": 400, "special": False})
    ours = load_tokenizer(save(tmp_path, {"tokenizer.json": parts}), ())
    text = "x" * 10_000 + "a  b"
    assert ours.encode_first(text, 10_001) == ours.encode(text)[:10_001]


def test_of_a_long_text_no_more_is_read_than_needed(pair):
    ours, text = pair[0], "name : Blue Fig | food : Thai " * 100_000
    with mock.patch.object(ours, "encode", wraps=ours.encode) as encode:
        assert ours.encode_first(text, 500) == ours.encode(text[:20_000])[:500]
    assert [len(call.args[0]) < 10_100 for call in encode.call_args_list[:-1]] == [True]


def test_long_runs_keep_their_ids_and_cost_is_linear(pair):
    """1.2 million blanks once overflowed a stack of tiktoken's."""
    ours, theirs = pair
    for unit in UNITS:
        length = 120_000 if unit.isspace() else 12_000
        for text in (unit * (length // len(unit)), unit * (length // len(unit)) + "x"):
            assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
    for unit in UNITS:
        start = time.process_time()
        for length in (10_000, 100_000, 1_200_000):
            ours.encode_first(unit * (length // len(unit)) + "x", length)
        assert time.process_time() - start < 20  # a few tenths of a second


BYTES = {char: n for n, char in enumerate(BYTE_OF_CHAR)}
GOOD = {"vocab.json": {**BYTES, "th": 256, "the": 257, "he": 258}, "merges.txt": "#version: 0.2\nt h\nth e\n"}
VOCAB = GOOD["vocab.json"]
BROKEN = {
    "no vocab": ({"vocab.json": None}, "vocab.json"),
    "no merges": ({"merges.txt": None}, "merges.txt cannot be read"),
    "id a string": ({"vocab.json": {**VOCAB, "x": "7"}}, "token 'x' has id '7'"),
    "id true": ({"vocab.json": {**VOCAB, "x": True}}, "token 'x' has id True"),
    "id twice": ({"vocab.json": {**VOCAB, "thy": 257}}, "token 'thy' has id 257"),
    "one token": ({"merges.txt": "t h\nth\n"}, "('th',) must join two tokens"),
    "not in vocab": ({"merges.txt": "t h\nh a\n"}, "('h', 'a') must join"),
    "made later": ({"merges.txt": "th e\nt h\n"}, "('th', 'e') must join two tokens made above"),
    "made twice": ({"merges.txt": "t h\nh e\nth e\nt he\n"}, "('t', 'he') must join"),
    "prefix space": ({"tokenizer_config.json": {"add_prefix_space": True}}, "add_prefix_space is True"),
    "BOS added": ({"tokenizer_config.json": {"add_bos_token": True}}, "add_bos_token is True"),
    "odd map": ({"special_tokens_map.json": {"additional_special_tokens": [{"a": 1}]}}, "malformed"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_refused(case, tmp_path):
    changes, message = BROKEN[case]
    files = {name: content for name, content in (GOOD | changes).items() if content is not None}
    with pytest.raises(InputError) as refused:
        load_tokenizer(save(tmp_path, files))
    assert message in str(refused.value) and str(refused.value).count("put the checkpoint") <= 1


STRANGE = {"byte_fallback": True, "ignore_merges": True, "fuse_unk": True, "dropout": 0.1, "type": "Unigram"}
STRANGE |= {"end_of_word_suffix": "</w>", "rstrip": True, "single_word": True, "normalizer": {"type": "NFC"}}
STRANGE |= {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}, "decoder": {"type": "Fuse"}}
STRANGE |= {"post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "a"}}, {}]}}


@pytest.mark.parametrize("key", STRANGE)
def test_what_cannot_be_reproduced_is_refused_by_name(key, tmp_path):
    parts = json.loads((train_like_smollm2(tmp_path) / "tokenizer.json").read_text())
    load_tokenizer(tmp_path, ())
    part = next((part for part in (parts, parts["added_tokens"][0]) if key in part), parts["model"])
    part[key] = STRANGE[key]
    with pytest.raises(InputError, match="model" if key == "type" else key):
        load_tokenizer(save(tmp_path, {"tokenizer.json": parts}), ())


@pytest.mark.parametrize("make", [write_json, copy_files])
@pytest.mark.parametrize("key", ["pad_token", "additional_special_tokens", "extra_special_tokens"])
def test_a_special_token_without_an_id_is_said(make, key, tmp_path):
    folder = make(tmp_path, "gpt2-mini")
    named = json.loads((folder / "tokenizer_config.json").read_text())
    save(folder, {"tokenizer_config.json": named | {key: "<new>" if key == "pad_token" else ["<new>"]}})
    with pytest.warns(UserWarning, match="'<new>' is a special token without an id: read as text"):
        load_tokenizer(folder)


def test_a_vocabulary_without_merges_and_without_end_of_text_works(tmp_path):
    files = GOOD | {"merges.txt": "#version: 0.2\r\nt h\r\nth e\r\n"}
    tokenizer = load_tokenizer(save(tmp_path, files))
    assert tokenizer.encode("the") == [257]
    assert tokenizer.decode([258]) == "he"  # in the vocabulary, but no merge makes it
    assert tokenizer.decode(tokenizer.encode("<|endoftext|>")) == "<|endoftext|>"
