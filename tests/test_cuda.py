"""On a GPU the same comes out as on a CPU; skipped where there is none."""

import os
import subprocess
import sys

import pytest
import torch

import sample
import train
from minprefix import load_prefix
from minprefix.generate import generate
from minprefix.methods import compute_sites, make_theta, target_loss
from tests.conftest import assert_close, random_sources
from tests.models import BATCHES, MODELS, make_prefix
from tests.runs import (
    ROOT,
    assert_same_log,
    make_folder,
    read_log,
    settings_for,
    state_of,
    stop_in_evaluation,
)
from tests.test_llama import BATCH, make_llama

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")
each_model = pytest.mark.parametrize("model", [*MODELS, "Llama"])
SHORT = ("max_steps=6", "eval_every=3", "eval_limit=4", "max_new_tokens=6", "dtype=float32")
ALMOST = 1e-4


@pytest.fixture(scope="module")
def folder(tiny_folder, tmp_path_factory):
    return make_folder(tiny_folder, tmp_path_factory.mktemp("cuda"))


def make(model: str):
    return make_llama() if model == "Llama" else MODELS[model]()


@each_model
def test_ids_are_those_of_the_cpu(model):
    """Greedy, beams and draws, of rows with several prefixes, with none, and of an ensemble."""
    lm, sources = make(model), random_sources(1, 4)
    mixed = [make_prefix(lm, 3), None, make_prefix(lm, 1, seed=1), make_prefix(lm, 3)]
    ways = [{"beams": 1}, {"beams": 4}, {"beams": 1, "sample": True, "top_k": 5, "top_p": 0.9}]
    ways += [{"beams": 3, "no_repeat_ngram_size": 2, "early_stopping": True}]
    calls = [({"prefix": mixed}, way) for way in ways]
    calls += [({"prefix": [mixed[0], mixed[2]], "ensemble": True}, ways[1])]
    expected = [generate(lm, sources, **rows, **way, max_new_tokens=9) for rows, way in calls]
    lm = lm.cuda()
    for (rows, way), ids in zip(calls, expected):
        assert generate(lm, sources, **rows, **way, max_new_tokens=9) == ids, way


@each_model
@pytest.mark.parametrize("method", ["prefix", "infix", "embedding", "full", "top2", "adapter", "lora"])
def test_losses_and_gradients_are_those_of_the_cpu(model, method):
    if model == "BART" and method == "infix":
        pytest.skip("BART has no infix")
    found = []
    for device in ("cpu", "cuda"):
        lm, batch = make(model).to(device), BATCH if model == "Llama" else BATCHES[model]
        torch.manual_seed(0)
        theta = make_theta(lm, method, 3, 8, [])
        loss, _ = target_loss(lm, compute_sites(lm, method, theta), batch)
        loss.backward()
        found.append([loss.detach().cpu(), *(p.grad.cpu() for p in theta.parameters() if p.grad is not None)])
    for ours, theirs in zip(*found, strict=True):
        assert_close(ours, theirs, ALMOST)


@pytest.mark.parametrize("method", ["prefix", "full", "lora"])
def test_a_run_is_resumed_and_its_file_is_read_on_either_device(method, folder, tmp_path, capsys):
    outs = [tmp_path / name / "e2e.pt" for name in ("cpu", "cuda", "resumed")]
    for out in outs:
        out.parent.mkdir()
    more = (*SHORT, f"method={method}")
    train.main(settings_for(folder, outs[0], *more))
    for out in outs[1:]:
        arguments = settings_for(folder, out, *more, "device=cuda")
        if out == outs[1]:
            train.main(arguments)
        else:
            stop_in_evaluation(arguments)
            train.main([f"resume={state_of(out)}"])
        assert_same_log(read_log(out)[:-1], read_log(outs[0])[:-1], rel=1e-3)
    capsys.readouterr()
    texts = []
    for device, out in (("cpu", outs[1]), ("cuda", outs[0])):
        sample.main(["--prefix", str(out), "--device", device, "--records", "3"])
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]


def test_in_bfloat16_a_run_learns_as_it_does_in_float32(folder, tmp_path):
    losses = []
    for dtype in ("float32", "bfloat16"):
        (tmp_path / dtype).mkdir()
        out = tmp_path / dtype / "e2e.pt"
        train.main(settings_for(folder, out, *SHORT, "device=cuda", f"dtype={dtype}"))
        losses.append([line["loss"] for line in read_log(out) if "loss" in line])
        assert load_prefix(out).sites["decoder"].dtype == torch.float32
    assert losses[1] == pytest.approx(losses[0], rel=0.03)


def test_torchrun_with_nccl_leaves_what_one_process_leaves(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    for name in ("alone", "ranks"):
        (tmp_path / name).mkdir()
    alone, ranks = tmp_path / "alone" / "e2e.pt", tmp_path / "ranks" / "e2e.pt"
    train.main(settings_for(folder, alone, *SHORT, "device=cuda"))
    count = str(torch.cuda.device_count())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", count]
    arguments = settings_for(folder, ranks, *SHORT, "device=cuda")
    run = subprocess.run([*command, str(ROOT / "train.py"), *arguments], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert_same_log(read_log(ranks), read_log(alone), rel=1e-4)
