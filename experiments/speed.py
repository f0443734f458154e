"""Seconds and memory beside transformers and PEFT.

    python -m experiments.speed [CASE ...] [pairs=N] [dtype=bfloat16]

Both sides of a case read the same random weights and the same ids, each in a process of its own, and take
turns: one call of ours, one of theirs, and so on; the first call of each is not counted. In float32 what they
compute must agree, wherever both compute the same. Printed are the median ratio of the pairs, the peak memory
of both processes, and the floor: the case's bytes and operations at the best rates that were measured.
experiments/results/speed.json keeps each case's last result, speed.svg shows them.

It needs Linux, 20 GB of memory, 3 GB of disk for checkpoints and, for all cases, half an hour on two cores
that do nothing else. bfloat16 is measured where the processor has it, or where dtype=bfloat16 forces it.
Cases: prefix-step, full-step, prefix-to-full, beam-1, beam-16, bart, mixed, start, growth.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import multiprocessing
import os
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import field
from pathlib import Path

import torch
from pydantic.dataclasses import dataclass

from experiments.floor import count_bart, count_gpt2, count_step, measure_rates
from experiments.keep import (
    RESULTS,
    describe_machine,
    read_commit,
    read_memory,
    read_peak,
    read_table,
    reset_peak,
    start,
    write_result,
)
from experiments.sides import JOBS, Work, agree, make_checkpoint
from minprefix.checks import InputError, nearest

QUIET = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": "1"}
QUIET |= {"PYTHONWARNINGS": "ignore"}  # for the processes that are started
RESULT = RESULTS / "speed.json"


@dataclass(frozen=True)
class Case:
    """One comparison: an entry of tables/speed.toml, which explains the fields."""

    title: str
    shape: str
    work: Work
    names: list[str]
    sides: list[list[str]]
    warm_up: Work | None = None
    targets: dict[str, float] = field(default_factory=dict)
    peak_target: float | None = None
    same: str = "all"
    pairs: int = 5

    def agree(self, ours: list, theirs: list) -> bool:
        return agree(ours[:1], theirs[:1]) if self.same == "first" else agree(ours, theirs)

    def floor(self, rates: dict[str, float], dtype: str) -> float | None:
        """The fewest seconds at these rates; None for what is not counted."""
        job, variant = self.sides[0]
        size = getattr(torch, dtype).itemsize
        if job == "start_cold":
            return None
        if job == "step_ours":
            phases = count_step(self.work, variant == "full")
        else:
            phases = (count_bart if self.shape == "bart-large" else count_gpt2)(self.work, size)
        return sum(max(b / rates["bytes"], o / rates["operations"]) for b, o in phases)


CASES = {name: Case(**values) for name, values in read_table("speed").items()}
# Growth: seconds a step (a token of each row) while one of these changes and the others stay as in BASE.
BASE = Work(1, 40, 2, 5)
GROWTH = {"source": (40, 160, 640), "beams": (1, 5, 20), "rows": (1, 4, 16)}
MORE = 8  # tokens: the difference to BASE's two is timed, so reading x does not count
JOB: list[Callable] = []  # of the process of a side


def load_side(job: str, variant: str, folder: Path, dtype: torch.dtype) -> None:
    """What the process of a side does first."""
    JOB.append(JOBS[job](variant, folder, dtype))


def is_loaded() -> bool:
    return bool(JOB)


def time_call(work: Work) -> dict:
    """One call, in the process of its side."""
    held = read_memory()
    reset_peak()  # else the peak could be that of loading
    began = time.perf_counter()
    outputs = JOB[0](work)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "outputs": outputs, "held": held, "peak": max(read_peak(), read_children())}


def read_children() -> int:
    """The most memory of a process that this one has started, as a cold start does."""
    return 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss


@contextlib.contextmanager
def open_sides(case: Case, dtype: torch.dtype) -> Iterator[Callable[[Work], list[dict]]]:
    """Both sides, loaded one after the other, each in a process -> what runs a Work on ours, then theirs."""
    folder, spawn = make_checkpoint(case.shape), multiprocessing.get_context("spawn")
    processes = []

    def run(work: Work) -> list[dict]:
        return [ask(name, process, time_call, work) for name, process in zip(case.names, processes)]

    def ask(name: str, process: ProcessPoolExecutor, call: Callable, *arguments: Work):
        try:
            return process.submit(call, *arguments).result()
        except BrokenProcessPool:
            message = f"{case.title}: the process of {name} ended; what it said stands above"
            raise InputError(message) from None

    with contextlib.ExitStack() as stack:
        for name, side in zip(case.names, case.sides):
            process = ProcessPoolExecutor(1, spawn, load_side, (*side, folder, dtype))
            processes.append(stack.enter_context(process))
            ask(name, process, is_loaded)
        yield run


def check(case: Case, replies: list[list[dict]], dtype: torch.dtype) -> bool | None:
    """Whether the outputs of all pairs agree, which float32 must; None where nothing can be compared."""
    if case.same == "none":
        return None
    same = all(case.agree(ours["outputs"], theirs["outputs"]) for ours, theirs in replies)
    if not same and dtype == torch.float32:
        raise InputError(f"{case.title}: the two sides do not agree, so their times say nothing")
    return same


def measure_case(case: Case, dtype: torch.dtype, pairs: int) -> dict:
    rates = measure_rates(dtype)
    with open_sides(case, dtype) as run:
        first = run(case.warm_up or case.work)
        replies = [run(case.work) for _ in range(pairs)]
    # Of training only the first step is compared: AdamW's first updates are the rate times the sign of the
    # gradient, so where that is nearly zero, rounding decides about a whole update.
    same = check(case, replies if case.work.beams else [first], dtype)
    return {
        "title": case.title,
        "names": case.names,
        "target": case.targets.get(str(dtype).removeprefix("torch.")),
        "peak_target": case.peak_target,
        "agree": same,
        "ratio": statistics.median(ours["seconds"] / theirs["seconds"] for ours, theirs in replies),
        "seconds": [[round(reply["seconds"], 3) for reply in pair] for pair in replies],
        "rates": rates,
        "held": [reply["held"] for reply in replies[-1]],
        "peak": [max(reply["peak"] for reply in side) for side in zip(*replies)],
    }


def measure_growth(dtype: torch.dtype) -> dict:
    """For each value: seconds a step of both sides, the median of three differences."""
    case = CASES["beam-1"]
    found: dict = {"names": case.names}

    @functools.cache  # BASE is in every row of GROWTH
    def measure(short: Work) -> list[float]:
        long = dataclasses.replace(short, target=short.target + MORE)
        times = []
        for _ in range(3):
            pairs = [run(short), run(long)]
            check(case, pairs, dtype)
            times.append([(b["seconds"] - a["seconds"]) / MORE for a, b in zip(*pairs)])
        return [round(statistics.median(side), 4) for side in zip(*times)]

    with open_sides(case, dtype) as run:
        run(BASE)
        for name, values in GROWTH.items():
            found[name] = {value: measure(dataclasses.replace(BASE, **{name: value})) for value in values}
            print(f"  {name}: {found[name]}", flush=True)
    return found


def explain_skip(name: str, dtype: str, is_forced: bool) -> str:
    """Why a case is not measured, or ""."""
    if dtype == "float32":
        return ""
    if name == "start":
        return "what is started is the default, float32"
    flags = Path("/proc/cpuinfo").read_text()
    if is_forced or re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", flags):
        return ""
    return "the processor has no bfloat16 products (no avx512_bf16, no amx_bf16)"


def parse_arguments(arguments: list[str]) -> tuple[list[str], int | None, list[str]]:
    """Names of cases (none: all), pairs, dtypes."""
    options = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    known = [*CASES, "growth"]
    names = [argument for argument in arguments if "=" not in argument] or known
    for name in names:
        if name not in known:
            raise InputError(f"{name!r} is no case: {nearest(name, known)}")
    if wrong := set(options) - {"pairs", "dtype"}:
        raise InputError(f"{wrong.pop()!r} is no option: give pairs=N or dtype=float32 or dtype=bfloat16")
    pairs, dtype = options.get("pairs", "0"), options.get("dtype", "")
    if "pairs" in options and (not pairs.isdecimal() or not int(pairs)):
        raise InputError(f"pairs={pairs} must be a whole number from 1 on")
    if dtype not in ("", "float32", "bfloat16"):
        raise InputError(f"dtype={dtype} must be float32 or bfloat16")
    return names, int(pairs) or None, [dtype] if dtype else ["float32", "bfloat16"]


def set_floors(results: dict) -> None:
    """Each case's floor in seconds, at the best rates that any case of that dtype has measured."""
    for dtype in ("float32", "bfloat16"):
        measured = {name: cases[dtype] for name, cases in results.items() if "rates" in cases.get(dtype, {})}
        rates = [result["rates"] for result in measured.values()]
        for name, result in measured.items():
            best = {key: max(rate[key] for rate in rates) for key in ("bytes", "operations")}
            floor = CASES[name].floor(best, dtype)
            result |= {} if floor is None else {"floor": floor}


def describe(name: str, dtype: str, result: dict) -> dict:
    """A row of the printed table."""
    ratios = [ours / theirs for ours, theirs in result["seconds"]]
    ours, theirs = (statistics.median(times) for times in zip(*result["seconds"]))
    peaks = [peak / 1e9 for peak in result["peak"]]
    row = {"case": name, "dtype": dtype, "same": result["agree"], "ratio": result["ratio"]}
    row |= {"least": min(ratios), "most": max(ratios), "target": result["target"]}
    row |= {"ours, s": ours, "theirs, s": theirs, "floor, s": result.get("floor")}
    row |= {"ours, GB": peaks[0], "theirs, GB": peaks[1], "of theirs": peaks[0] / peaks[1]}
    return row | {"peak target": result["peak_target"]}


def main(arguments: list[str]) -> None:
    names, pairs, dtypes = parse_arguments(arguments)
    from experiments.draw_speed import draw, save  # here, for each side imports this module

    os.environ.update(QUIET)
    for name in names:
        for dtype in dtypes:
            print(f"{name}, {dtype} ...", file=sys.stderr, flush=True)
            began = time.monotonic()
            result = measure(name, dtype, pairs, is_forced=len(dtypes) == 1)
            result |= describe_setting(arguments) | {"took": round(time.monotonic() - began)}
            results = keep(name, dtype, result)
    save(draw(results), RESULT.with_suffix(".svg"))
    show(results)


def describe_setting(arguments: list[str]) -> dict:
    """What a result says of how it was made."""
    return {
        "command": " ".join(["python -m experiments.speed", *arguments]),
        "commit": read_commit(),
        "machine": describe_machine(),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft")},
    }


def measure(name: str, dtype: str, pairs: int | None, is_forced: bool) -> dict:
    if reason := explain_skip(name, dtype, is_forced):
        return {"not_available": reason}
    if name == "growth":
        return measure_growth(getattr(torch, dtype))
    return measure_case(CASES[name], getattr(torch, dtype), pairs or CASES[name].pairs)


def keep(name: str, dtype: str, result: dict) -> dict:
    """Puts one result into speed.json and leaves the others there -> all of them."""
    results = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    results.setdefault(name, {})[dtype] = result
    set_floors(results)
    write_result(RESULT, results)
    return json.loads(RESULT.read_text())


def show(results: dict) -> None:
    """All results as a table; InputError if one is faster than its floor, which then is none."""
    import pandas as pd  # here, for each side imports this module

    found = [(name, dtype, result) for name, cases in results.items() for dtype, result in cases.items()]
    measured = [case for case in found if "seconds" in case[2]]
    table = pd.DataFrame([describe(*case) for case in measured])
    print("\nratio: seconds of ours / theirs, median of pairs; GB: peak memory")
    print(table.to_string(index=False, na_rep="-", float_format="{:.2f}".format))
    for name, dtype, result in found:
        if reason := result.get("not_available"):
            print(f"{name}, {dtype} n/a: {reason}")
    for name, dtype, result in measured:
        if min(ours for ours, _ in result["seconds"]) < result.get("floor", 0):
            raise InputError(f"{name}, {dtype} is faster than its floor: the count or a rate is wrong")


if __name__ == "__main__":
    start(main, __doc__)
