"""What the commands of this folder share: how they start and end, and the one place where results are
written and claimed, with what made them."""

import contextlib
import ctypes
import json
import platform
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from minprefix.checks import run_command
from minprefix.store import write_atomically

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"


def start(main: Callable[[list[str]], None], doc: str) -> None:
    """Runs a command with the arguments of this process, or says what it is."""
    if {"-h", "--help", "help"} & set(sys.argv[1:]):
        print(doc)
    else:
        run_command(main)


def read_table(name: str) -> dict:
    """What experiments/tables/NAME.toml holds."""
    return tomllib.loads((HERE / "tables" / f"{name}.toml").read_text(encoding="utf-8"))


def write_result(path: Path, result: dict) -> None:
    """Writes a JSON file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    write_atomically(path, lambda part: part.write_text(content, encoding="utf-8"))


@contextlib.contextmanager
def claim(path: Path) -> Iterator[bool]:
    """Yields whether this process may make `path`. The claim ends with the process, however that ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(path.with_suffix(".lock"), blocking=False).acquire()
    except Timeout:
        yield False
        return
    with lock:
        yield not path.exists()  # another process may just have finished it


def read_commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    return subprocess.run(command, cwd=HERE, capture_output=True, text=True).stdout.strip()


def describe_machine(device: str = "cpu") -> str:
    """The processor (by its name where Linux tells it) with the threads in use, or the GPU; and torch's
    version."""
    if device != "cpu":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    processor = model[1] if model else platform.machine()
    return f"{processor}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def wait_for(device: str) -> None:
    """Until a GPU has done what it was given, so that a clock can be read."""
    if device != "cpu":
        torch.cuda.synchronize()


def read_memory(key: str = "VmRSS") -> int:
    """This process's memory in bytes (Linux): VmRSS is what it holds, VmHWM the most since reset_peak."""
    return 1024 * int(re.search(rf"{key}:\s*(\d+)", Path("/proc/self/status").read_text())[1])


def reset_peak(device: str = "cpu") -> None:
    if device == "cpu":
        ctypes.CDLL(None).malloc_trim(0)  # or what an earlier run has freed would count as there
        Path("/proc/self/clear_refs").write_text("5")
    else:
        torch.cuda.reset_peak_memory_stats()


def read_peak(device: str = "cpu") -> int:
    """The most memory since reset_peak, in bytes: resident on a CPU, allocated on a GPU."""
    return read_memory("VmHWM") if device == "cpu" else torch.cuda.max_memory_allocated()
