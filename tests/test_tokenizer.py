"""The same ids as Hugging Face's for the same files, on any Unicode text; broken files are refused."""

import json
import os
import random
import shutil
from pathlib import Path

import pytest

from minprefix.errors import InputError
from minprefix.tokenizer import BYTE_OF_CHAR, load_tokenizer

transformers = pytest.importorskip("transformers", reason="compares with transformers' tokenizer")
tokenizers = pytest.importorskip("tokenizers", reason="trains a small vocabulary")

REPO = Path(__file__).parent.parent
SENTENCES = [
    "The Blue Spice is a coffee shop near Crowne Plaza Hotel; it isn't family-friendly, we've heard.",
    "name : Wildwood | Type : pub | food : Indian | price : £20-25 | customer rating : 3 out of 5",
    "it'The it'The The we'Me Me we'Sea Sea I'Dear Dear",  # contractions are lower case
    "In 1999 they'd 12345 cafés, naïve señores, Ελληνικά, русский язык, 日本語, 한국어, हिन्दी, عربى.",
    "    def f(x):\n\n\t\treturn   x  \r\n  She said: \"I'm I'll he's we're don't DON'T\"…",
]
SCRIPTS = [
    *["abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"] * 6,
    "0123456789½²Ⅷ٣௧𝟘",
    *["\t\n\v\f\r \x1c\x1f\x85\xa0\u1680\u2003\u2028\u202f\u3000\u200b\ufeff", "   \n"] * 2,
    ".,;:!?'\"|()-–—…£€$#@&*+=<>/\\^~`_",
    "éèüñçßøåıİſǅ",
    "αβγΩабвЖЯאבגعربىहिन्दीไทย日本語漢字かな한국어",
    "\u0300\u0301\u0308\u20dd\ufe0f\u200d",
    "😀👨👩🏽🇩🇪❤♠𝔘𐍈🀄",
    "\x00\x01\x07\x1b\x7f\x80\x9f\xad",
]
WORDS = [
    *("'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'S", "'LL", "’s", "don't", "the", "and", "price"),
    *("<|endoftext|>", "<|endoftext", "<|ENDOFTEXT|>", "|>"),
]
CHARACTERS = [*range(0xD800), *range(0xE000, 0x110000)]  # all but the surrogates


def random_texts(seed: int, count: int) -> list[str]:
    rng = random.Random(seed)

    def part() -> str:
        kind = rng.random()
        if kind < 0.25:
            return rng.choice(WORDS)
        if kind < 0.35:
            return "".join(map(chr, rng.choices(CHARACTERS, k=3)))
        return "".join(rng.choices(rng.choice(SCRIPTS), k=rng.randrange(1, 9)))

    return [rng.choice(["", " ", "  "]).join(part() for _ in range(rng.randrange(12))) for _ in range(count)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A vocabulary of 900 tokens whose ids are shuffled, so that no id is a rank."""
    folder = tmp_path_factory.mktemp("trained")
    bpe = tokenizers.ByteLevelBPETokenizer()
    bpe.train_from_iterator(SENTENCES * 20 + random_texts(1, 300), 900, 2, False, ["<|endoftext|>"])
    bpe.save_model(str(folder))
    vocab = json.loads((folder / "vocab.json").read_text())
    ids = random.Random(0).sample(range(len(vocab)), len(vocab))
    (folder / "vocab.json").write_text(json.dumps(dict(zip(vocab, ids, strict=True))))
    return folder


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> Path:
    source = Path(os.environ.get("MINPREFIX_DATA", "/nowhere")) / "bpe"
    if not source.is_dir():
        pytest.skip("GPT-2's own vocabulary (bpe/ under MINPREFIX_DATA) is not here")
    folder = tmp_path_factory.mktemp("gpt2")
    shutil.copyfile(source / "encoder.json", folder / "vocab.json")
    shutil.copyfile(source / "vocab.bpe", folder / "merges.txt")
    return folder


@pytest.fixture(scope="module")
def bundled() -> Path:
    if not (REPO / "weights/gpt2-mini/vocab.json").exists():
        pytest.skip("weights/gpt2-mini is not here")
    return REPO / "weights/gpt2-mini"


@pytest.mark.parametrize("name", ["trained", "gpt2", "bundled"])
def test_ids_and_text_equal_hugging_face(name, request):
    folder = request.getfixturevalue(name)
    ours, theirs = load_tokenizer(folder), transformers.GPT2Tokenizer.from_pretrained(folder)
    texts = SENTENCES + random_texts(2, 10_000)
    ids = [ours.encode(text) for text in texts]
    expected = theirs(texts)["input_ids"]
    assert [text for text, a, b in zip(texts, ids, expected, strict=True) if a != b] == []
    assert [text for text, a in zip(texts, ids, strict=True) if ours.decode(a) != text] == []
    assert sum(map(len, ids)) > 100_000 and len({i for row in ids for i in row}) > 500  # the texts reach deep


@pytest.mark.parametrize("name", ["trained", "gpt2", "bundled"])
def test_any_ids_decode_as_hugging_face(name, request):
    """Random ids cut characters in two: the replacement characters must be as many as theirs."""
    folder = request.getfixturevalue(name)
    ours, theirs = load_tokenizer(folder), transformers.GPT2Tokenizer.from_pretrained(folder)
    known, rng = sorted(ours.bytes_of_id), random.Random(3)
    rows = [rng.choices(known, k=rng.randrange(20)) for _ in range(2_000)]
    rows += [[known[0]], [theirs.eos_token_id], theirs.encode("日")[:1]]
    decoded = [ours.decode(row) for row in rows]
    assert decoded == [theirs.decode(row, clean_up_tokenization_spaces=False) for row in rows]
    assert any("\ufffd" in text for text in decoded)


def test_end_of_text_and_long_runs(trained):
    ours, theirs = load_tokenizer(trained), transformers.GPT2Tokenizer.from_pretrained(trained)
    vocab = json.loads((trained / "vocab.json").read_text())
    assert ours.encode("<|endoftext|>") == [vocab["<|endoftext|>"]]
    assert ours.encode("") == [] and ours.decode([]) == ""
    for text in ["a" * 20_000, " " * 20_000 + "x", "\n \t" * 5_000, "a1" * 5_000, "'" * 5_000]:
        assert ours.encode(text) == theirs.encode(text)


def test_windows_line_ends(trained, tmp_path):
    shutil.copyfile(trained / "vocab.json", tmp_path / "vocab.json")
    merges = (trained / "merges.txt").read_bytes().replace(b"\n", b"\r\n")
    (tmp_path / "merges.txt").write_bytes(merges)
    assert load_tokenizer(tmp_path).encode(SENTENCES[0]) == load_tokenizer(trained).encode(SENTENCES[0])


def test_unknown_id_is_refused(trained):
    with pytest.raises(InputError, match="id 900 "):
        load_tokenizer(trained).decode([0, 900])


BYTES = {char: n for n, char in enumerate(BYTE_OF_CHAR)}
GOOD = {**BYTES, "th": 256, "the": 257, "he": 258}
BROKEN = {
    "no vocab": (None, "", "vocab.json cannot be read"),
    "no merges": (json.dumps(GOOD), None, "merges.txt cannot be read"),
    "not UTF-8": (json.dumps(GOOD), b"\xff\xfe", "merges.txt cannot be read"),
    "not JSON": ('{"a": 1', "", "vocab.json is not JSON"),
    "deep JSON": ("[" * 100_000, "", "vocab.json is not JSON"),
    "a list": ("[1, 2]", "", "must hold one JSON object"),
    "id a string": (json.dumps({**GOOD, "x": "7"}), "", "each token needs an id"),
    "id true": (json.dumps({**GOOD, "x": True}), "", "each token needs an id"),
    "id negative": (json.dumps({**GOOD, "x": -1}), "", "each token needs an id"),
    "id twice": (json.dumps({**GOOD, "thy": 257}), "", "'the' and 'thy' both have id 257"),
    "no byte": (
        json.dumps({k: v for k, v in GOOD.items() if k != "Ā"}),
        "",
        "lacks byte tokens (Ā)",
    ),
    "one token": (json.dumps(GOOD), "#version: 0.2\nt h\nth\n", "line 3: 'th' must join two tokens"),
    "three tokens": (json.dumps(GOOD), "t h e\n", "line 1: 't h e' must join two tokens"),
    "not in vocab": (json.dumps(GOOD), "t h\nh a\n", "line 2: 'ha' is not in vocab.json"),
    "made later": (json.dumps(GOOD), "th e\nt h\n", "line 1: 'th e' must join two tokens made above"),
    "made twice": (
        json.dumps(GOOD),
        "t h\nh e\nth e\nt he\n",
        "line 4: 't he' must join two tokens made above",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_refused(case, tmp_path):
    vocab, merges, message = BROKEN[case]
    if vocab is not None:
        (tmp_path / "vocab.json").write_text(vocab, encoding="utf-8")
    if merges is not None:
        (tmp_path / "merges.txt").write_bytes(merges if isinstance(merges, bytes) else merges.encode())
    with pytest.raises(InputError) as refused:
        load_tokenizer(tmp_path)
    assert message in str(refused.value) and "\n" not in str(refused.value)
    assert str(refused.value).count("put the checkpoint") <= 1  # one error, not one in another


def test_a_vocabulary_without_merges_and_without_end_of_text_works(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps(GOOD), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\nt h\nth e\n")
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("the") == [257]
    assert tokenizer.decode([258]) == "he"  # in the vocabulary, but no merge makes it
    assert tokenizer.decode(tokenizer.encode("<|endoftext|>")) == "<|endoftext|>"
