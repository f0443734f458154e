"""Text to token ids and back: GPT-2's byte-level byte-pair encoding, from a checkpoint's own vocab.json and merges.txt.

Two numberings meet here. A token's *rank* says how early its merge applies: the 256 bytes first, then the lines of
merges.txt. A token's *id* is what vocab.json says, and is the model's. They need not agree: tiktoken works on ranks, a
list turns them into ids.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import tiktoken

from minprefix.errors import InputError

END_OF_TEXT = "<|endoftext|>"
# GPT-2's pieces: contractions, words, numbers, other signs (each with the space before it), and runs of white space.
PIECES = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"


def _spell_bytes() -> dict[str, bytes]:
    """How vocab.json spells each byte: as its Latin-1 character if that prints, else as one from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)) - set(printable))
    return {chr(b): bytes([b]) for b in printable} | {
        chr(0x100 + n): bytes([b]) for n, b in enumerate(others)
    }


BYTE_OF_CHAR = _spell_bytes()


def _to_bytes(token: str) -> bytes:
    """The bytes that `token` stands for; a token not spelt in byte characters (an added one) stands for itself."""
    if all(char in BYTE_OF_CHAR for char in token):
        return b"".join(BYTE_OF_CHAR[char] for char in token)
    return token.encode()


class Tokenizer:
    """The ids of Hugging Face's GPT-2 tokenizer for the same files. Made by `load_tokenizer`."""

    def __init__(self, vocab: dict[str, int], merges: list[tuple[str, str]]):
        """`vocab`: id of each token; `merges`: pairs of tokens in the order they apply, each result in `vocab`."""
        tokens = [*BYTE_OF_CHAR, *(left + right for left, right in merges)]
        special = [END_OF_TEXT] if END_OF_TEXT in vocab else []
        self.id_of_rank = [vocab[token] for token in tokens + special]
        self.bytes_of_id = {id: _to_bytes(token) for token, id in vocab.items()}
        self.bpe = tiktoken.Encoding(
            "gpt2",
            pat_str=PIECES,
            mergeable_ranks={_to_bytes(token): rank for rank, token in enumerate(tokens)},
            special_tokens={token: len(tokens) for token in special},
        )

    def encode(self, text: str) -> list[int]:
        """The ids of `text`. A literal `<|endoftext|>` in it becomes the special token, as with Hugging Face's."""
        return [self.id_of_rank[rank] for rank in self.bpe.encode(text, allowed_special="all")]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; bytes that are not UTF-8 (half a character) become U+FFFD. InputError on unknown ids."""
        ids = [int(id) for id in ids]
        if unknown := [id for id in ids if id not in self.bytes_of_id]:
            raise InputError(
                f"Token id {unknown[0]} is not in the vocabulary: do model and tokenizer belong together?"
            )
        return b"".join(self.bytes_of_id[id] for id in ids).decode("utf-8", errors="replace")


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of `folder`, from its vocab.json and merges.txt. InputError when a file is missing or malformed."""
    vocab = _read_vocab(Path(folder) / "vocab.json")
    return Tokenizer(vocab, _read_merges(Path(folder) / "merges.txt", vocab))


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}): put the checkpoint's own file there.") from None


def _read_vocab(path: Path) -> dict[str, int]:
    try:
        vocab = json.loads(_read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}): put the checkpoint's own file there.") from None
    if not isinstance(vocab, dict) or not all(type(id) is int and id >= 0 for id in vocab.values()):
        raise InputError(f"{path} must be one JSON object from token to id (0, 1, ...).")
    token_of_id = {}
    for token, id in vocab.items():
        if token_of_id.setdefault(id, token) != token:
            raise InputError(
                f"{path} gives id {id} to both {token_of_id[id]!r} and {token!r}: make the ids unique."
            )
    if missing := [char for char in BYTE_OF_CHAR if char not in vocab]:
        raise InputError(
            f"{path} lacks {len(missing)} of the 256 byte tokens, {missing[0]!r} among them: "
            "only byte-level vocabularies such as GPT-2's are supported."
        )
    return vocab


def _read_merges(path: Path, vocab: dict[str, int]) -> list[tuple[str, str]]:
    merges, known = [], set(BYTE_OF_CHAR)
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        pair = tuple(line.split())
        where = f"{path}, line {number}"
        if len(pair) != 2:
            raise InputError(f"{where}: expected two tokens separated by a space, found {line[:80]!r}.")
        if "".join(pair) not in vocab:
            raise InputError(
                f"{where}: {''.join(pair)!r} is not in vocab.json: do the two files belong together?"
            )
        # tiktoken knows merges by their result alone: it equals Hugging Face's only if each result has one origin.
        if not known.issuperset(pair) or "".join(pair) in known:
            raise InputError(
                f"{where}: {line[:80]!r} must join two tokens made above it into one not made above it."
            )
        known.add("".join(pair))
        merges.append(pair)
    return merges
