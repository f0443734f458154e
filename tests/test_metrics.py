"""metrics.py against figures worked out by hand."""

import logging
import math
import re
from collections import Counter

import pytest

from minprefix.errors import InputError
from minprefix.metrics import bleu


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


def test_order_of_references_does_not_matter():
    references = [["a b c d e", "f g h i"], ["j k l m"]]
    outputs = ["a b c d i", "j k l n m"]
    assert bleu(outputs, references) == bleu(outputs, [texts[::-1] for texts in references])


def test_bleu_is_100_for_a_reference_in_another_case():
    assert bleu(["BLUE SPICE is a pub."], [["Another text.", "Blue Spice is a pub."]]) == {
        "BLEU": pytest.approx(100),
        "length_ratio": 1.0,
    }


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
        (["a", "b"], [["a"]], "2 outputs, but references for 1"),
        ([], [], "no output"),
        (["a", "b"], [["a"], []], "output 1 has no reference"),
        (["a"], [[""]], "output 0 has no reference"),
        (["a"], ["a"], "output 0 has no reference"),
    ],
)
def test_bleu_refuses(outputs, references, message):
    with pytest.raises(InputError, match=message):
        bleu(outputs, references)
