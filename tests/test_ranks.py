"""torchrun train.py: several processes leave what one leaves, say it once, and none waits for the dead."""

import os
import re
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import train
from minprefix import ranks
from minprefix.store import read_pt
from tests import children
from tests.runs import (
    ROOT,
    TRAIN,
    assert_same_run,
    make_folder,
    read_log,
    settings_for,
    state_of,
    stop_at_third_step,
)

# 16 pairs: the last batch of an epoch has one, fewer than there are ranks
SETTINGS = ["batch_size=5", "max_steps=10", "eval_every=4", "eval_limit=5", "max_new_tokens=6"]
LONG = ["max_steps=150", "eval_every=50", "save_seconds=60"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", TRAIN[1]]
ALMOST = 1e-6  # sums are rounded in another order


@pytest.fixture(scope="module")
def folder(tiny_folder, tmp_path_factory) -> Path:
    return make_folder(tiny_folder, tmp_path_factory.mktemp("ranks"))


@pytest.fixture(autouse=True)
def quick_children(monkeypatch):
    """As in test_faults.py: children find our modules, and compute in one thread, as torchrun's do."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def two_outs(tmp_path) -> tuple[Path, Path]:
    """For a run of several ranks and one of one."""
    for name in ("several", "alone"):
        (tmp_path / name).mkdir()
    return tmp_path / "several" / "e2e.pt", tmp_path / "alone" / "e2e.pt"


def join_as(rank: int, world: int, port: int, arguments: list[str], errors: str, trouble=None) -> None:
    """What torchrun does for one of its processes, in one that starts at once."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    os.environ |= {"TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    if trouble:
        trouble(rank)
    children.run_train(arguments, errors)


def run_ranks(world: int, arguments: list[str], folder: Path, trouble=None) -> tuple[list[int], str]:
    """The ranks' exit codes, and what they said on stderr."""
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)  # as torchrun's agent
    errors = [folder / f"stderr {rank}" for rank in range(world)]
    began = [
        children.start(join_as, rank, world, store.port, arguments, str(path), trouble)
        for rank, path in enumerate(errors)
    ]
    for process in began:
        process.join(timeout=100)
    said = "".join(path.read_text() for path in errors)
    for path in errors:
        path.unlink()
    return [process.exitcode for process in began], said


def test_torchrun_leaves_and_says_what_one_process_does(folder, two_outs, monkeypatch, capsys):
    arguments = settings_for(folder, "e2e.pt", *SETTINGS)
    command, cwd = [*TORCHRUN, *arguments], two_outs[0].parent
    run = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    monkeypatch.chdir(two_outs[1].parent)
    train.main(arguments)
    assert run.stdout == capsys.readouterr().out
    assert len(set(re.findall(r"\ntext .*", run.stdout))) > 1, "else their order is not seen"
    assert_same_run(*two_outs, ALMOST)


@pytest.mark.parametrize(
    "more",
    [
        ("batch_size=4", "loss=sum", "eval_limit=2", "dev_limit=1"),  # ranks without a record or a dev pair
        ("method=adapter", "weight_decay=0.1"),
        ("method=full", "lr=5e-6"),  # gradients lie transposed; those of key biases are rounding alone
        ("method=embedding", "init=Blue Fig"),
        ("lr=0.9", "mlp_hidden=0", "eval_every=1", "patience=2"),  # the dev loss rises
    ],
)
def test_three_ranks_train_as_one(more, folder, two_outs, tmp_path):
    several, alone = (settings_for(folder, out, *SETTINGS, *more) for out in two_outs)
    codes, said = run_ranks(3, several, tmp_path)
    assert codes == [0] * 3
    assert re.fullmatch(r"(train\.py: (\w+) means nothing with method=\w+: leave it out\n(?!.*\2))*", said)
    train.main(alone)
    assert_same_run(*two_outs, ALMOST)


@pytest.fixture(scope="module")
def stopped(folder, tmp_path_factory) -> tuple[Path, str]:
    """The state of a run whose torchrun was told to end, and what it said."""
    out = tmp_path_factory.mktemp("stopped") / "e2e.pt"
    arguments = settings_for(folder, out, *SETTINGS, *LONG)
    code, errors = stop_at_third_step([*TORCHRUN, *arguments], out, signal.SIGTERM)
    assert code != 0
    return state_of(out), errors


def test_a_stop_is_at_one_step_and_said_once(stopped):
    state, errors = stopped
    assert errors.count("stopped; go on with") == 1 and f"resume={state}" in errors
    assert f'{train.__file__}", line' not in errors
    steps = sum("loss" in line for line in read_log(state.with_name("e2e.pt")))
    assert read_pt(state)["step"] == steps >= 3  # no save was due before
    assert {path.name for path in state.parent.iterdir()} == {"e2e.state.pt", "e2e.jsonl"}


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("whole")
    arguments = settings_for(folder, home / "e2e.pt", *SETTINGS, *LONG)
    assert run_ranks(2, arguments, home) == ([0, 0], "")
    return home / "e2e.pt"


@pytest.mark.parametrize("world", [2, 1, 3])
def test_it_resumes_with_any_number_of_ranks(world, stopped, whole, tmp_path):
    out = tmp_path / "part" / "e2e.pt"
    shutil.copytree(stopped[0].parent, out.parent)
    assert run_ranks(world, [f"resume={state_of(out)}"], tmp_path) == ([0] * world, "")
    assert_same_run(out, whole, 0 if world == 2 else ALMOST)


def test_bad_input_that_every_rank_meets_is_said_once(folder, tmp_path):
    shutil.copytree(folder / "data", tmp_path / "data")
    with open(tmp_path / "data" / "dev.csv", "a") as file:
        file.write("name[A],It is cheap, by the river.\n")
    arguments = settings_for(folder, tmp_path / "e2e.pt", *SETTINGS, f"data={tmp_path / 'data'}")
    codes, said = run_ranks(2, arguments, tmp_path)
    assert codes == [2, 2] and "dev.csv, line 6" in said and said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_what_rank_0_alone_refuses_ends_all(folder, tmp_path):
    (tmp_path / "e2e.pt").write_text("a user's")
    codes, said = run_ranks(3, settings_for(folder, tmp_path / "e2e.pt", *SETTINGS), tmp_path)
    assert codes == [2] * 3 and "e2e.pt exists and is not overwritten" in said and said.count("\n") == 1
    assert [path.read_text() for path in tmp_path.iterdir()] == ["a user's"]


def lose_numbers(summed):
    return summed * torch.nan


def lose_memory(_):
    return torch.empty(2**60)


def lose_life(_):
    os.kill(os.getpid(), signal.SIGKILL)


def lose_patience(summed):
    os.kill(os.getpid(), signal.SIGTERM)
    return summed


def spoil_the_fifth_loss(spoil, rank: int) -> None:
    """On rank 1 alone."""
    target_loss, left = train.target_loss, [0] * 5

    def compute(*arguments):
        summed, tokens = target_loss(*arguments)
        if torch.is_grad_enabled() and left and not left.pop() and not left:
            summed = spoil(summed)
        return summed, tokens

    if rank == 1:
        train.target_loss = compute


@pytest.fixture(scope="module")
def alone(folder, tmp_path_factory) -> Path:
    """What one process leaves."""
    out = tmp_path_factory.mktemp("alone") / "e2e.pt"
    train.main(settings_for(folder, out, *SETTINGS))
    return out


@pytest.mark.parametrize(
    ("spoil", "codes", "sentence", "step"),
    [
        (lose_numbers, [2, 2], r"loss or gradient is nan: lower lr \(now 0.01\)", 4),
        (lose_memory, [2, 2], r"memory ran out \(.*: lower batch_size", 4),
        (lose_life, [2, -9], r"this process lost the others \(.*resume", 4),
        (lose_patience, [130, 130], r"stopped; go on with: ", 5),
    ],
)
def test_what_ends_one_ends_all(spoil, codes, sentence, step, folder, alone, two_outs, tmp_path):
    out = two_outs[0]
    arguments = settings_for(folder, out, *SETTINGS)
    ended, said = run_ranks(2, arguments, tmp_path, partial(spoil_the_fifth_loss, spoil))
    assert ended == codes
    assert re.search(sentence, said) and len(said.strip().splitlines()) == 1
    assert read_pt(state_of(out))["step"] == step
    train.main([f"resume={state_of(out)}"])
    assert_same_run(out, alone, ALMOST)


@pytest.mark.parametrize("world", range(1, 9))
def test_shares_come_back_in_the_order_of_the_whole(world, monkeypatch):
    def read_shares(parts, _):
        for rank in range(world):
            monkeypatch.setattr(dist, "get_rank", lambda _=None, rank=rank: rank)
            parts[rank] = ranks.share(list("abcdefg"))

    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: world)
    monkeypatch.setattr(dist, "all_gather_object", read_shares)
    assert ranks.gather([]) == list("abcdefg")


def test_sums_go_back_to_tensors_of_any_layout(monkeypatch):
    """Gradients of a loaded GPT-2 lie transposed; nccl would refuse them as they are."""
    sent = []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "all_reduce", lambda flat: sent.append(flat.is_contiguous()) or flat.mul_(2))
    tensors = [torch.tensor(3.0), torch.arange(6.0).view(2, 3).T, torch.ones(0, 4)]
    expected = [2 * tensor for tensor in tensors]
    ranks.add(tensors)
    assert sent == [True] and tensors[1].stride() == (1, 3)
    for tensor, twice in zip(tensors, expected):
        assert torch.equal(tensor, twice)


def test_each_rank_has_its_own_gpu(monkeypatch):
    assert ranks.own_device("cuda") == "cuda" and ranks.own_device("cpu") == "cpu"
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert ranks.own_device("cuda") == "cuda:3" and ranks.own_device("cpu") == "cpu"
