"""experiments/speed.py on tiny models: both sides compute the same, and the call itself is counted."""

import json

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
def test_both_sides_compute_the_same(name, scratch):
    case = speed.CASES[name]
    folder = speed.make_checkpoint(case.shape)
    ours, theirs = (load(folder, torch.float32) for load in case.loaders)
    work = shrink(case.work)
    first = ours(work)
    assert speed.agree(first, theirs(work))
    assert not work.beams or len(set(first[0])) > 1
    if not work.beams:  # a step has changed the parameters: both by as much
        second = ours(work)
        assert speed.agree(second, theirs(work)) and first != second


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


def test_the_peak_is_that_of_the_call_and_not_of_loading():
    def load(folder, dtype):
        torch.ones(100_000_000).sum()  # 400 MB, gone before the call
        return lambda work: [torch.ones(25_000_000).numel()]

    wire = Wire(speed.TINY["decode"])
    speed.serve(wire, load, None, torch.float32, speed.TINY["decode"])
    _, reply = wire.sent
    assert reply["outputs"] == [25_000_000] and 0.9e8 < reply["peak"] - reply["held"] < 1.5e8


def test_the_floor_counts_weights_once_a_token_and_operations_for_every_beam():
    one, five = (speed.count_gpt2(speed.Work(1, 40, 30, beams), 4) for beams in (1, 5))
    assert len(one) == 31 and one[1][0] == five[1][0] and five[1][1] == 5 * one[1][1]
    assert 1.40e9 < one[1][0] < 1.43e9  # GPT-2 medium in float32, less its positions
    prefix, full = (speed.count_step(speed.STEP, 4, trained) for trained in (False, True))
    assert full[0][1] == 1.5 * prefix[0][1]


def test_a_result_is_kept_beside_the_others_and_drawn(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(speed, "RESULT", tmp_path / "speed.json")
    case = {"names": ["ours", "theirs"], "target": 0.5, "ratio": 0.4, "seconds": [[1.0, 2.5]]}
    speed.keep("beam-1", "float32", case | {"floor": 0.2, "peak": [1e9, 2e9]})
    speed.keep("start", "float32", case)
    speed.keep("start", "bfloat16", {"not_available": "no units"})
    points = {name: {"1": [0.1, 0.2], "5": [0.2, 0.6]} for name in speed.GROWTH}
    speed.keep("growth", "float32", {"names": ["ours", "theirs"]} | points)
    results = json.loads(speed.RESULT.read_text())
    assert set(results) == {"beam-1", "start", "growth"} and results["start"]["float32"] == case
    speed.show(results)
    printed = capsys.readouterr().out
    assert "n/a: no units" in printed and "1.00     2.00   0.50" in printed
    draw_speed.save(draw_speed.draw(results), tmp_path / "speed.svg")
    assert (tmp_path / "speed.svg").stat().st_size > 5000


def test_a_bad_argument_is_refused():
    for argument, part in (("beam1", "beam-1"), ("pairs=0", "pairs"), ("dtype=int8", "dtype"), ("a=b", "a")):
        with pytest.raises(InputError, match=part):
            speed.parse_arguments([argument])
    assert speed.parse_arguments(["start", "pairs=2"]) == (["start"], 2, ["float32", "bfloat16"])
