"""What the results say of the machine that they were made on."""

import platform
import re
from pathlib import Path

import torch


def describe_machine() -> str:
    return f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def read_memory(key: str) -> int:
    """This process's memory in bytes (Linux): VmRSS is what it holds, VmHWM the most since reset_peak."""
    return 1024 * int(re.search(rf"{key}:\s*(\d+)", Path("/proc/self/status").read_text())[1])


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")
