"""BART's pre-training task (Lewis et al. 2020, Sec. 2.2) for pretrain.py: rebuild a text from a damaged copy.

Token ids come from the token files of corpus.py, in GPT-2's numbering, and leave in BART's.
"""

import json
from pathlib import Path

import numpy as np
import torch
from records import EOT
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

BOS, PAD, EOS, UNK = 0, 1, 2, 3  # BART's first ids; its last one is <mask>
SHIFT = 3  # GPT-2's id i > 0 is BART's i + 3; its 0, <|endoftext|>, is BART's </s>
MASKED = 0.3  # share of the words that spans take
SPAN = 3  # mean length of a span in words, Poisson
PERMUTED = 0.5  # share of the rows whose sentences change places; the paper's is 1


def number_vocabulary(gpt2: Path) -> dict[str, int]:
    """BART's vocab.json for the BPE of a GPT-2's: the same tokens, other special ones."""
    tokens = {token: i + SHIFT for token, i in json.loads(gpt2.read_text()).items() if i}
    special = {"<s>": BOS, "<pad>": PAD, "</s>": EOS, "<unk>": UNK}
    return special | tokens | {"<mask>": len(tokens) + len(special)}


def read_vocabulary(path: Path) -> dict[str, int]:
    """GPT-2's vocab.json of a checkpoint's BPE, which may be a BART's: number_vocabulary, undone."""
    vocabulary = json.loads(path.read_text())
    if "<mask>" not in vocabulary:
        return vocabulary
    tokens = {token: i - SHIFT for token, i in vocabulary.items() if SHIFT < i < vocabulary["<mask>"]}
    return {EOT: 0} | tokens


class Noise:
    """What the task must know of a vocabulary: which tokens begin a word, and which end a sentence."""

    def __init__(self, vocabulary: dict[str, int]):
        self.mask = vocabulary["<mask>"]
        self.begins_word, self.ends_sentence = np.zeros((2, len(vocabulary)), dtype=bool)
        for token, i in vocabulary.items():
            self.begins_word[i] = token[0] in "ĠĊ" or i == EOS  # a space, a line break
            self.ends_sentence[i] = token.rstrip("\"')").endswith((".", "!", "?", "Ċ"))

    def make_batch(self, ids: np.ndarray, seed: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A damaged copy for each row of ids (B, T), and what it was: four tensors.

        source (B, S), padded right, and its mask (B, S), long; target (B, T + 2) from <s> to </s>, long; lost
        (B, T + 2), bool: the target's tokens that a span took out of the source.
        """
        rng, rows = np.random.default_rng(seed), np.where(ids, ids + SHIFT, EOS)
        sources, lost = zip(*(self.damage(row, rng) for row in rows))
        source = pad_sequence([torch.tensor([BOS, *s, EOS]) for s in sources], True, PAD)  # (B, S)
        edge = np.full((len(rows), 1), BOS)
        target = torch.from_numpy(np.concatenate((edge, rows, edge + EOS), 1))  # (B, T + 2)
        no = np.zeros_like(edge, dtype=bool)
        return source, (source != PAD).long(), target, torch.from_numpy(np.concatenate((no, lost, no), 1))

    def damage(self, row: np.ndarray, rng: np.random.Generator) -> tuple[list[int], np.ndarray]:
        """Permutes a row's sentences (T,), then takes spans out -> the source, and which tokens are lost."""
        order = self.permute(row, rng) if rng.random() < PERMUTED else np.arange(len(row))
        source, taken = self.infill(row[order], rng)
        lost = np.zeros(len(row), dtype=bool)
        lost[order] = taken
        return source, lost

    def permute(self, row: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """An order of the row's tokens in which the sentences of each document have changed places."""
        order = []
        documents = np.split(np.arange(len(row)), np.flatnonzero(row == EOS) + 1)
        for document in documents:
            text = document[row[document] != EOS]
            sentences = np.split(text, np.flatnonzero(self.ends_sentence[row[text]]) + 1)
            order += [sentences[i] for i in rng.permutation(len(sentences))]
            order.append(document[len(text) :])  # </s> stays where the document ends
        return np.concatenate(order)

    def infill(self, row: np.ndarray, rng: np.random.Generator) -> tuple[list[int], np.ndarray]:
        """Text infilling: a <mask> for each span of words, even an empty one -> the source, what is lost."""
        starts = np.flatnonzero(self.begins_word[row[1:]] | (row[:-1] == EOS)) + 1
        words = np.split(np.arange(len(row)), starts)
        lengths, total = rng.poisson(SPAN, len(words)), round(MASKED * len(words))
        lengths = lengths[: np.searchsorted(lengths.cumsum(), total) + 1]
        lengths[-1] -= max(0, lengths.sum() - total)  # the last one fits
        kept = len(words) - lengths.sum()
        is_span = np.zeros(kept + len(lengths), dtype=bool)
        is_span[rng.choice(len(is_span), len(lengths), replace=False)] = True  # spans never overlap
        source, taken, at, spans = [], np.zeros(len(row), dtype=bool), 0, iter(lengths)
        for span in is_span:
            if not span:
                source += row[words[at]].tolist()
                at += 1
                continue
            source.append(self.mask)
            for word in words[at : (at := at + next(spans))]:
                taken[word] = True
        return source, taken
