"""train.py's order of the data, which theta it keeps, in which numbers it computes; what else a run leaves is
tested in test_commands.py and test_faults.py.
"""

import itertools
import os
import random
import signal
from pathlib import Path
from unittest import mock

import pytest
import torch

import sample
import train
from minprefix import InputError, hub, load_prefix
from minprefix.config import Config
from minprefix.store import read_pt
from tests.runs import assert_same_run, make_folder, read_log, settings_for, state_of, stop_in_evaluation
from train import make_batches

LENGTHS = random.Random(1).choices(range(5, 90), k=1003)
SHORT = ["max_steps=10", "eval_every=2", "eval_limit=5", "max_new_tokens=3", "save_seconds=0"]


@pytest.fixture(scope="module")
def folder(tiny_folder, tmp_path_factory) -> Path:
    return make_folder(tiny_folder, tmp_path_factory.mktemp("train"))


def test_batches_hold_every_index_once():
    batches = make_batches(LENGTHS, 8, seed=1, epoch=2)
    assert sorted(i for batch in batches for i in batch) == list(range(1003))
    assert sorted(map(len, batches))[:2] == [3, 8] and max(map(len, batches)) == 8
    assert make_batches([], 8, seed=0, epoch=0) == []


def test_batches_are_a_function_of_seed_and_epoch():
    batches = make_batches(LENGTHS, 8, seed=1, epoch=2)
    random.random()
    assert make_batches(LENGTHS, 8, seed=1, epoch=2) == batches
    assert make_batches(LENGTHS, 8, seed=1, epoch=3) != batches
    assert make_batches(LENGTHS, 8, seed=2, epoch=2) != batches


def test_batches_waste_little_and_come_in_random_order():

    batches = make_batches(LENGTHS, 8, seed=1, epoch=0)
    longest = [max(LENGTHS[i] for i in batch) for batch in batches]
    padded = sum(len(batch) * width for batch, width in zip(batches, longest))
    assert padded < 1.05 * sum(LENGTHS)
    rises = [first <= second for first, second in itertools.pairwise(longest)]
    assert 0.3 < sum(rises) / len(rises) < 0.7  # within a bucket that is not shuffled it would be 1


# --- which theta is kept ---


@pytest.fixture
def looks(monkeypatch) -> dict[str, list]:
    """The dev losses that are seen, of which the second is the least, and theta at each look."""
    found: dict[str, list] = {"losses": [3.0, 1.0, 2.0, 1.0, 1.5], "thetas": []}

    def measure(config: Config, lm, theta, encoded: list) -> float:
        found["thetas"].append({name: tensor.clone() for name, tensor in theta.state_dict().items()})
        return found["losses"][len(found["thetas"]) - 1]

    monkeypatch.setattr(train, "measure_loss", measure)
    return found


def holds(out: Path, theta: dict[str, torch.Tensor]) -> bool:
    """Whether a .pt file of a prefix without MLP, or of the whole model, holds these numbers."""
    saved = load_prefix(out)
    found = {f"{site}.P": P_theta for site, P_theta in saved.sites.items()} | saved.tensors
    return all(torch.equal(found[name], theta[name]) for name in found)


@pytest.mark.parametrize("method", ["prefix", "full"])
@pytest.mark.parametrize(("keep", "step"), [("best", 4), ("last", 10)])
def test_the_theta_that_is_kept(method, keep, step, looks, folder, tmp_path, capsys):
    out = tmp_path / "e2e.pt"
    train.main(settings_for(folder, out, *SHORT, "mlp_hidden=0", f"method={method}", f"keep={keep}"))
    assert [holds(out, theta) for theta in looks["thetas"]] == [2 * i == step for i in range(1, 6)]
    assert load_prefix(out).metrics["kept_step"] == read_log(out)[-1]["kept_step"] == step
    assert load_prefix(out).config["keep"] == keep
    assert "5 of 12 test records, spread evenly, other e2e files" in (said := capsys.readouterr().out)
    assert f"theta is that of step {step}" in said


def test_a_dev_loss_that_is_no_number_is_never_the_best(looks, folder, tmp_path):
    looks["losses"] = [float("nan")] * 5
    train.main(settings_for(folder, tmp_path / "e2e.pt", *SHORT, "mlp_hidden=0"))
    assert holds(tmp_path / "e2e.pt", looks["thetas"][-1])


@pytest.mark.parametrize("keep", ["best", "last"])
def test_patience_ends_a_training_and_it_is_not_begun_again(keep, looks, folder, tmp_path):
    out = tmp_path / "e2e.pt"
    stop_in_evaluation(settings_for(folder, out, *SHORT, "mlp_hidden=0", "patience=2", f"keep={keep}"))
    log = read_log(out)
    train.main([f"resume={state_of(out)}"])
    assert len(looks["thetas"]) == 4 and holds(out, looks["thetas"][1 if keep == "best" else 3])
    assert read_log(out)[:-1] == log and log[-1]["step"] == 8


def test_a_state_holds_a_theta_once_that_is_last_and_best(looks, folder, tmp_path):
    looks["losses"] = sorted(looks["losses"] * 2, reverse=True)
    outs = {keep: tmp_path / keep / "e2e.pt" for keep in ("best", "last")}
    for keep, out in outs.items():
        out.parent.mkdir()
        stop_in_evaluation(settings_for(folder, out, *SHORT, "method=full", f"keep={keep}"))
    sizes = {keep: state_of(out).stat().st_size for keep, out in outs.items()}
    assert sizes["best"] < 1.1 * sizes["last"]
    train.main([f"resume={state_of(outs['best'])}"])
    assert holds(outs["best"], looks["thetas"][4])


def test_what_was_best_before_a_stop_is_kept_after_it(folder, tmp_path, monkeypatch):
    """The dev loss rises at this rate, so that the least one is that of an early look."""
    whole, part = tmp_path / "whole" / "e2e.pt", tmp_path / "part" / "e2e.pt"
    for out in (whole, part):
        out.parent.mkdir()
    more = [*SHORT, "lr=0.9", "mlp_hidden=0", "loss=sum", "clip=100"]
    train.main(settings_for(folder, whole, *more))
    taken, take_step = [], train.take_step

    def interrupt_the_ninth(*given):
        taken.append(given)
        if len(taken) == 9:
            os.kill(os.getpid(), signal.SIGINT)
        return take_step(*given)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(train, "take_step", interrupt_the_ninth)
        train.main(settings_for(folder, part, *more))
    best = read_pt(state_of(part))["best"]
    assert 2 <= best["step"] <= 8 and best["step"] == load_prefix(whole).metrics["kept_step"]
    train.main([f"resume={state_of(part)}"])
    assert_same_run(part, whole)


# --- in which numbers ---


@pytest.mark.parametrize("method", ["prefix", "infix", "embedding", "full", "top2", "adapter", "lora"])
def test_bfloat16_trains_nearly_as_float32_and_sample_reads_it(method, folder, tmp_path, capsys):
    texts, losses = {}, {}
    for dtype in ("float32", "bfloat16"):
        out = tmp_path / f"{dtype}.pt"
        train.main(settings_for(folder, out, *SHORT, f"method={method}", f"dtype={dtype}"))
        said = capsys.readouterr().out
        texts[dtype] = [line for line in said.splitlines() if line.startswith("text ")]
        losses[dtype] = [line["loss"] for line in read_log(out) if "loss" in line]
        assert f" in {dtype}: " in said and load_prefix(out).config["dtype"] == dtype
    saved = load_prefix(out)
    assert {tensor.dtype for tensor in (saved.sites | saved.tensors).values()} == {torch.float32}
    assert losses["bfloat16"] == pytest.approx(losses["float32"], abs=0.02)
    assert losses["bfloat16"] != losses["float32"]
    sample.main(["--prefix", str(out), "--records", "5", "--dtype", "bfloat16"])
    sampled = [
        line.split(maxsplit=1)[1:] for line in capsys.readouterr().out.splitlines() if "bfloat16 " in line
    ]
    assert sampled == [line.split(maxsplit=1)[1:] for line in texts["bfloat16"]]


def test_sample_chooses_the_dtype_anew_or_takes_what_it_is_told(folder, tmp_path, monkeypatch):
    """The machine may be another than that of the training."""
    train.main(settings_for(folder, tmp_path / "a.pt", *SHORT, "dtype=bfloat16"))
    load, asked = sample.load_lm, []
    monkeypatch.setattr(sample, "load_lm", lambda *given: asked.append(given[1]) or load(*given))
    for flags in ([], ["--dtype", "float32"]):
        sample.main(["--prefix", str(tmp_path / "a.pt"), "--records", "1", *flags])
    assert asked == [None, torch.float32]


def test_a_run_goes_on_in_the_dtype_that_it_began_with(folder, tmp_path, monkeypatch):
    out = tmp_path / "e2e.pt"
    stop_in_evaluation(settings_for(folder, out, *SHORT))
    monkeypatch.setattr(hub, "choose_dtype", mock.Mock(side_effect=AssertionError))
    train.main([f"resume={state_of(out)}", "max_steps=010"])  # as typed: it need not look like the file's
    assert load_prefix(out).config["dtype"] == "float32"
    with pytest.raises(InputError, match=r"dtype=float32.* leave dtype= out"):
        stop_in_evaluation(settings_for(folder, tmp_path / "a.pt", *SHORT, "dtype=float32"))
        train.main([f"resume={tmp_path / 'a.state.pt'}", "dtype=bfloat16"])


@pytest.mark.parametrize(
    ("flags", "width", "expected"),
    [
        ({"avx512_bf16": True}, 576, torch.bfloat16),
        ({"amx_bf16": True, "avx512_bf16": False}, 1024, torch.bfloat16),
        ({"avx512_bf16": True}, 256, torch.float32),  # the bundled models
        ({"avx512_f": True, "amx_bf16": False}, 1024, torch.float32),
        ({}, 1024, torch.float32),
    ],
)
def test_auto_is_bfloat16_only_where_there_are_units_and_width(flags, width, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags, raising=False)
    assert hub.choose_dtype(width, "cpu") == expected


def test_a_pytorch_that_does_not_tell_what_the_processor_has_means_float32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert hub.choose_dtype(1024, "cpu") == torch.float32
