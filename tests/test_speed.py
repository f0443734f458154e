"""experiments/speed.py on tiny models: both sides compute the same, and the call itself is counted."""

import contextlib
import dataclasses
import itertools
import json
import time
from functools import partial

import pytest
import torch

from experiments import floor, sides, speed
from minprefix.checks import InputError

TINY = {"gpt2-medium": {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 300}}
TINY["gpt2-medium"] |= {"bos_token_id": 299, "eos_token_id": 299}
TINY["smollm2-135m"] = {"vocab_size": 300, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2}
TINY["smollm2-135m"] |= {"num_attention_heads": 6, "num_key_value_heads": 2, "tie_word_embeddings": True}
TINY["bart-large"] = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 300}


OPTIONS, FORCED = speed.Options(pairs=1), speed.Options(dtype="bfloat16")
ALIKE = ["prefix-step", "full-step", "smollm2-full"]


def load_tiny(name: str, folder, monkeypatch, dtype=torch.float32) -> tuple[list, sides.Work]:
    """Both jobs of a case on a tiny model, and a small Work for them."""
    pytest.importorskip("peft", reason="peft is a test dependency")
    monkeypatch.setattr(sides, "SCRATCH", folder)
    monkeypatch.setattr(sides, "SHAPES", TINY)
    case = speed.CASES[name]
    checkpoint = sides.make_checkpoint(case.shape)
    jobs = [sides.JOBS[job](variant, checkpoint, dtype) for job, variant in case.sides]
    work = dataclasses.replace(case.work, rows=min(case.work.rows, 3), source=7, target=5)
    return jobs, dataclasses.replace(work, beams=min(work.beams, 4))


@pytest.mark.parametrize("name", [*ALIKE, "beam-1", "beam-16", "smollm2-beam", "bart"])
def test_both_sides_compute_the_same(name, tmp_path, monkeypatch):
    monkeypatch.setattr(sides, "LEARNING_RATE", 1e-2)
    (ours, theirs), work = load_tiny(name, tmp_path, monkeypatch)
    first, other = ours(work), theirs(work)
    assert speed.CASES[name].agree(first, other)
    assert not work.beams or len(set(first[0])) > 1
    if not work.beams:  # a step lowers the loss: both by as much, but for rounding that AdamW enlarges
        change, others = ours(work)[0] - first[0], theirs(work)[0] - other[0]
        assert change < -1e-3 and change == pytest.approx(others, rel=0.01)


@pytest.mark.parametrize("name", ALIKE)
def test_in_bfloat16_both_sides_hold_frozen_weights_in_it_and_lose_nearly_the_same(
    name, tmp_path, monkeypatch
):
    (ours, theirs), work = load_tiny(name, tmp_path, monkeypatch, torch.bfloat16)
    (first, *norms), (other, *others) = ours(work), theirs(work)
    assert first == pytest.approx(other, rel=5e-3)
    assert norms == pytest.approx(others, rel=0.1, abs=1e-3)


def test_rows_have_prefixes_of_their_own_where_they_are_mixed(tmp_path, monkeypatch):
    (mixed, one), work = load_tiny("mixed", tmp_path, monkeypatch)
    assert mixed(work)[0] == one(work)[0] and mixed(work)[1:] != one(work)[1:]


def test_losses_and_ids_that_differ_do_not_agree():
    assert sides.agree([1.0, 2.0], [1.00005, 2.0]) and not sides.agree([1.0, 2.0], [1.0, 2.01])
    assert sides.agree([[1, 2]], [[1, 2]]) and not sides.agree([[1, 2]], [[1, 3]])


def test_the_peak_is_that_of_the_call_and_not_of_loading(monkeypatch):
    monkeypatch.setattr(speed, "JOB", [lambda work: [torch.ones(25_000_000).numel()]])
    monkeypatch.setattr(speed, "read_children", lambda: 0)  # other tests have had children
    torch.ones(100_000_000).sum()  # 400 MB, gone before the call
    reply = speed.time_call(speed.BASE)
    assert reply["outputs"] == [25_000_000] and 0.9e8 < reply["peak"] - reply["held"] < 1.5e8


def test_processor_seconds_do_not_count_what_others_do(monkeypatch):
    monkeypatch.setattr(speed, "JOB", [lambda work: time.sleep(0.3) or [1]])
    assert speed.time_call(speed.BASE, "processor")["seconds"] < 0.1 < speed.time_call(speed.BASE)["seconds"]


def test_a_side_that_ends_is_named():
    case = dataclasses.replace(speed.CASES["start"], sides=[["start_cold", "nobody"]] * 2)
    with (
        pytest.raises(InputError, match="the process of ours ended"),
        speed.open_sides(case, torch.float32, OPTIONS),
    ):
        pass


def replace_sides(monkeypatch, outputs: list, other: list) -> None:
    """Given outputs instead of processes; each call takes a second more than the last."""

    @contextlib.contextmanager
    def open_sides(case, dtype, how):
        seconds = itertools.count(1.0)
        fact = {"held": 1e9, "peak": 2e9}
        yield lambda work: [fact | {"seconds": next(seconds), "outputs": ids} for ids in (outputs, other)]

    monkeypatch.setattr(speed, "open_sides", open_sides)
    monkeypatch.setattr(speed, "measure_rates", lambda *_: {})


def test_agreement_is_said_only_of_what_was_compared(monkeypatch):
    for name, other, same in (("beam-1", 2, True), ("mixed", 3, True), ("prefix-to-full", 3, None)):
        replace_sides(monkeypatch, [[1], [2]], [[1], [other]])
        result = speed.measure_case(speed.CASES[name], torch.float32, speed.Options(pairs=3))
        assert result["agree"] is same and result["seconds"] == [[3, 4], [5, 6], [7, 8]]  # not the first


def test_sides_that_differ_give_no_result_in_float32(monkeypatch):
    replace_sides(monkeypatch, [[1]], [[2]])
    for measure in (partial(speed.measure_case, speed.CASES["beam-1"]), speed.measure_growth):
        with pytest.raises(InputError, match="do not agree"):
            measure(torch.float32, OPTIONS)
    assert speed.measure_case(speed.CASES["beam-1"], torch.bfloat16, OPTIONS)["agree"] is False


def test_growth_is_what_the_longer_text_took_more(monkeypatch):
    replace_sides(monkeypatch, [[1]], [[1]])
    found = speed.measure_growth(torch.float32, OPTIONS)
    step = [2 / speed.MORE, 2 / speed.MORE]  # each side's next call takes two seconds more
    for name, values in speed.GROWTH.items():
        assert found[name] == dict.fromkeys(values, step)


def test_the_floor_counts_weights_once_a_token_and_operations_for_every_beam():
    lm = floor.DECODERS["gpt2-medium"]
    one, five = (floor.count_decoder(lm, sides.Work(1, 40, 30, beams), 4) for beams in (1, 5))
    assert len(one) == 31 and one[:2] == five[:2]  # x, and the first token, before there are beams
    assert one[2][0] == five[2][0] and five[2][1] == 5 * one[2][1]
    assert 1.40e9 < one[1][0] < 1.43e9  # GPT-2 medium in float32, less its positions
    prefix, full = (floor.count_step(lm, speed.CASES["full-step"].work, trained) for trained in (False, True))
    small = floor.DECODERS["smollm2-135m"]
    assert round((small.blocks + small.head) / 1e6) == 134  # the 135 million less norms
    assert full[0][1] == pytest.approx(1.5 * prefix[0][1], rel=0.01) and full[1][0] > 10 * prefix[1][0]


def test_results_are_kept_beside_each_other_printed_and_drawn(tmp_path, monkeypatch, capsys):
    pytest.importorskip("pandas", reason="pandas is in the extra experiments")
    draw_speed = pytest.importorskip("experiments.draw_speed", reason="matplotlib is there, too")
    committed = json.loads(speed.RESULT.read_text())
    monkeypatch.setattr(speed, "RESULT", tmp_path / "speed.json")
    path = speed.Options(to="other").path()
    assert path == tmp_path / "speed-other.json"
    speed.write_result(path, committed)
    kept = speed.keep(path, "start", "bfloat16", {"not_available": "no units"})
    start = committed["start"] | {"bfloat16": {"not_available": "no units"}}
    assert kept == committed | {"start": start}, "with the same floors, from the best rates"
    speed.show(kept)
    rows = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "start, bfloat16 n/a: no units" in rows
    assert "beam-1 float32 True 0.39 0.35 0.59 0.75 5.17 13.19 1.34 1.78 1.97 0.90 -" in rows
    draw_speed.save(draw_speed.draw(kept), tmp_path / "speed.svg")
    assert (tmp_path / "speed.svg").stat().st_size > 5000
    kept["beam-1"]["float32"]["seconds"][0][0] = 0.001
    with pytest.raises(InputError, match="beam-1, float32 is faster than its floor"):
        speed.show(kept)


def test_the_rates_are_the_best_of_several_kernels(monkeypatch):
    monkeypatch.setattr(floor, "WIDE", 8)
    seconds = iter((0.5, 0.25, 0.3, 0.2))
    monkeypatch.setattr(floor, "time_best", lambda *_: next(seconds))
    assert floor.measure_rates(torch.float32) == {"bytes": 4 * 64 / 0.25, "operations": 2 * 3000**3 / 0.2}


def test_arguments_are_read_or_refused_and_bfloat16_is_measured_where_it_can_be(capsys):
    for argument, part in (
        ("beam1", "beam-1"),
        ("pairs=0", "pairs"),
        ("dtype=int8", "dtype"),
        ("a=b", "a"),
        ("clock=sun", "clock"),
    ):
        with pytest.raises(InputError, match=part):
            speed.parse_arguments([argument])
    names, options = speed.parse_arguments(["start", "pairs=2", "clock=processor"])
    assert (names, options.pairs, options.dtype, options.clock) == (["start"], 2, "", "processor")
    assert all(f"{name}," in speed.__doc__ for name in speed.CASES)
    skips = speed.explain_skip("beam-1", "float32", OPTIONS), speed.explain_skip("beam-1", "bfloat16", FORCED)
    assert skips == ("", "")
    assert "float32" in speed.explain_skip("start", "bfloat16", FORCED)
