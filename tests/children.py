"""Runs of train.py in processes that can be killed: forked from one that has torch, so they start at once."""

import itertools
import multiprocessing
import os
import resource
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch

import tasks
import train
from minprefix.checks import run_command

# What torch imports when it is first used is imported here, once for all; no backward pass, for what that
# starts does not survive a fork.
with torch.device("meta"):
    torch.randn(1)
weight = torch.nn.Parameter(torch.ones(1))
weight.grad = torch.ones(1)
torch.optim.AdamW([weight]).step()

CHANGES = ("os.rename", "os.remove", "os.mkdir", "fcntl.flock")


def start(target, *arguments) -> multiprocessing.Process:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.children"])
    process = context.Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


def finish(target, *arguments) -> int:
    """The exit code: negative where a signal ended it."""
    process = start(target, *arguments)
    process.join(timeout=300)
    return process.exitcode


def run_train(arguments: list[str], errors: str = os.devnull) -> None:
    """As train.py's last line does it: one line about wrong input, exit code 2."""
    sys.argv = ["train.py", *arguments]
    with open(errors, "w") as sys.stderr, open(os.devnull, "w") as sys.stdout:
        run_command(train.main)


def run_train_until(number: int, arguments: list[str], folder: str) -> None:
    """Killed just before the number-th change of a file in the folder; unharmed if there are fewer."""
    kill_before(number, folder)
    run_train(arguments)


def kill_before(number: int, folder: str) -> None:
    changes = itertools.count(1)

    def watch(event: str, arguments: tuple) -> None:
        writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        is_change = event in CHANGES or (writes and str(arguments[0]).startswith(folder))
        if is_change and next(changes) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def run_train_for(count: int, part: float, arguments: list[str]) -> None:
    """Killed by the kernel behind so many of the log's lines and the texts' tokens, and so large a part of
    the time that the last one took.
    """
    times: list[float] = []

    def watch(*_: object) -> object:
        times.append(time.monotonic())
        if len(times) == count + 1:
            took = times[-1] - times[-2] if count > 1 else 0  # the first one took all of the start
            signal.setitimer(signal.ITIMER_REAL, part * took + 1e-6)  # 0 would be never
        return mock.DEFAULT  # go on to the function itself

    for module, name in ((train, "append_line"), (sys.modules["minprefix.generate"], "predict")):
        setattr(module, name, mock.Mock(wraps=getattr(module, name), side_effect=watch))
    watch()
    run_train(arguments)


def run_train_to_half_a_save(number: int, arguments: list[str]) -> None:
    """Killed in the middle of writing its number-th file of tensors."""
    saves, write_pt = itertools.count(1), train.write_pt

    def write_half(content: dict, path: Path) -> None:
        write_pt(content, path)
        if next(saves) == number:
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    train.write_pt = sys.modules["minprefix.store"].write_pt = write_half
    run_train(arguments)


def run_train_with_little_memory(arguments: list[str], errors: str) -> None:
    """With 400 MB beyond what the process has so far."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 400_000_000,) * 2)
    run_train(arguments, errors)


def run_train_with_a_full_disk(arguments: list[str], size: int, errors: str) -> None:
    """The operating system refuses to write more than `size` bytes to a file."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    run_train(arguments, errors)


def download(home: str, url: str, official: dict, number: int = 0) -> None:
    """Downloads a small official data set from a local site, killed before the number-th change of a file."""
    os.environ |= {"MINPREFIX_DATA": home, "no_proxy": "127.0.0.1"}
    files, digests = tuple((name,) for name in official), tuple(official.values())
    task = replace(tasks.find_task("e2e"), files=files, digests=digests, url=url)
    tasks.find_task = lambda _: task
    kill_before(number, home)
    tasks.find_files("e2e", "download")
