"""Text to token ids and back: byte-level BPE, as of GPT-2, BART and SmolLM2, from a checkpoint's own files.

Two numberings meet here. A token's *rank* says how early its merge applies: the 256 bytes first, then the
merges in their order. A token's *id* is what the vocabulary says, and is the model's. They need not agree:
tiktoken works on ranks, a list turns them into ids.
"""

import re
import reprlib
import warnings
from collections.abc import Iterable
from pathlib import Path

import regex
import tiktoken
from tiktoken_ext.openai_public import r50k_pat_str

from minprefix.checks import InputError, explain, read_json

GPT2_SPECIAL = ("<|endoftext|>",)
BART_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
OWN_FILE = "put the checkpoint's own file there"
# How vocabularies spell each byte: its Latin-1 character if that prints, else one from U+0100 on.
PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
OTHERS = [byte for byte in range(256) if byte not in PRINTABLE]
BYTE_OF_CHAR = dict(zip(map(chr, [*PRINTABLE, *range(0x100, 0x144)]), PRINTABLE + OTHERS))
# r50k_pat_str has GPT-2's pieces. SmolLM2 takes out single digits first: white space ends there, too.
DIGIT_PIECES = r50k_pat_str.replace(r" ?\p{N}++", r"\p{N}").replace("++$", r"++(?=\p{N}|$)")
EITHER = {"use_regex": True, "trim_offsets": True}  # what old files leave out, and what has no effect
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False} | EITHER
DIGITS = {"type": "Digits", "individual_digits": True} | EITHER
# What changes ids or texts, wherever it is set, and is not reproduced here.
STRANGE = {"normalizer", "dropout", "byte_fallback", "fuse_unk", "ignore_merges", "rstrip", "single_word"}
STRANGE |= {"continuing_subword_prefix", "end_of_word_suffix", "split_special_tokens"}
STRANGE |= {"add_prefix_space", "add_bos_token", "add_eos_token"}
MANY = 100_000  # white space in a row, far below what overflows the stack of tiktoken's regular expressions
WHITE = "".join(char for char in map(chr, range(0x3001)) if char.isspace() and char not in "\x1c\x1d\x1e\x1f")
# Some 10,000 characters up to white space, or all. White space begins a piece where another character stands
# before it: a text that is cut there keeps its ids.
PART = re.compile(f"(?s:.{{10000}}.*?[^{WHITE}](?=[{WHITE}])|.+)")


class Tokenizer:
    """The ids of Hugging Face's tokenizers for the same files. Made by `load_tokenizer`."""

    def __init__(self, model: dict, merges: list[tuple[str, str]], added: list[dict], pieces: str):
        """model, added: as in tokenizer.json; merges: its pairs of tokens; pieces: the pattern to cut by."""
        vocab, tokens = model["vocab"], [*BYTE_OF_CHAR, *(left + right for left, right in merges)]
        self.added = {token["content"]: token["id"] for token in added}
        self.strips = {token["content"] for token in added if token.get("lstrip")}
        self.special_ids = {token["id"] for token in added if token.get("special")}
        self.bytes_of_id = {id: to_bytes(token) for token, id in (vocab | self.added).items()}
        unknown = vocab.get(model.get("unk_token"))  # stands for a byte without a token
        self.id_of_rank = [vocab.get(token, unknown) for token in tokens]
        self.missing = {byte for byte, id in zip(BYTE_OF_CHAR.values(), self.id_of_rank) if id is None}
        ranks = {to_bytes(token): rank for rank, token in enumerate(tokens)}
        self.bpe = tiktoken.Encoding("", pat_str=pieces, mergeable_ranks=ranks, special_tokens={})
        self.pieces = regex.compile(pieces)
        self.can_cut = set(WHITE).isdisjoint("".join(self.added))
        # Hugging Face looks for the special ones first, and for the others in what lies between them.
        late = {token["content"] for token in added if token.get("normalized", not token.get("special"))}
        self.finders = [make_finder(self.added.keys() - late), make_finder(late)]

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, none added; a literal `<|endoftext|>` or `</s>` in it is the special token.

        A token with lstrip, as BART's `<mask>` may be, takes in the white space before it. InputError if
        `text` is none.
        """
        if not isinstance(text, str):
            raise InputError(f"a text is {reprlib.repr(text)}: it must be a string")
        return self._encode_between(text, self.finders)

    def _encode_between(self, text: str, finders: list[re.Pattern]) -> list[int]:
        if not finders:
            return self._encode_plain(text)
        ids, start = [], 0
        for match in finders[0].finditer(text):
            before = text[start : match.start()]
            ids += self._encode_between(
                before.rstrip(WHITE) if match[0] in self.strips else before, finders[1:]
            )
            ids.append(self.added[match[0]])
            start = match.end()
        return ids + self._encode_between(text[start:], finders[1:])

    def encode_first(self, text: str, count: int) -> list[int]:
        """The first `count` ids of `text`, of which no more is read than they need."""
        ids: list[int] = []
        for part in PART.finditer(text) if self.can_cut else ([text],):
            ids += self.encode(part[0])
            if len(ids) >= count:
                break
        return ids[:count]

    def _encode_plain(self, text: str) -> list[int]:
        """tiktoken finds the pieces and merges their bytes; or merges only, where it cannot find them.

        Bytes that have no token are dropped before the merges, as by Hugging Face.
        """
        too_white = len(text) > MANY and any(len(run) > MANY for run in re.findall(f"[{WHITE}]+", text))
        if not too_white and self.missing.isdisjoint(text.encode(errors="replace")):
            return [self.id_of_rank[rank] for rank in self.bpe.encode_ordinary(text)]
        pieces = [piece.encode(errors="replace") for piece in self.pieces.findall(text)]
        pieces = filter(None, (piece.translate(None, bytes(self.missing)) for piece in pieces))
        return [self.id_of_rank[rank] for piece in pieces for rank in self.bpe._encode_single_piece(piece)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD, and an id without a token nothing."""
        with explain((TypeError, ValueError), "what should be decoded is no list of ids", "give one"):
            found = b"".join(self.bytes_of_id.get(int(id), b"") for id in ids)
        return found.decode("utf-8", errors="replace")


def make_finder(tokens: set[str]) -> re.Pattern:
    """Of the longest of these that stands at a place."""
    longest_first = sorted(filter(None, tokens), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def to_bytes(token: str) -> bytes:
    """The bytes that a token stands for; one not spelt in byte characters (an added one): its own."""
    is_spelt = all(char in BYTE_OF_CHAR for char in token)
    return bytes(BYTE_OF_CHAR[char] for char in token) if is_spelt else token.encode()


def load_tokenizer(folder: str | Path, special: tuple[str, ...] = GPT2_SPECIAL) -> Tokenizer:
    """From tokenizer.json in `folder`, or else from vocab.json and merges.txt.

    special: the model's tokens of that kind, which older files need not list. InputError where a file is
    missing or malformed, or asks for what is not reproduced here.
    """
    folder = Path(folder)
    path, config = folder / "tokenizer.json", read_optional(folder / "tokenizer_config.json")
    malformed = (AttributeError, LookupError, TypeError, ValueError)
    with explain(malformed, f"{folder}: the tokenizer's files are malformed", OWN_FILE):
        parts = read_json(path) if path.exists() else read_older_files(folder, config, special)
        pieces = check_parts(folder, parts, config, "<s>" in special)
        model, added = parts["model"], parts["added_tokens"]
        check_tokens(folder, [*model["vocab"].items(), *((token["content"], token["id"]) for token in added)])
        known = model["vocab"].keys() | {token["content"] for token in added}
        if lost := [token for token in list_special(folder, config) if token["content"] not in known]:
            text = f"{lost[0]['content']!r} is a special token without an id: read as text"
            warnings.warn(f"{folder}: {text}", stacklevel=3)
        return Tokenizer(model, check_merges(folder, model["merges"], model["vocab"]), added, pieces)


def read_optional(path: Path) -> dict:
    return read_json(path) if path.exists() else {}


def list_special(folder: Path, config: dict, special: tuple[str, ...] = ()) -> list[dict]:
    """These tokens, and the special ones that files name beside tokenizer.json and vocab.json."""
    named = config | read_optional(folder / "special_tokens_map.json")
    values = [*special, *(value for key, value in named.items() if key.endswith("_token"))]
    for tokens in (named.get(f"{kind}_special_tokens") or () for kind in ("additional", "extra")):
        values += tokens.values() if isinstance(tokens, dict) else tokens
    tokens = [value if isinstance(value, dict) else {"content": value} for value in values]
    return [token | {"special": True} for token in tokens if isinstance(token["content"], str)]


def read_older_files(folder: Path, config: dict, special: tuple[str, ...]) -> dict:
    """What transformers makes of a folder without tokenizer.json, in the form of that file."""
    vocab, ids = read_json(folder / "vocab.json"), read_optional(folder / "added_tokens.json")
    with explain((OSError, UnicodeDecodeError), f"{folder}/merges.txt cannot be read", OWN_FILE):
        lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
    merges = [line for line in lines if line.strip() and not line.startswith("#version")]
    tokens = [{"content": token} for token in ids] + list_special(folder, config, special)
    tokens += [token | {"id": int(id)} for id, token in config.get("added_tokens_decoder", {}).items()]
    latest = {token["content"]: {"id": (vocab | ids).get(token["content"])} | token for token in tokens}
    added = [token for token in latest.values() if token["id"] is not None]
    model = {"vocab": vocab, "merges": merges}
    return {"model": model, "added_tokens": added, "pre_tokenizer": BYTE_LEVEL, "decoder": BYTE_LEVEL}


def check_parts(folder: Path, parts: dict, config: dict, is_bart: bool) -> str:
    """The pattern of the pieces; InputError for what would give other ids or texts than Hugging Face's."""
    model, cutter, framer = parts["model"], parts["pre_tokenizer"], parts.get("post_processor") or BYTE_LEVEL
    facts = [fact for part in (config, model, parts, *parts["added_tokens"]) for fact in part.items()]
    strange = {key: value for key, value in facts if key in STRANGE and value}
    steps = [EITHER | step | {"trim_offsets": True} for step in cutter.get("pretokenizers", [cutter])]
    if steps not in ([BYTE_LEVEL], [DIGITS, BYTE_LEVEL]):
        strange["pre_tokenizer"] = cutter
    if model.get("type", "BPE") != "BPE":
        strange["model"] = model["type"]
    if parts["decoder"]["type"] != "ByteLevel":
        strange["decoder"] = parts["decoder"]
    if framer["type"] != "ByteLevel" and len(framer.get("single", "")) != 1 and not is_bart:
        strange["post_processor"] = framer  # puts tokens around a text; BART's encode_source does that itself
    for key, value in strange.items():
        raise InputError(f"{folder}: the tokenizer's {key} is {reprlib.repr(value)}: take one without it")
    return DIGIT_PIECES if DIGITS in steps else r50k_pat_str


def check_tokens(folder: Path, pairs: list[tuple[str, int]]) -> None:
    tokens = {}
    for token, id in pairs:
        if type(id) is not int or id < 0 or tokens.setdefault(id, token) != token:
            raise InputError(f"{folder}: token {token!r} has id {id!r}; each needs its own, from 0 on")


def check_merges(folder: Path, merges: list, vocab: dict[str, int]) -> list[tuple[str, str]]:
    pairs, known = [], {char for char in BYTE_OF_CHAR if char in vocab}
    for merge in merges:
        pair = tuple(merge.split() if isinstance(merge, str) else merge)
        joined = "".join(pair)
        # tiktoken knows a merge by its result alone: that is the same if each result is made in one way only.
        if len(pair) != 2 or not known.issuperset(pair) or joined in known or joined not in vocab:
            problem = f"merge {pair} must join two tokens made above it into a new one of the vocabulary"
            raise InputError(f"{folder}: {problem}: take all from one model")
        known.add(joined)
        pairs.append(pair)
    return pairs
