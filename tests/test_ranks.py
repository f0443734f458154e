"""torchrun train.py: several processes leave what one leaves, say it once, and none waits for the dead."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import train
from minprefix import ranks
from minprefix.store import load_prefix, read_pt
from tests import children

SCRIPT = Path(train.__file__)
SETTINGS = ["lr=0.01", "prefix_len=3", "mlp_hidden=8", "beams=2", "eval_every=4", "max_new_tokens=6"]
# 16 pairs: the last batch of an epoch has one, fewer than there are ranks
SETTINGS += ["batch_size=5", "max_steps=10", "eval_limit=5"]
LONG = ["max_steps=150", "eval_every=50", "save_seconds=60"]


@pytest.fixture(scope="module")
def folder(tiny_folder, tmp_path_factory) -> Path:
    """model/ and data/, whose references differ in length, so that no two ranks have as many tokens."""
    folder = tmp_path_factory.mktemp("ranks")
    shutil.copytree(tiny_folder, folder / "model")
    (folder / "data").mkdir()
    for split, count in (("train", 16), ("dev", 3), ("test", 7)):
        names = [chr(97 + i) * (3 * i + 1) for i in range(count)]  # unlike enough to get unlike texts
        rows = [f'"name[{name}]",{name} is{" very" * (len(name) % 5)} good.\n' for name in names]
        (folder / f"data/{split}.csv").write_text("mr,ref\n" + "".join(rows))
    return folder


@pytest.fixture(autouse=True)
def quick_children(monkeypatch):
    """As in test_faults.py: children find our modules, and compute in one thread, as torchrun's do."""
    monkeypatch.setenv("PYTHONPATH", str(SCRIPT.parent))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def settings_for(folder: Path, out: object, *more: str) -> list[str]:
    return [*SETTINGS, f"model={folder / 'model'}", f"data={folder / 'data'}", f"out={out}", *more]


def start_torchrun(arguments: list[str], cwd: Path) -> subprocess.Popen:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": cwd}
    return subprocess.Popen([*launcher, str(SCRIPT), *arguments], **pipes)


def join_as(rank: int, world: int, port: int, arguments: list[str], errors: str, trouble=None) -> None:
    """What torchrun does for one of its processes, in one that starts at once."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    os.environ |= {"TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    if trouble:
        trouble(rank)
    children.run_train(arguments, errors)


def run_ranks(world: int, arguments: list[str], folder: Path, trouble=None) -> tuple[list[int], list[str]]:
    """The ranks' exit codes, and what each said on stderr."""
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)  # as torchrun's agent
    errors = [folder / f"stderr {rank}" for rank in range(world)]
    began = [
        children.start(join_as, rank, world, store.port, arguments, str(path), trouble)
        for rank, path in enumerate(errors)
    ]
    for process in began:
        process.join(timeout=100)
    said = [path.read_text() for path in errors]
    for path in errors:
        path.unlink()
    return [process.exitcode for process in began], said


def read_losses(out: Path, name: str = "loss") -> list[float]:
    lines = map(json.loads, train.log_path(out).read_text().splitlines())
    return [line[name] for line in lines if name in line]


def assert_same_training(out: Path, alone: Path, atol: float = 1e-6) -> None:
    """Numbers, losses and metrics of a run are those of one process."""
    one, other = load_prefix(out), load_prefix(alone)
    for stored, expected in ((one.sites, other.sites), (one.tensors, other.tensors)):
        assert stored.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(stored[name], tensor, rtol=0, atol=atol)
    for name in ("loss", "dev_loss"):
        assert read_losses(out, name) == pytest.approx(read_losses(alone, name), rel=1e-6)
        assert read_losses(out, name)
    assert one.metrics == other.metrics and one.metrics
    assert {path.name for path in out.parent.iterdir()} == {out.name, train.log_path(out).name}


def test_torchrun_leaves_and_says_what_one_process_does(folder, tmp_path, monkeypatch, capsys):
    for name in ("two", "alone"):
        (tmp_path / name).mkdir()
    process = start_torchrun(settings_for(folder, "e2e.pt"), tmp_path / "two")
    monkeypatch.chdir(tmp_path / "alone")
    train.main(settings_for(folder, "e2e.pt"))
    text, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert text == capsys.readouterr().out
    assert len(set(re.findall(r"\ntext .*", text))) > 1, "else their order is not seen"
    assert_same_training(tmp_path / "two" / "e2e.pt", tmp_path / "alone" / "e2e.pt")


@pytest.mark.parametrize(
    "more",
    [
        ("batch_size=4", "loss=sum", "eval_limit=2", "dev_limit=1"),  # ranks without a record or a dev pair
        ("method=adapter", "weight_decay=0.1"),
        ("method=embedding", "init=Blue Fig"),
    ],
)
def test_three_ranks_train_as_one(more, folder, tmp_path):
    outs = [tmp_path / name / "e2e.pt" for name in ("three", "alone")]
    for out in outs:
        out.parent.mkdir()
    assert run_ranks(3, settings_for(folder, outs[0], *more), tmp_path) == ([0] * 3, [""] * 3)
    train.main(settings_for(folder, outs[1], *more))
    assert_same_training(*outs)


@pytest.fixture(scope="module")
def stopped(folder, tmp_path_factory) -> tuple[Path, str]:
    """The state of a run whose torchrun was told to end, and what it said."""
    home = tmp_path_factory.mktemp("stopped")
    out = home / "e2e.pt"
    process = start_torchrun(settings_for(folder, out, *LONG), home)
    until = time.monotonic() + 120
    while not train.log_path(out).exists() or train.log_path(out).read_text().count('"lr"') < 3:
        assert process.poll() is None and time.monotonic() < until, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    return train.state_path(out), errors


def test_a_stop_is_at_one_step_and_said_once(stopped):
    state, errors = stopped
    assert errors.count("stopped; go on with") == 1 and f"resume={state}" in errors
    assert f'{train.__file__}", line' not in errors
    assert (
        read_pt(state)["step"] == len(read_losses(state.with_name("e2e.pt"))) >= 3
    )  # no save was due before
    assert {path.name for path in state.parent.iterdir()} == {"e2e.state.pt", "e2e.jsonl"}


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("whole")
    assert run_ranks(2, settings_for(folder, home / "e2e.pt", *LONG), home) == ([0, 0], ["", ""])
    return home / "e2e.pt"


@pytest.mark.parametrize("world", [2, 1, 3])
def test_it_resumes_with_any_number_of_ranks(world, stopped, whole, tmp_path):
    out = tmp_path / "part" / "e2e.pt"
    shutil.copytree(stopped[0].parent, out.parent)
    assert run_ranks(world, [f"resume={train.state_path(out)}"], tmp_path) == ([0] * world, [""] * world)
    assert_same_training(out, whole, atol=0 if world == 2 else 1e-6)


def test_bad_input_that_every_rank_meets_is_said_once(folder, tmp_path):
    shutil.copytree(folder / "data", tmp_path / "data")
    with open(tmp_path / "data" / "dev.csv", "a") as file:
        file.write("name[A],It is cheap, by the river.\n")
    arguments = settings_for(folder, tmp_path / "e2e.pt", f"data={tmp_path / 'data'}")
    codes, said = run_ranks(2, arguments, tmp_path)
    assert codes == [2, 2] and "dev.csv, line 5" in "".join(said) and "".join(said).count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_what_rank_0_alone_refuses_ends_all(folder, tmp_path):
    (tmp_path / "e2e.pt").write_text("a user's")
    codes, said = run_ranks(3, settings_for(folder, tmp_path / "e2e.pt"), tmp_path)
    assert codes == [2] * 3 and "e2e.pt exists and is not overwritten" in said[0] and not any(said[1:])
    assert [path.read_text() for path in tmp_path.iterdir()] == ["a user's"]


def spoil_the_fifth_loss(rank: int, spoil) -> None:
    """On rank 1 alone."""
    target_loss, left = train.target_loss, [0] * 5

    def compute(*arguments):
        summed, tokens = target_loss(*arguments)
        if torch.is_grad_enabled() and left and not left.pop() and not left:
            summed = spoil(summed)
        return summed, tokens

    if rank == 1:
        train.target_loss = compute


def lose_numbers(rank: int) -> None:
    spoil_the_fifth_loss(rank, lambda summed: summed * torch.nan)


def lose_memory(rank: int) -> None:
    spoil_the_fifth_loss(rank, lambda _: torch.empty(2**60))


def lose_life(rank: int) -> None:
    spoil_the_fifth_loss(rank, lambda _: os.kill(os.getpid(), signal.SIGKILL))


def lose_patience(rank: int) -> None:
    spoil_the_fifth_loss(rank, lambda summed: os.kill(os.getpid(), signal.SIGTERM) or summed)


@pytest.fixture(scope="module")
def alone(folder, tmp_path_factory) -> Path:
    """What one process leaves."""
    out = tmp_path_factory.mktemp("alone") / "e2e.pt"
    train.main(settings_for(folder, out))
    return out


@pytest.mark.parametrize(
    ("trouble", "codes", "sentence", "step"),
    [
        (lose_numbers, [2, 2], r"loss or gradient is nan: lower lr \(now 0.01\)", 4),
        (lose_memory, [2, 2], r"memory ran out \(.*: lower batch_size", 4),
        (lose_life, [2, -9], r"this process lost the others \(.*resume", 4),
        (lose_patience, [130, 130], r"\nstopped; go on with: ", 5),
    ],
)
def test_what_ends_one_rank_ends_all_and_loses_no_step(
    trouble, codes, sentence, step, folder, alone, tmp_path
):
    out = tmp_path / "part" / "e2e.pt"
    out.parent.mkdir()
    ended, said = run_ranks(2, settings_for(folder, out), tmp_path, trouble)
    assert ended == codes
    assert re.match(sentence, "".join(said)) and len("".join(said).strip().splitlines()) == 1
    assert read_pt(train.state_path(out))["step"] == step
    train.main([f"resume={train.state_path(out)}"])
    assert_same_training(out, alone)


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
