"""Text in, numbers out: each metric by the definition behind the figures that papers print.

`outputs` is a list of texts, `references` a list of texts for each of them; an output may be empty, a blank
reference does not count. All raise InputError where an output has no reference. BLEU, ROUGE and TER are on
the scale 0 to 100 (TER can be larger, and less is better), NIST and CIDEr on their own. METEOR is a Java
program: experiments/meteor.py runs it, for tables only.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache, reduce
from itertools import zip_longest
from operator import or_

import numpy as np

from minprefix.checks import InputError

COCO_WORD = re.compile(  # what the Penn Treebank's tokeniser leaves after the COCO tools drop punctuation
    r"""(?x) (?:[a-z]\.)+(?!\w)                                   # initials
    | \w+?(?=n['’]t\b) | n['’]t\b | ['’](?:s|m|d|ll|re|ve)\b      # do n't, it 's
    | \d+(?:[.,:]\d+)+(?:[-/]\w+)*                                # 3,000
    | \w+(?:[-/&]\w+|['’](?!(?:s|m|d|ll|re|ve|t)\b)[a-z]\w*)*     # family-friendly, o'donnell
    | [^\w\s.?!,:;'"`’‘“”–—-]                                     # £ and brackets stay"""
)


@cache
def load_13a() -> Callable[[str], str]:
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a  # here, for --help needs none of it

    return Tokenizer13a()


def words_13a(text: str) -> list[str]:
    """The lower-case words of mteval-v13a."""
    return load_13a()(text.lower()).split()


def words_coco(text: str) -> list[str]:
    """The lower-case words of the COCO tools (Penn Treebank, no punctuation), by a regular expression instead
    of their Java program; of 9,365 E2E references 12 come out differently."""
    return COCO_WORD.findall(text.lower())


class CocoTokenizer:
    tokenize = staticmethod(words_coco)


def split_signs(text: str) -> str:
    """The text in lower case with blanks around every sign, as WebNLG's script prepares it."""
    return " ".join(re.findall(r"\w+|[^\w\s]", text.lower()))


def bleu(outputs: list[str], references: list[Sequence[str]]) -> dict[str, float]:
    """Corpus BLEU as the E2E challenge computes it (lower case, 13a tokens, all references) and
    "length_ratio", the length of the outputs over that of the closest references."""
    import sacrebleu  # here, for --help needs none of it

    streams = _streams(outputs, references)
    # force: no warning that outputs look tokenised
    result = sacrebleu.BLEU(lowercase=True, tokenize="13a", force=True).corpus_score(outputs, streams)
    return {"BLEU": result.score, "length_ratio": result.sys_len / result.ref_len}


def ter(outputs: list[str], references: list[Sequence[str]]) -> dict[str, float]:
    """Translation edit rate: the fewest edits and shifts to a reference, over the mean length of the
    references. Lower case, words between blanks."""
    import sacrebleu  # here, for --help needs none of it

    return {"TER": sacrebleu.TER().corpus_score(outputs, _streams(outputs, references)).score}


def nist(outputs: list[str], references: list[Sequence[str]]) -> dict[str, float]:
    """NIST-5 (Doddington 2002) as mteval-v13a computes it: an n-gram counts as often as one reference has it,
    and weighs the bits that its last word adds, estimated on all references. Lower case, 13a tokens."""
    rows, total = tokenize_all(words_13a, outputs, references), 0.0
    seen = Counter({(): sum(len(words) for _, *texts in rows for words in texts)})
    for n in range(1, 6):
        counts = [[_count(words, n) for words in row] for row in rows]
        seen.update(gram for _, *texts in counts for text in texts for gram in text.elements())
        bits = 0.0
        for output, *texts in counts:
            matched = output & reduce(or_, texts)  # of a gram the fewer: in the output, or in one reference
            bits += sum(k * math.log2(seen[gram[:-1]] / seen[gram]) for gram, k in matched.items())
        total += bits / max(1, sum(output.total() for output, *_ in counts))
    ratio = sum(len(words) for words, *_ in rows) / sum(np.mean([*map(len, texts)]) for _, *texts in rows)
    # half the score at two thirds of the references' mean length
    penalty = 0.5 ** (math.log(min(1, ratio)) / math.log(1.5)) ** 2 if ratio else 0
    return {"NIST": total * penalty}


def rouge_l(outputs: list[str], references: list[Sequence[str]]) -> dict[str, float]:
    """ROUGE-L of the COCO tools: F with beta = 1.2 of the best precision and the best recall over the
    references (not of one and the same), mean over outputs. COCO words."""
    from rouge_score.rouge_scorer import RougeScorer  # here, for it takes as long to import as torch

    scorer, figures = RougeScorer(["rougeL"], tokenizer=CocoTokenizer()), []
    for output, texts in zip(outputs, check_references(outputs, references)):
        found = [scorer.score(text, output)["rougeL"] for text in texts]
        p, r = max(score.precision for score in found), max(score.recall for score in found)
        figures.append((1 + 1.2**2) * p * r / (r + 1.2**2 * p) if p else 0.0)
    return {"ROUGE-L (COCO)": 100 * float(np.mean(figures))}


def cider(outputs: list[str], references: list[Sequence[str]]) -> dict[str, float]:
    """CIDEr-D (Vedantam et al. 2015), sigma 6: clipped tf-idf cosine over 1- to 4-grams, idf from these
    references, so it needs several records (one alone scores 0). COCO words, unstemmed."""
    rows, total = tokenize_all(words_coco, outputs, references), 0.0
    for n in range(1, 5):
        counts = [[_count(words, n) for words in row] for row in rows]
        df = Counter(gram for _, *texts in counts for gram in set().union(*texts))
        for words, row in zip(rows, counts):
            output, *others = [_weigh(count, df, len(rows)) for count in row]
            # the COCO tools compare the numbers of bigrams
            gaps = [max(1, len(words[0])) - max(1, len(text)) for text in words[1:]]
            nearness = [math.exp(-(gap**2) / (2 * 6**2)) for gap in gaps]
            total += np.mean([x * _clipped_cosine(output, other) for x, other in zip(nearness, others)])
    return {"CIDEr": float(10 * total / 4 / len(rows))}


def _weigh(count: Counter, df: Counter, records: int) -> dict:
    """tf-idf: how often a text has each n-gram, times the log of the share of records that have it."""
    return {gram: k * math.log(records / max(1, df[gram])) for gram, k in count.items()}


def _clipped_cosine(output: dict, reference: dict) -> float:
    norms = math.hypot(*output.values()) * math.hypot(*reference.values())
    # in the order of the output: a set's would differ from run to run, and with it the last digit
    common = [gram for gram in output if gram in reference]
    return sum(min(output[g], reference[g]) * reference[g] for g in common) / norms if norms else 0.0


def rouge(outputs: list[str], references: list[Sequence[str]], seed: int = 0) -> dict[str, float]:
    """ROUGE-1, -2 and -L of the package rouge-score with stemming, the best F over the references, each with
    the ends of a 95% bootstrap interval over the outputs (1,000 draws)."""
    from rouge_score.rouge_scorer import RougeScorer  # here, for it takes as long to import as torch

    names = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}
    scorer = RougeScorer(names, use_stemmer=True)
    best = map(scorer.score_multi, check_references(outputs, references), outputs)
    f = 100 * np.array([[found[name].fmeasure for name in names] for found in best])  # (records, 3)
    times = np.random.default_rng(seed).multinomial(len(f), [1 / len(f)] * len(f), 1000)  # (1000, records)
    low, high = np.percentile(times @ f / len(f), [2.5, 97.5], axis=0)  # (3,)
    found = {"": f.mean(0), " low": low, " high": high}
    return {name + end: float(x[i]) for i, name in enumerate(names.values()) for end, x in found.items()}


def first_three(texts: Sequence[str]) -> list[str]:
    """What WebNLG's script, which scores DART too, reads of the references."""
    return [split_signs(text) for text in texts[:3]]


def tokenize_all(tokenize: Callable, outputs: list[str], references: list[Sequence[str]]) -> list[list]:
    """For each output its words, and behind them the words of each of its references."""
    texts = zip(outputs, check_references(outputs, references))
    return [[tokenize(output), *map(tokenize, others)] for output, others in texts]


def _count(words: list[str], n: int) -> Counter:
    return Counter(zip(*(words[i:] for i in range(n))))


def _streams(outputs: list[str], references: list[Sequence[str]]) -> list[list[str | None]]:
    """The references as sacrebleu takes them: the first of each output, the second of each, ..."""
    return [list(stream) for stream in zip_longest(*check_references(outputs, references))]


def check_references(outputs: list[str], references: list[Sequence[str]]) -> list[list[str]]:
    """The references without the blank ones."""
    if not outputs or len(outputs) != len(references):
        raise InputError(f"{len(outputs) or 'no'} outputs, and references for {len(references)}: give both")
    # a text alone is a mistake, not a list of letters
    lists = [[] if isinstance(texts, str) else texts for texts in references]
    kept = [[text for text in texts if text.strip()] for texts in lists]
    if [] in kept:
        raise InputError(f"output {kept.index([])} has no reference (a list with at least one text)")
    return kept
