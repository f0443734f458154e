"""Text to token ids and back: byte-level BPE, as of GPT-2 and BART, from their vocab.json and merges.txt.

Two numberings meet here. A token's *rank* says how early its merge applies: the 256 bytes first, then the
lines of merges.txt. A token's *id* is what vocab.json says, and is the model's. They need not agree: tiktoken
works on ranks, a list turns them into ids.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path

import tiktoken

from minprefix.errors import InputError, explain, refuse_twins

GPT2_SPECIAL = ("<|endoftext|>",)
BART_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
SPACE_BEFORE_MASK = re.compile(r"[^\S\x1c-\x1f]+(?=<mask>)")  # Unicode's white space, which \s exceeds
OWN_FILE = "put the checkpoint's own file there"
# GPT-2's pieces: contractions; words, numbers and other signs with the space before them; white space.
PIECES = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"


def _spell_bytes() -> dict[str, bytes]:
    """How vocab.json spells each byte: its Latin-1 character if that prints, else one from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(printable))
    chars = [chr(b) for b in printable] + [chr(0x100 + n) for n in range(len(others))]
    return {char: bytes([b]) for char, b in zip(chars, printable + others)}


BYTE_OF_CHAR = _spell_bytes()


def _to_bytes(token: str) -> bytes:
    """The bytes that `token` stands for; one not spelt in byte characters (an added one): its own."""
    if all(char in BYTE_OF_CHAR for char in token):
        return b"".join(BYTE_OF_CHAR[char] for char in token)
    return token.encode()


class Tokenizer:
    """The ids of Hugging Face's GPT-2 and BART tokenizers for the same files. Made by `load_tokenizer`."""

    def __init__(self, vocab: dict[str, int], merges: list[tuple[str, str]], special: tuple[str, ...]):
        """`vocab`: token -> id; `merges`: pairs of tokens in the order they apply, each result in `vocab`."""
        tokens = [*BYTE_OF_CHAR, *(left + right for left, right in merges)]
        special = [token for token in special if token in vocab]
        self.special_ids = {vocab[token] for token in special}
        self.has_mask = "<mask>" in special
        self.id_of_rank = [vocab[token] for token in tokens + special]
        self.bytes_of_id = {id: _to_bytes(token) for token, id in vocab.items()}
        self.bpe = tiktoken.Encoding(
            "gpt2",
            pat_str=PIECES,
            mergeable_ranks={_to_bytes(token): rank for rank, token in enumerate(tokens)},
            special_tokens={token: rank for rank, token in enumerate(special, len(tokens))},
        )

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, none added; a literal `<|endoftext|>` or `</s>` in it is the special token.

        As with Hugging Face, `<mask>` takes in the white space before it.
        """
        text = SPACE_BEFORE_MASK.sub("", text) if self.has_mask else text
        return [self.id_of_rank[rank] for rank in self.bpe.encode(text, allowed_special="all")]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD. InputError on an unknown id."""
        ids = [int(id) for id in ids]
        if unknown := [id for id in ids if id not in self.bytes_of_id]:
            raise InputError(f"token id {unknown[0]} is not in vocab.json: take it from the model's folder")
        return b"".join(self.bytes_of_id[id] for id in ids).decode("utf-8", errors="replace")


def load_tokenizer(folder: str | Path, special: tuple[str, ...] = GPT2_SPECIAL) -> Tokenizer:
    """From the vocab.json and merges.txt in `folder`. InputError where one is missing or malformed."""
    vocab = _read_vocab(Path(folder) / "vocab.json")
    return Tokenizer(vocab, _read_merges(Path(folder) / "merges.txt", vocab), special)


def read_json(path: Path) -> dict:
    """The JSON object in a file of a checkpoint. InputError where there is none."""
    text = _read_text(path)
    with explain((ValueError, RecursionError), f"{path} is not JSON", OWN_FILE):
        content = json.loads(text, object_pairs_hook=refuse_twins)
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold one JSON object: {OWN_FILE}")
    return content


def _read_text(path: Path) -> str:
    with explain((OSError, UnicodeDecodeError), f"{path} cannot be read", OWN_FILE):
        return path.read_text(encoding="utf-8")


def _read_vocab(path: Path) -> dict[str, int]:
    vocab = read_json(path)
    if not all(type(id) is int and id >= 0 for id in vocab.values()):
        raise InputError(f"{path}: each token needs an id, a whole number from 0 on")
    token_of_id = {}
    for token, id in vocab.items():
        if token_of_id.setdefault(id, token) != token:
            raise InputError(f"{path}: {token_of_id[id]!r} and {token!r} both have id {id}: make ids unique")
    if missing := [char for char in BYTE_OF_CHAR if char not in vocab]:
        raise InputError(f"{path} lacks byte tokens ({' '.join(missing)}): take a byte-level vocabulary")
    return vocab


def _read_merges(path: Path, vocab: dict[str, int]) -> list[tuple[str, str]]:
    merges, known = [], set(BYTE_OF_CHAR)
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        pair, joined, place = tuple(line.split()), "".join(line.split()), f"{path}, line {number}"
        # tiktoken knows a merge by its result alone: that is the same if each result is made in one way only.
        if len(pair) != 2 or not known.issuperset(pair) or joined in known:
            raise InputError(f"{place}: {line[:80]!r} must join two tokens made above it into a new one")
        if joined not in vocab:
            raise InputError(f"{place}: {joined[:80]!r} is not in vocab.json: take both from one model")
        known.add(joined)
        merges.append(pair)
    return merges
