"""What the code of commit e7fd707 computed is computed still: to the bit on the machine that made the files
of tests/data/fences, else to 1e-5. tests/make_fences.py says what is measured, and on what.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from minprefix.config import translate
from tests import make_fences as fences

FACTS = json.loads((fences.FENCES / "facts.json").read_text())
NUMBERS = load_file(fences.FENCES / "facts.safetensors")
IS_SAME_MACHINE = FACTS["machine"]["name"] == fences.describe_machine()
# Softmax sees no bias of the keys: its gradient is rounding alone, of which AdamW makes whole steps.
NOISE = ("attn.c_attn.bias", "attn.k_proj.bias")


@pytest.fixture(autouse=True)
def limit_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """The current folder, with the models, data, prefixes and stopped runs."""
    shutil.copytree(fences.FENCES, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check_facts(group: str, found: dict) -> None:
    """The values of a group, and the tensors among them, are those that were stored."""
    assert set(found) == set(FACTS[group])
    tensors = fences.pick_tensors(found)
    for key in found.keys() - tensors:
        assert found[key] == FACTS[group][key], key
    thinned = [fences.thin(tensor) for tensor in tensors.values()]
    stored = NUMBERS[group].split([len(numbers) for numbers in thinned]) if tensors else []
    for key, mine, theirs in zip(tensors, thinned, stored):
        check_close(key, mine, theirs)
        assert not IS_SAME_MACHINE or fences.digest(tensors[key]) == FACTS[group][key], key


def check_close(name: str, mine: torch.Tensor, theirs: torch.Tensor) -> None:
    if IS_SAME_MACHINE:
        assert torch.equal(mine, theirs), f"{name} differs by {(mine - theirs).abs().max():.1e}"
    elif not name.endswith(NOISE):
        assert_close(mine, theirs, rtol=1e-5, atol=1e-5 * max(1.0, float(theirs.abs().max())), msg=name)


def check_values(found: dict, expected: dict) -> None:
    """Keys may come, but none may go or change."""
    for key, value in expected.items():
        is_close = isinstance(value, float) and found[key] == pytest.approx(value, rel=1e-5, abs=1e-5)
        assert found[key] == value or (is_close and not IS_SAME_MACHINE), key


def check_run(folder: Path, name: str) -> None:
    """A training left the .pt file and the log that are stored; only its speed may differ."""
    mine, theirs = (fences.load_prefix(place / f"{name}.pt") for place in (folder, fences.FENCES / "pt"))
    assert (mine.method, mine.positions, mine.data) == (theirs.method, theirs.positions, theirs.data)
    assert mine.base["fingerprint"] == theirs.base["fingerprint"]
    check_values(mine.base["config"], theirs.base["config"])
    check_values(mine.config | {"out": f"{name}.pt"}, translate(theirs.config))
    check_values(mine.metrics, theirs.metrics)
    assert (mine.sites.keys(), mine.tensors.keys()) == (theirs.sites.keys(), theirs.tensors.keys())
    for key, tensor in (theirs.sites | theirs.tensors).items():
        check_close(key, (mine.sites | mine.tensors)[key], tensor)
    lines, expected = (read_log(place / f"{name}.jsonl") for place in (folder, fences.FENCES / "pt"))
    assert len(lines) == len(expected)
    for line, values in zip(lines, expected):
        check_values(line, values)


def read_log(path: Path) -> list[dict]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "tokens_per_second"} for line in lines]


@pytest.mark.parametrize("group", fences.GROUPS)
def test_what_is_measured_is_the_same(group, here):
    found = fences.measure(group)
    if group.startswith("data ") and not found:
        pytest.skip("MINPREFIX_DATA names no folder with this data set")
    check_facts(group, found)


@pytest.mark.parametrize("name", fences.TABLE["runs"])
def test_five_steps_of_training_leave_the_same_file(name, here):
    if name in fences.TABLE["delicate"] and not IS_SAME_MACHINE:
        pytest.skip("another processor rounds its 500 steps of Adam to something else")
    fences.train.main(fences.list_arguments(name))
    check_run(here, name)


@pytest.mark.parametrize("name", fences.TABLE["stopped"])
def test_a_run_that_was_stopped_goes_on_to_the_same_file(name, here):
    fences.train.main([f"resume=stopped/{name}.state.pt"])
    check_run(here / "stopped", name)


def test_the_command_goes_on_with_a_run_that_was_stopped(here):
    command = [sys.executable, str(fences.ROOT / "train.py"), "resume=stopped/gpt2-infix.state.pt"]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, capture_output=True, env=one_thread, timeout=120)
    check_run(here / "stopped", "gpt2-infix")


def test_a_float16_file_and_a_peft_folder_hold_what_they_held(here):
    whole, half = fences.load_prefix("pt/gpt2-prefix.pt"), fences.load_prefix("half.pt")
    assert torch.equal(half.sites["decoder"], whole.sites["decoder"].half().float())
    assert torch.equal(fences.from_peft("peft").sites["decoder"], whole.sites["decoder"])
    fences.save_prefix(whole, "again.pt", torch.float16)
    stored = torch.load("again.pt", weights_only=True)["sites"]["decoder"]
    assert stored.dtype == torch.float16
    assert torch.equal(stored.float(), half.sites["decoder"])
    fences.to_peft("pt/gpt2-prefix.pt", "again")
    for file in (here / "peft").iterdir():
        assert (here / "again" / file.name).read_bytes() == file.read_bytes()
