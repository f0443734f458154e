"""Text to token files for pretrain.py: documents, records made of them, and the check against test texts.

A corpus is a folder of .txt or .txt.xz files in UTF-8: one paragraph a line, an empty line between documents.
In a file whose name starts with "dialogues" every line is a document.
"""

import hashlib
import json
import lzma
import multiprocessing
import random
import re
import zlib
from functools import partial
from pathlib import Path

import numpy as np
from records import EOT, make_records
from tokenizers import ByteLevelBPETokenizer

from minprefix.checks import InputError, explain
from minprefix.store import write_atomically

GIVEN = 1 << 15  # this bit on a token: it belongs to a record, which is read and never predicted
# Share of the training tokens for each file, OTHER for further ones; simple language weighs most.
SHARES = {"simplewiki": 0.45, "enwiki_short": 0.27, "enwiki_long": 0.18, "dialogues_sgd": 0.10}
OTHER = 0.5
RECORD_SHARE = 1 / 3  # of the paragraphs
NGRAM = 13  # words in a row that count as overlap

Document = list[str]  # its paragraphs


# ---- documents ----


def find_files(folder: str) -> dict[str, Path]:
    """{name without suffix: path} of the text files in a folder."""
    paths = [path for path in sorted(Path(folder).glob("*.txt*")) if path.suffix in (".txt", ".xz")]
    if not folder or not paths:
        raise InputError(f"no .txt or .txt.xz in corpus={folder}: give the folder, or set MINPREFIX_CORPUS")
    return {path.name.split(".")[0]: path for path in paths}


def read_documents(path: Path) -> list[Document]:
    kinds, advice = (OSError, EOFError, lzma.LZMAError, UnicodeDecodeError), "replace it, or take it away"
    unpack = lzma.open if path.suffix == ".xz" else open
    with explain(kinds, f"{path} cannot be read", advice), unpack(path, "rt", encoding="utf-8") as file:
        text = file.read()
    if path.name.startswith("dialogues"):
        return [[line] for line in text.split("\n") if line]
    return [[line for line in part.split("\n") if line] for part in text.split("\n\n") if part.strip()]


def is_held_out(document: Document) -> bool:
    """One document in a hundred, by a hash: the split is the same however much is read."""
    return zlib.crc32("\n".join(document).encode()) % 100 == 0


# ---- overlap with test texts ----


def hash_ngrams(text: str) -> set[bytes]:
    """Its runs of 13 words, as 64-bit hashes: with 32 bits most hits would be chance."""
    words = re.findall(r"\w+", text.lower())
    runs = (" ".join(words[i : i + NGRAM]).encode() for i in range(len(words) - NGRAM + 1))
    return {hashlib.blake2b(run, digest_size=8).digest() for run in runs}


def read_tests(folder: str | None) -> dict[str, set[bytes]]:
    """{file name: hashes of its runs of words} of the .txt files in a folder, one test text a line."""
    paths = sorted(Path(folder).glob("*.txt")) if folder else []
    if folder and not paths:
        raise InputError(f"no .txt file in tests={folder}: give a folder of texts, or leave tests= out")
    lines = {path.stem: path.read_text(encoding="utf-8").splitlines() for path in paths}
    return {name: set().union(*map(hash_ngrams, texts)) for name, texts in lines.items()}


# ---- tokens ----


def train_tokenizer(corpus: str, out: Path, vocab_size: int, sample: int) -> None:
    """Trains a byte-level BPE like GPT-2's on `sample` characters; vocab.json and merges.txt go to `out`."""
    files, lines = find_files(corpus), []
    for path in files.values():
        paragraphs = [paragraph for document in read_documents(path) for paragraph in document]
        random.Random(0).shuffle(paragraphs)
        sizes = np.cumsum([len(paragraph) for paragraph in paragraphs])
        lines += paragraphs[: np.searchsorted(sizes, sample / len(files), side="right")]
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(lines, vocab_size=vocab_size, special_tokens=[EOT], show_progress=False)
    bpe.save_model(str(out))


def encode_document(
    document: Document, bpe: ByteLevelBPETokenizer, rng: random.Random, record_share: float
) -> list[np.ndarray]:
    """Pieces (uint16), each closed by <|endoftext|>: the plain paragraphs, and each record with its text."""

    def encode(text: str) -> np.ndarray:
        return np.array(bpe.encode(text).ids, dtype=np.uint16)

    end, plain, pieces = encode(EOT), [], []
    for paragraph in document:
        if rng.random() >= record_share:
            plain.append(paragraph)
            continue
        for record, text in make_records(paragraph, rng):
            pieces.append(np.concatenate((encode(record) | GIVEN, encode(text), end)))
    return [np.concatenate((encode("\n".join(plain)), end)), *pieces] if plain else pieces


def encode_chunk(
    job: tuple[int, list[Document]], bpe_folder: Path, tests: dict[str, set[bytes]], record_share: float
) -> tuple[list[np.ndarray], dict[str, int]]:
    """The pieces of the documents that overlap with no test, and how many overlap with which."""
    seed, documents = job
    bpe = ByteLevelBPETokenizer(str(bpe_folder / "vocab.json"), str(bpe_folder / "merges.txt"))
    bpe.add_special_tokens([EOT])
    rng, pieces = random.Random(seed), []
    counts = {"documents": len(documents), "left_out": 0, **dict.fromkeys(tests, 0)}
    for document in documents:
        runs = hash_ngrams("\n".join(document)) if tests else set()
        hits = [name for name, test in tests.items() if not runs.isdisjoint(test)]
        for name in hits:
            counts[name] += 1
        counts["left_out"] += bool(hits)
        if not hits:
            pieces += encode_document(document, bpe, rng, record_share)
    return pieces, counts


def encode_until(
    documents: list[Document], tokens: float, seed: int, pool, worker, chunk: int = 64
) -> tuple[list[np.ndarray], dict[str, int]]:
    """Encodes documents in their order until there are enough tokens -> the pieces and the summed counts."""
    jobs = [(seed + i, documents[i : i + chunk]) for i in range(0, len(documents), chunk)]
    pieces, totals, size = [], {}, 0
    for some, counts in pool.imap(worker, jobs):
        pieces += some
        totals = {name: totals.get(name, 0) + count for name, count in counts.items()}
        size += sum(map(len, some))
        if size >= tokens:
            break
    return pieces, totals


def prepare(
    corpus: str, work: Path, tokens: int, seed: int = 0, tests: str | None = None, workers: int = 2
) -> None:
    """Writes train.npy, heldout.npy (plain text), heldout_records.npy and, last, data.json with the counts.

    uint16, pieces in random order. No document is in two files; the held-out ones have at least 100,000
    tokens where the corpus is large enough.
    """
    files, hashes = find_files(corpus), read_tests(tests)
    weights = {name: SHARES.get(name, OTHER) for name in files}
    pieces = {"train": [], "heldout": [], "heldout_records": []}
    report = {"seed": seed, "sources": {}}
    for name, path in files.items():
        documents = read_documents(path)
        random.Random(seed).shuffle(documents)
        held_out = [document for document in documents if is_held_out(document)]
        documents = [document for document in documents if not is_held_out(document)]
        share = weights[name] / sum(weights.values())
        for file, part, n, record_share in (
            ("train", documents, tokens, RECORD_SHARE),
            ("heldout", held_out[::2], 100_000, 0.0),
            ("heldout_records", held_out[1::2], 100_000, 1.0),
        ):
            worker = partial(encode_chunk, bpe_folder=work, tests=hashes, record_share=record_share)
            with multiprocessing.Pool(workers) as pool:
                some, counts = encode_until(part, share * n, seed, pool, worker)
            pieces[file] += some
            if file == "train":
                report["sources"][name] = counts
    for file, arrays in pieces.items():
        report[file] = save_tokens(arrays, work / f"{file}.npy", seed)
    write_atomically(work / "data.json", lambda part: part.write_text(json.dumps(report, indent=1) + "\n"))


def save_tokens(pieces: list[np.ndarray], path: Path, seed: int) -> dict[str, int]:
    if not pieces:
        raise InputError(f"the corpus is too small for {path.name}: give at least 1,000 documents")
    random.Random(seed).shuffle(pieces)
    ids = np.concatenate(pieces)
    np.save(path, ids)
    return {"tokens": len(ids), "of_records": int((ids >= GIVEN).sum())}
