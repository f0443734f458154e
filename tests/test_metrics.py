"""metrics.py against figures worked out by hand, and on real references against other people's programs."""

import logging
import math
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from nltk.translate.nist_score import corpus_nist
from rouge_score.rouge_scorer import RougeScorer

from experiments import meteor as command
from experiments.meteor import meteor
from minprefix.checks import InputError
from tasks import find_files, pick, read_split, score
from tasks.metrics import bleu, cider, nist, rouge, rouge_l, split_signs, ter, words_13a, words_coco

ALL = (bleu, nist, rouge_l, cider, ter, rouge)


@pytest.fixture(scope="module")
def left_out() -> tuple[list[str], list[list[str]]]:
    """Real texts (the bundled sample's where there are none): the first reference of a record of E2E's dev
    set as its output, the others, from 1 to 42, as its references."""
    files = find_files("e2e", "auto" if os.environ.get("MINPREFIX_DATA") else "sample")
    records = [record for record in read_split(files, "dev") if len(record.references) > 1]
    texts = [record.references for record in pick(records, 150)]
    return [first for first, *_ in texts], [list(others) for _, *others in texts]


def as_coco(outputs, references, tokenize=words_coco) -> tuple[dict, dict]:
    """References and outputs as the scorers of pycocoevalcap take them."""
    gts = {i: [" ".join(tokenize(text)) for text in texts] for i, texts in enumerate(references)}
    return gts, {i: [" ".join(tokenize(output))] for i, output in enumerate(outputs)}


def judge(module: str):
    reason = "pycocoevalcap is a test dependency: pip install .[test]"
    return pytest.importorskip(f"pycocoevalcap.{module}", reason=reason)


def need_java() -> None:
    if not shutil.which("java"):
        pytest.skip("METEOR and the COCO tools' tokeniser need java")


def test_same_as_the_coco_tools(left_out):
    gts, res = as_coco(*left_out)
    theirs = judge("rouge.rouge").Rouge().compute_score(gts, res)[0]
    assert rouge_l(*left_out)["ROUGE-L (COCO)"] == pytest.approx(100 * theirs, rel=1e-9)
    theirs = judge("cider.cider").Cider().compute_score(gts, res)[0]
    assert cider(*left_out)["CIDEr"] == pytest.approx(theirs, rel=1e-9)
    gts, res = as_coco(*left_out, words_13a)
    theirs = judge("bleu.bleu").Bleu(4).compute_score(gts, res, verbose=0)[0][3]
    assert bleu(*left_out)["BLEU"] == pytest.approx(100 * theirs, rel=1e-6)


def test_coco_words_are_those_of_the_coco_tools_tokeniser(left_out):
    need_java()
    tokenizer = judge("tokenizer.ptbtokenizer").PTBTokenizer()
    texts = [text for texts in left_out[1] for text in texts]
    theirs = tokenizer.tokenize({i: [{"caption": text}] for i, text in enumerate(texts)})
    names = {"#": "£", "-lrb-": "(", "-rrb-": ")"}
    same = [words_coco(t) == [names.get(w, w) for w in theirs[i][0].split()] for i, t in enumerate(texts)]
    assert np.mean(same) > 0.99


def test_meteor_is_that_of_the_coco_tools(left_out):
    need_java()
    scorer = judge("meteor.meteor").Meteor()
    outputs, references = left_out[0][:8], left_out[1][:8]
    theirs = scorer.compute_score(*as_coco(outputs, references))[0]
    assert meteor(outputs, references) == {"METEOR": pytest.approx(100 * theirs, rel=1e-9)}


def test_meteor_without_java_or_its_package_says_why(monkeypatch, tmp_path):
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    assert meteor(["a"], [["a"]]) == {
        "METEOR": None,
        "METEOR missing": 'pip install "minprefix[meteor]" brings it',
    }
    monkeypatch.undo()
    judge("meteor.meteor")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert meteor(["a"], [["a"]]) == {"METEOR": None, "METEOR missing": "java is not on the PATH"}
    (tmp_path / "java").write_text("#!/bin/sh\necho out of memory >&2\nexit 1\n")
    (tmp_path / "java").chmod(0o755)
    assert meteor(["a"], [["a"]]) == {"METEOR": None, "METEOR missing": "java failed: out of memory"}


def test_nist_by_hand():
    # 4 words in the references. a: log2(4 / 2), b: log2(4 / 1), mean 1.5; "a b" after "a": log2(2 / 1).
    assert nist(["a b"], [["A b", "a c"]]) == {"NIST": pytest.approx(1.5 + 1)}
    # Each reference gives one word: both count. A length of 2 against 3 halves the score.
    assert nist(["a b"], [["a x", "b y"]]) == {"NIST": pytest.approx(2)}
    assert nist(["a b"], [["a b c"]]) == {"NIST": pytest.approx(0.5 * math.log2(3))}
    # "a" counts once of 2 words, as no one reference holds it twice: log2(4 / 2) / 2.
    assert nist(["a a"], [["a b", "c a"]]) == {"NIST": pytest.approx(0.5)}
    assert nist(["", ""], [["a b"], ["c"]]) == {"NIST": 0}


def test_nist_is_nltks_where_the_definitions_agree(left_out):
    """nltk takes the best reference of each output alone; with one reference that is all there is."""
    outputs, references = left_out[0], [texts[:1] for texts in left_out[1]]
    rows = [[words_13a(text) for text in texts] for texts in references]
    theirs = corpus_nist(rows, [words_13a(output) for output in outputs])
    assert nist(outputs, references)["NIST"] == pytest.approx(theirs, rel=1e-9)


def test_nist_with_many_references(left_out):
    assert nist(*left_out)["NIST"] == pytest.approx(reference_nist(*left_out), rel=1e-9)


def reference_nist(outputs, references) -> float:
    """mteval's NIST, n-gram by n-gram: each in an output is paid for while a reference has it left."""
    everything = [words_13a(text) for texts in references for text in texts]
    grams = Counter(
        tuple(w[i:j]) for w in everything for i in range(len(w)) for j in range(i + 1, i + 6) if j <= len(w)
    )
    size, total = sum(map(len, everything)), 0.0
    for n in range(1, 6):
        bits, count = 0.0, 0
        for output, texts in zip(outputs, references):
            words, used = words_13a(output), Counter()
            padded = [words_13a(text) for text in texts]
            for i in range(len(words) - n + 1):
                gram = tuple(words[i : i + n])
                used[gram] += 1
                count += 1
                held = max(sum(tuple(o[k : k + n]) == gram for k in range(len(o) - n + 1)) for o in padded)
                if used[gram] <= held:
                    bits += math.log2((grams[gram[:-1]] if n > 1 else size) / grams[gram])
        total += bits / count
    length = sum(len(words_13a(output)) for output in outputs)
    ratio = length / sum(sum(len(words_13a(t)) for t in texts) / len(texts) for texts in references)
    return total * (math.exp(-math.log(2) / math.log(1.5) ** 2 * math.log(ratio) ** 2) if ratio < 1 else 1)


def test_rouge_l_by_hand():
    # Best precision 2 / 2 ("a c" in the first), best recall 1 / 1 (all of the second): no reference has both.
    assert rouge_l(["a c"], [["a b c", "c"]]) == {"ROUGE-L (COCO)": pytest.approx(100)}
    # p = 2 / 4, r = 2 / 3; an empty output counts as 0.
    f = (1 + 1.44) * (2 / 4) * (2 / 3) / (2 / 3 + 1.44 * 2 / 4)
    assert rouge_l(["x a y b", ""], [["b a b!"], ["z"]]) == {"ROUGE-L (COCO)": pytest.approx(100 * f / 2)}


def test_cider_by_hand():
    # Two records, every word in one of them: idf log 2 throughout. The first output is its reference: cosine
    # 1 for n = 1 and 2, none for 3 and 4. The second shares 1 word of 2 (cosine 1 / 2) and is as long.
    assert cider(["a b", "c x"], [["a b"], ["c d"]]) == {"CIDEr": pytest.approx(10 * (2 + 0.5) / 4 / 2)}
    assert cider(["a b"], [["a b"]]) == {"CIDEr": 0}


def test_cider_does_not_depend_on_the_hash_seed():
    code = "from tasks.metrics import cider; import random; r = random.Random(0); "
    code += "t = lambda n: [' '.join(r.choices([*map(str, range(40))], k=60)) for _ in range(n)]; "
    code += "print(cider(t(30), [t(3) for _ in range(30)]))"
    line, root = [sys.executable, "-c", code], Path(__file__).resolve().parent.parent
    seeds = (os.environ | {"PYTHONHASHSEED": seed} for seed in "0123")
    assert len({subprocess.check_output(line, env=seed, cwd=root) for seed in seeds}) == 1


def test_ter_by_hand():
    # One substitution; a shift of a block counts once; the mean reference has (4 + 6) / 2 and 4 words.
    assert ter(["a b x d"], [["a b c d", "q r s t u v"]]) == {"TER": pytest.approx(100 / 5)}
    assert ter(["c d a b", ""], [["a b c d"], ["x y"]]) == {"TER": pytest.approx(100 * (1 + 2) / (4 + 2))}


def test_rouge_is_the_mean_of_rouge_score_and_its_interval_is_plausible(left_out):
    outputs, references = left_out[0][:40], [texts[:2] for texts in left_out[1][:40]]
    figures = rouge(outputs, references)
    assert figures == rouge(outputs, references)
    assert figures != rouge(outputs, references, seed=1)
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    for name, key in (("ROUGE-1", "rouge1"), ("ROUGE-2", "rouge2"), ("ROUGE-L", "rougeL")):
        best = [
            max(scorer.score(text, output)[key].fmeasure for text in texts)
            for output, texts in zip(outputs, references)
        ]
        assert figures[name] == pytest.approx(100 * np.mean(best))
        width = 2 * 1.96 * 100 * np.std(best) / len(best) ** 0.5  # of a normal interval
        assert figures[f"{name} high"] - figures[f"{name} low"] == pytest.approx(width, rel=0.15)
        assert figures[f"{name} low"] < figures[name] < figures[f"{name} high"]


def test_words():
    text = "It's the Blue Spice, a kid-friendly (cheap) pub: £20-25, they don't close. O'Donnell's"
    assert " ".join(words_coco(text)) == (
        "it 's the blue spice a kid-friendly ( cheap ) pub £ 20-25 they do n't close o'donnell 's"
    )
    assert words_13a("The pub, 3.5 stars.") == ["the", "pub", ",", "3.5", "stars", "."]
    assert split_signs("A.C. Cesena's 3.5") == "a . c . cesena ' s 3 . 5"


def test_score_by_group():
    outputs = ["a b c d.", "e f g", "h i"]
    references = [["a b c d .", "x"], ["e f h", "q", "", "r", "e f g"], ["h-i"]]
    figures = score("webnlg", outputs, references, ["seen", "unseen", "seen"])
    assert figures["groups"]["seen"] == score("webnlg", ["a b c d.", "h i"], [references[0], references[2]])
    # the fourth reference, which is the output, is not read, and the blank one is none of three
    assert figures["groups"]["unseen"]["TER"] == pytest.approx(100 * 1 / ((3 + 1 + 1) / 3))
    assert figures["TER"] != figures["groups"]["seen"]["TER"]
    assert "groups" not in score("webnlg", outputs, references, ["", "", ""])
    assert set(score("xsum", outputs, references)) >= {"ROUGE-1", "ROUGE-2 low", "ROUGE-L high"}


@pytest.mark.parametrize("metric", ALL)
def test_every_metric_takes_edge_cases(metric):
    outputs = ["", "a b c d e", "."]
    references = [["a"], ["z", " ", "a b c d e", *(f"text {i}" for i in range(46))], ["...", "d e f"]]
    figures = metric(outputs, references)
    assert all(isinstance(figure, float) and math.isfinite(figure) for figure in figures.values())
    assert figures == pytest.approx(metric(outputs, [texts[::-1] for texts in references]))
    best, worst = (
        metric([text, "q r s t u"], [["a b c d e"], ["q r s t u"]]) for text in ("a b c d e", "v w")
    )
    name = next(iter(best))
    assert worst[name] > best[name] == 0 if metric is ter else worst[name] < best[name]
    with pytest.raises(InputError, match="output 1 has no reference"):
        metric(["a", "b"], [["a"], [" "]])


def test_bleu_by_hand():
    # Output 1 (6 tokens with the full stop) is its reference; output 2 shares "the", "red", "." with its own.
    # 1-grams 6 + 3 of 6 + 4; 2-grams 5 + 1 of 5 + 3; 3-grams 4 + 0 of 4 + 2; 4-grams 3 + 0 of 3 + 1.
    # Lengths 10 against 12: brevity penalty exp(1 - 12 / 10).
    outputs = ["The inn is by water.", "the red pub."]
    references = [["the inn is by water."], ["The red inn is open."]]
    expected = 100 * math.exp(1 - 12 / 10) * (9 / 10 * 6 / 8 * 4 / 6 * 3 / 4) ** (1 / 4)
    assert bleu(outputs, references) == {
        "BLEU": pytest.approx(expected),
        "length_ratio": pytest.approx(10 / 12),
    }


def test_bleu_clips_counts_and_takes_the_closest_reference_length():
    # "a" counts once, as no reference has it twice. The closest reference has 5 tokens: no brevity penalty.
    # 1-grams 4 of 5 ("a" once), 2-grams ab bc cd = 3 of 4, 3-grams 2 of 3, 4-grams 1 of 2.
    references = [["a b c d", "x a b c d", "a b c d e f g h"]]
    score = bleu(["a a b c d"], references)
    assert score["BLEU"] == pytest.approx(100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** (1 / 4))
    assert score["length_ratio"] == 1.0


def reference_bleu(outputs, references) -> float:
    """BLEU-4 in plain Python over words and full stops, for any numbers of references."""
    matched, total, length, wanted = [0] * 4, [0] * 4, 0, 0
    for output, texts in zip(outputs, references):
        words, *others = [re.findall(r"[^\s.]+|\.", text.lower()) for text in (output, *texts)]
        length += len(words)
        wanted += min((abs(len(other) - len(words)), len(other)) for other in others)[1]
        for n in range(1, 5):
            grams = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
            best = Counter()
            for other in others:
                best |= Counter(tuple(other[i : i + n]) for i in range(len(other) - n + 1))
            matched[n - 1] += sum((grams & best).values())
            total[n - 1] += sum(grams.values())
    penalty = min(1.0, math.exp(1 - wanted / length))
    return 100 * penalty * math.prod(m / t for m, t in zip(matched, total)) ** 0.25


def test_bleu_with_different_numbers_of_references():
    outputs = [
        "The Copper Fork is a cheap pub by the river.",
        "It is a pub near the park.",
        "You can eat here with children.",
    ]
    references = [
        [
            "The Copper Fork is a pub by the river. It is cheap.",
            "A cheap pub by the river is The Copper Fork.",
        ],
        ["There is a pub near the park."],
        [
            "You can eat here.",
            "Bring your children.",
            "Families can eat here with children.",
            "It welcomes children.",
        ],
    ]
    assert bleu(outputs, references)["BLEU"] == pytest.approx(reference_bleu(outputs, references))
    first_only = [texts[:1] for texts in references]
    assert bleu(outputs, first_only)["BLEU"] == pytest.approx(reference_bleu(outputs, first_only))
    assert bleu(outputs, first_only)["BLEU"] < bleu(outputs, references)["BLEU"]


def test_empty_outputs_score_zero():
    assert bleu(["", ""], [["a text of five words"], ["another"]]) == {"BLEU": 0.0, "length_ratio": 0.0}
    assert 0 < bleu(["", "a text of five words"], [["short"], ["a text of five words"]])["BLEU"] < 100


def test_no_warnings(caplog):
    with caplog.at_level(logging.WARNING):
        bleu(["tokenised ."] * 200, [["tokenised ."]] * 200)
    assert not caplog.records


@pytest.mark.parametrize(
    ("outputs", "references", "message"),
    [
        (["a", "b"], [["a"]], "2 outputs, and references for 1"),
        ([], [], "no outputs, and references for 0"),
        (["a", "b"], [["a"], []], "output 1 has no reference"),
        (["a"], [[""]], "output 0 has no reference"),
        (["a"], ["a"], "output 0 has no reference"),
    ],
)
def test_bleu_refuses(outputs, references, message):
    with pytest.raises(InputError, match=message):
        bleu(outputs, references)
