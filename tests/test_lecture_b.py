"""What pages 6 to 9 and the appendices share: statistics, the checker of answers, what is listened to."""

import json
import math

import pytest
import torch

from minprefix import generate
from notebooks import lecture
from notebooks.lecture import check_answer, listen, read_ensemble, show_interval, slots_of, spread
from tests.conftest import make_gpt2


def test_one_run_is_called_so():
    assert spread([2.5]) == "2.50 (one run)"
    assert spread([1.0, 2.0, 3.0]) == "2.00 ± 1.00 (3 runs)"
    assert show_interval(-1.25, None, 1) == "-1.2 (one run, no interval)"
    assert show_interval(3.0, None, 2) == "+3.0 (2 runs, no interval)"
    assert show_interval(-21.06, 11.6, 3) == "-21.1 ± 11.6 (3 runs)"


@pytest.mark.parametrize(
    "answer, right, says",
    [
        (..., 3, "put your answer"),
        (3, 3, "right"),
        (3.05, 3, "right"),  # within 2%
        (4, 3, "not yet: count"),
        ("keys", "keys", "right"),
        ("values", "keys", "not yet: count"),
        (3, "keys", "not yet: count"),
        ("3", 3, "not yet: count"),
        (torch.ones(2), torch.ones(2), "right"),
        (torch.zeros(2), torch.ones(2), "not yet: count"),
        (torch.ones(3), torch.ones(2), "not yet: count"),
        (2, torch.ones(2), "not yet: count"),
        (torch.ones(2), 1, "not yet: count"),
        (None, 1, "not yet: count"),
    ],
)
def test_an_answer_is_checked(answer, right, says, capsys):
    check_answer(answer, right, "count")
    assert capsys.readouterr().out.startswith(says)


def test_listening_changes_nothing():
    """The same text as without, and of each step 2K candidates, the best first, that add up."""
    lm, prompt = make_gpt2(), [5, 6, 7]
    options = {"beams": 3, "max_new_tokens": 4, "min_new_tokens": 4}
    plain = generate(lm, [prompt], **options)
    trace, seen = listen(lm, [prompt], **options)
    assert generate(lm, [prompt], **options) == plain and len(trace) == 4
    for scores, parents, tokens in trace:
        assert len(scores) == len(parents) == len(tokens) == 6 and scores == sorted(scores, reverse=True)
    log_p = lm(torch.tensor([prompt]))[0, -1].log_softmax(-1)
    best = trace[0][0][0]
    assert math.isclose(best, log_p[trace[0][2][0]].item(), rel_tol=1e-4)
    positions, mask = seen[-1]
    assert positions.tolist() == [5, 5, 5] and mask.sum(1).tolist() == [6, 6, 6]


def test_slots_are_the_last_ones():
    lm = make_gpt2()
    cache = lm.empty_cache(2)
    lm.hidden(torch.tensor([[5, 6, 7], [8, 9, 10]]), cache)
    slots = slots_of(cache, 2)
    width = 2 * lm.config.n_embd
    assert slots.shape == (lm.config.n_layer, 2, width)
    head = lm.config.n_embd // lm.config.n_head
    assert torch.equal(slots[1, -1, :head], cache.keys[1][0, 0, -1])


def test_the_ensemble_is_read_apart_from_its_members(tmp_path, monkeypatch):
    (tmp_path / "ensemble").mkdir()
    systems = {"0": {"test BLEU": 1.0}, "ensemble": {"test BLEU": 3.0}, "1": {"test BLEU": 2.0}}
    (tmp_path / "ensemble" / "200-40.json").write_text(json.dumps({"systems": systems}))
    monkeypatch.setattr(lecture, "RESULTS", tmp_path)
    assert read_ensemble() == ([1.0, 2.0], 3.0)


def test_a_comparison_has_the_line_without_a_prefix():
    """In every picture that compares losses or BLEU there is a text that says so."""
    for draw, arguments in {
        lecture.draw_training: ({"mlp, random": {10: [1.0, 2.0]}, "mlp, words": {10: [3.0]}}, 2.5),
        lecture.draw_two_curves: ({"a": [1.0, 2.0], "b": [1.0, 2.0]}, 2.5),
        lecture.draw_site_losses: ({"encoder": [1.0, 2.0]}, 2.5),
        lecture.draw_paper: ({"mini": {"50": (1.0, None)}}, {"mini": -50.0}, {"epochs": 1.5}, 2.9),
    }.items():
        draw(*arguments)
        [axes] = lecture.plt.gcf().axes
        assert any(text.get_text().startswith("no prefix") for text in axes.texts), draw.__name__
        lecture.plt.close()
