"""experiments/speed.py on tiny models: both sides compute the same, and the call itself is counted."""

import contextlib
import dataclasses
import itertools
import json
import sys
from types import SimpleNamespace

import pytest
import torch

from experiments import draw_speed, speed
from minprefix.errors import InputError

TINY = {"gpt2-medium": {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 300}}
TINY["gpt2-medium"] |= {"bos_token_id": 299, "eos_token_id": 299}
TINY["bart-large"] = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 300}


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    pytest.importorskip("peft", reason="peft is a test dependency")
    monkeypatch.setattr(speed, "SCRATCH", tmp_path)
    monkeypatch.setattr(speed, "SHAPES", TINY)
    return tmp_path


def shrink(work: speed.Work) -> speed.Work:
    return speed.Work(min(work.rows, 3), 7, 5, min(work.beams, 4), work.length_penalty)


@pytest.mark.parametrize("name", ["prefix-step", "full-step", "beam-1", "beam-16", "bart"])
def test_both_sides_compute_the_same(name, scratch, monkeypatch):
    monkeypatch.setattr(speed, "LEARNING_RATE", 1e-2)
    case = speed.CASES[name]
    folder = speed.make_checkpoint(case.shape)
    ours, theirs = (load(folder, torch.float32) for load in case.loaders)
    work = shrink(case.work)
    first, other = ours(work), theirs(work)
    assert case.same(first, other)
    assert not work.beams or len(set(first[0])) > 1
    if not work.beams:  # a step lowers the loss: both by as much, but for rounding that AdamW enlarges
        change, others = ours(work)[0] - first[0], theirs(work)[0] - other[0]
        assert change < -1e-3 and change == pytest.approx(others, rel=0.01)


def test_rows_have_prefixes_of_their_own_where_they_are_mixed(scratch):
    mixed, one = (
        load(speed.make_checkpoint("gpt2-medium"), torch.float32) for load in speed.CASES["mixed"].loaders
    )
    work = shrink(speed.CASES["mixed"].work)
    assert mixed(work)[0] == one(work)[0] and mixed(work)[1:] != one(work)[1:]


def test_losses_and_ids_that_differ_do_not_agree():
    assert speed.agree([1.0, 2.0], [1.00005, 2.0]) and not speed.agree([1.0, 2.0], [1.0, 2.01])
    assert speed.agree([[1, 2]], [[1, 2]]) and not speed.agree([[1, 2]], [[1, 3]])


class Wire:
    """serve's end of the connection, with the Works that it is sent."""

    def __init__(self, *works):
        self.works, self.sent = [*works, None], []

    def recv(self):
        return self.works.pop(0)

    def send(self, reply):
        self.sent.append(reply)


def test_the_peak_is_that_of_the_call_and_not_of_loading(monkeypatch):
    def load(folder, dtype):
        torch.ones(100_000_000).sum()  # 400 MB, gone before the call
        return lambda work: [torch.ones(25_000_000).numel()]

    none = SimpleNamespace(ru_maxrss=0)  # other tests have had children
    monkeypatch.setattr(speed.resource, "getrusage", lambda who: none)
    wire = Wire(speed.BASE)
    speed.serve(wire, load, None, torch.float32)
    _, reply = wire.sent
    assert reply["outputs"] == [25_000_000] and 0.9e8 < reply["peak"] - reply["held"] < 1.5e8


def test_a_side_that_ends_is_named():
    loaders = (sys.exit, sys.exit)  # which take no dtype
    case = dataclasses.replace(speed.CASES["beam-1"], shape="gpt2-mini", loaders=loaders)
    with pytest.raises(InputError, match="the process of ours ended"), speed.open_sides(case, torch.float32):
        pass


def run_sides(outputs: list, other: list):
    """open_sides with given outputs instead of processes; each call takes a second more than the last."""

    @contextlib.contextmanager
    def open_sides(case, dtype):
        seconds = itertools.count(1.0)
        fact = {"held": 1e9, "peak": 2e9}
        yield lambda work: [fact | {"seconds": next(seconds), "outputs": ids} for ids in (outputs, other)]

    return open_sides


@pytest.mark.parametrize(
    ("name", "other", "same"),
    [("beam-1", [[1], [2]], True), ("mixed", [[1], [3]], True), ("prefix-to-full", [[7], [8]], None)],
)
def test_agreement_is_said_only_of_what_was_compared(name, other, same, monkeypatch):
    monkeypatch.setattr(speed, "measure_rates", lambda dtype: {})
    monkeypatch.setattr(speed, "open_sides", run_sides([[1], [2]], other))
    result = speed.measure_case(speed.CASES[name], torch.float32, 3)
    assert result["agree"] is same and result["seconds"] == [[3, 4], [5, 6], [7, 8]]  # not the first


def test_sides_that_differ_give_no_result_in_float32(monkeypatch):
    monkeypatch.setattr(speed, "measure_rates", lambda dtype: {})
    monkeypatch.setattr(speed, "open_sides", run_sides([[1]], [[2]]))
    for measure in (lambda dtype: speed.measure_case(speed.CASES["beam-1"], dtype, 1), speed.measure_growth):
        with pytest.raises(InputError, match="do not agree"):
            measure(torch.float32)
    assert speed.measure_case(speed.CASES["beam-1"], torch.bfloat16, 1)["agree"] is False


def test_growth_is_what_the_longer_text_took_more(monkeypatch):
    monkeypatch.setattr(speed, "open_sides", run_sides([[1]], [[1]]))
    found = speed.measure_growth(torch.float32)
    step = [2 / speed.MORE, 2 / speed.MORE]  # each side's next call takes two seconds more
    assert {name: found[name] for name in speed.GROWTH} == {
        name: dict.fromkeys(values, step) for name, values in speed.GROWTH.items()
    }


def test_the_floor_counts_weights_once_a_token_and_operations_for_every_beam():
    one, five = (speed.count_gpt2(speed.Work(1, 40, 30, beams), 4) for beams in (1, 5))
    assert len(one) == 31 and one[:2] == five[:2]  # x, and the first token, before there are beams
    assert one[2][0] == five[2][0] and five[2][1] == 5 * one[2][1]
    assert 1.40e9 < one[1][0] < 1.43e9  # GPT-2 medium in float32, less its positions
    prefix, full = (speed.count_step(speed.STEP, 4, trained) for trained in (False, True))
    assert full[0][1] == pytest.approx(1.5 * prefix[0][1], rel=0.01) and full[1][0] > 10 * prefix[1][0]


@pytest.fixture
def kept(tmp_path, monkeypatch) -> dict:
    """Results of all kinds in tmp_path/speed.json."""
    monkeypatch.setattr(speed, "RESULT", tmp_path / "speed.json")
    case = {"title": "beams", "names": ["ours", "theirs"], "target": 0.5, "peak_target": None, "agree": True}
    case |= {"ratio": 0.4, "seconds": [[1.0, 2.5], [1.0, 2.0]], "peak": [1e9, 2e9]}
    speed.keep("start", "float32", case | {"target": None, "agree": None})
    speed.keep("start", "bfloat16", {"not_available": "no units"})
    points = {name: {"1": [0.1, 0.2], "5": [0.2, 0.6]} for name in speed.GROWTH}
    speed.keep("growth", "float32", {"names": ["ours", "theirs"]} | points)
    speed.keep("beam-16", "float32", case | {"rates": {"bytes": 2e12, "operations": 1e13}})
    speed.keep("beam-1", "float32", case | {"rates": {"bytes": 1e12, "operations": 1e15}, "peak_target": 0.8})
    return json.loads(speed.RESULT.read_text())


def test_results_are_kept_beside_each_other_and_drawn(kept, tmp_path, capsys):
    assert set(kept) == {"beam-1", "beam-16", "start", "growth"}
    bytes_ = 30 * 1.42e9 + 1.21e9  # 30 tokens, and x without the head
    assert kept["beam-1"]["float32"]["floor"] == pytest.approx(bytes_ / 2e12, rel=0.01)  # the best rates
    speed.show(kept)
    printed = capsys.readouterr().out
    assert "n/a: no units" in printed and "yes  0.400  (0.40-0.50)   0.50" in printed
    assert "1.00   2.00  0.50   0.80" in printed and "- " in printed
    draw_speed.save(draw_speed.draw(kept), tmp_path / "speed.svg")
    assert (tmp_path / "speed.svg").stat().st_size > 5000


def test_a_time_below_the_floor_is_an_error(kept):
    kept["beam-1"]["float32"]["seconds"][0][0] = 0.001
    with pytest.raises(InputError, match="beam-1, float32 is faster than its floor"):
        speed.show(kept)


def test_the_rates_are_the_best_of_several_kernels(monkeypatch):
    monkeypatch.setattr(speed, "WIDE", 8)
    seconds = iter((0.5, 0.25, 0.3, 0.2))
    monkeypatch.setattr(speed, "time_best", lambda call: next(seconds))
    assert speed.measure_rates(torch.float32) == {"bytes": 4 * 64 / 0.25, "operations": 2 * 3000**3 / 0.2}


def test_bfloat16_is_measured_where_it_can_be(monkeypatch):
    assert speed.explain_skip("beam-1", "float32", False) == ""
    assert speed.explain_skip("beam-1", "bfloat16", True) == ""
    assert "float32" in speed.explain_skip("start", "bfloat16", True)


def test_a_bad_argument_is_refused():
    for argument, part in (("beam1", "beam-1"), ("pairs=0", "pairs"), ("dtype=int8", "dtype"), ("a=b", "a")):
        with pytest.raises(InputError, match=part):
            speed.parse_arguments([argument])
    assert speed.parse_arguments(["start", "pairs=2"]) == (["start"], 2, ["float32", "bfloat16"])


def test_help_names_every_case(capsys):
    speed.main(["--help"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in [*speed.CASES, "growth"])
