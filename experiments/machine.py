"""What the results say of the machine that they were made on."""

import platform
import re
from pathlib import Path

import torch


def describe_machine() -> str:
    """The processor (by its name where Linux tells it), the threads in use and torch's version."""
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    processor = model[1] if model else platform.machine()
    return f"{processor}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def read_memory(key: str) -> int:
    """This process's memory in bytes (Linux): VmRSS is what it holds, VmHWM the most since reset_peak."""
    return 1024 * int(re.search(rf"{key}:\s*(\d+)", Path("/proc/self/status").read_text())[1])


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")
