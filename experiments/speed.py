"""Seconds and memory beside transformers and PEFT.

    python -m experiments.speed [CASE ...] [pairs=N] [dtype=bfloat16] [clock=processor] [device=cuda]
                                [to=NAME]

Both sides of a case read the same random weights and the same ids, each in a process of its own, and take
turns: one call of ours, one of theirs, and so on; the first call of each is not counted. In float32 what they
compute must agree, wherever both compute the same. Printed are the median ratio of the pairs, the peak memory
of both processes, and the floor: the case's bytes and operations at the best rates that were measured.
experiments/results/speed.json keeps each case's last result, speed.svg shows them; to=NAME takes speed-NAME
instead, for another machine. On a machine that does other things at the same time clock=processor counts a
side's own seconds (OMP_NUM_THREADS=1, or threads that wait are counted, too). device=cuda measures a GPU.

It needs Linux, 20 GB of memory, 3 GB of disk for checkpoints and, for all cases, half an hour on two cores
that do nothing else. bfloat16 is measured where the processor has it, or where dtype=bfloat16 forces it.
Cases: prefix-step, prefix-step-autocast, full-step, prefix-to-full, beam-1, beam-16, bart, mixed, start,
smollm2-prefix, smollm2-full, smollm2-beam, growth.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from experiments.floor import DECODERS, count_bart, count_decoder, count_step, measure_rates
from experiments.keep import (
    RESULTS,
    describe_machine,
    read_commit,
    read_memory,
    read_peak,
    read_table,
    reset_peak,
    start,
    wait_for,
    write_result,
)
from experiments.sides import JOBS, Work, agree, make_checkpoint
from minprefix.checks import STRICT, InputError, build, nearest
from minprefix.hub import multiplies_in_bfloat16

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
    targets: dict[str, float] = Field(default_factory=dict)
    peak_targets: dict[str, float] = Field(default_factory=dict)
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
            phases = count_step(DECODERS[self.shape], self.work, variant == "full")
        elif self.shape == "bart-large":
            phases = count_bart(self.work, size)
        else:
            phases = count_decoder(DECODERS[self.shape], self.work, size)
        return sum(max(b / rates["bytes"], o / rates["operations"]) for b, o in phases)


CASES = {name: Case(**values) for name, values in read_table("speed").items()}
# Growth: seconds a step (a token of each row) while one of these changes and the others stay as in BASE.
BASE = Work(1, 40, 2, 5)
GROWTH = {"source": (40, 160, 640), "beams": (1, 5, 20), "rows": (1, 4, 16)}
MORE = 8  # tokens: the difference to BASE's two is timed, so reading x does not count
JOB: list[Callable] = []  # of the process of a side


def load_side(job: str, variant: str, folder: Path, dtype: torch.dtype, device: str) -> None:
    """What the process of a side does first."""
    JOB.append(JOBS[job](variant, folder, dtype, device))


def is_loaded() -> bool:
    return bool(JOB)


CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


def time_call(work: Work, clock: str = "wall", device: str = "cpu") -> dict:
    """One call, in the process of its side."""
    reset_peak(device)  # else the peak could be that of loading
    held = read_held(device)  # after it, for it gives back what has been freed
    began = CLOCKS[clock]()
    outputs = JOB[0](work)
    wait_for(device)
    seconds = CLOCKS[clock]() - began
    peak = max(read_peak(device), read_children() if device == "cpu" else 0)
    return {"seconds": seconds, "outputs": outputs, "held": held, "peak": peak}


def read_held(device: str) -> int:
    return read_memory() if device == "cpu" else torch.cuda.memory_allocated()


def read_children() -> int:
    """The most memory of a process that this one has started, as a cold start does."""
    return 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss


@contextlib.contextmanager
def open_sides(case: Case, dtype: torch.dtype, how: "Options") -> Iterator[Callable[[Work], list[dict]]]:
    """Both sides, loaded one after the other, each in a process -> what runs a Work on ours, then theirs."""
    folder, spawn = make_checkpoint(case.shape), multiprocessing.get_context("spawn")
    processes = []

    def run(work: Work) -> list[dict]:
        return [
            ask(name, process, time_call, work, how.clock, how.device)
            for name, process in zip(case.names, processes)
        ]

    def ask(name: str, process: ProcessPoolExecutor, call: Callable, *arguments):
        try:
            return process.submit(call, *arguments).result()
        except BrokenProcessPool:
            message = f"{case.title}: the process of {name} ended; what it said stands above"
            raise InputError(message) from None

    with contextlib.ExitStack() as stack:
        for name, side in zip(case.names, case.sides):
            process = ProcessPoolExecutor(1, spawn, load_side, (*side, folder, dtype, how.device))
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


def measure_case(case: Case, dtype: torch.dtype, how: "Options") -> dict:
    rates = measure_rates(dtype, CLOCKS[how.clock], how.device)
    with open_sides(case, dtype, how) as run:
        first = run(case.warm_up or case.work)
        replies = [run(case.work) for _ in range(how.pairs or case.pairs)]
    # Of training only the first step is compared: AdamW's first updates are the rate times the sign of the
    # gradient, so where that is nearly zero, rounding decides about a whole update.
    same = check(case, replies if case.work.beams else [first], dtype)
    promised = str(dtype).removeprefix("torch.") if how.device == "cpu" else ""  # for a CPU only
    return {
        "title": case.title,
        "names": case.names,
        "target": case.targets.get(promised),
        "peak_target": case.peak_targets.get(promised),
        "agree": same,
        "clock": how.clock,
        "ratio": statistics.median(ours["seconds"] / theirs["seconds"] for ours, theirs in replies),
        "seconds": [[round(reply["seconds"], 3) for reply in pair] for pair in replies],
        "rates": rates,
        "held": [reply["held"] for reply in replies[-1]],
        "peak": [max(reply["peak"] for reply in side) for side in zip(*replies)],
    }


def measure_growth(dtype: torch.dtype, how: "Options") -> dict:
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

    with open_sides(case, dtype, how) as run:
        run(BASE)
        for name, values in GROWTH.items():
            found[name] = {value: measure(dataclasses.replace(BASE, **{name: value})) for value in values}
            print(f"  {name}: {found[name]}", flush=True)
    return found


def explain_skip(name: str, dtype: str, how: "Options") -> str:
    """Why a case is not measured, or ""."""
    if dtype == "float32":
        return ""
    if name == "start":
        return "what is started is the default, float32"
    if how.dtype or multiplies_in_bfloat16(how.device):
        return ""
    return "the processor has no bfloat16 products (no avx512_bf16, no amx_bf16)"


@dataclass(frozen=True, config=STRICT)
class Options:
    """How all cases are measured; pairs: None takes each case's own number."""

    pairs: int | None = Field(None, ge=1)
    dtype: Literal["", "float32", "bfloat16"] = ""
    clock: Literal["wall", "processor"] = "wall"
    device: Literal["cpu", "cuda"] = "cpu"
    to: str = ""

    def path(self) -> Path:
        return RESULT.with_stem(f"{RESULT.stem}-{self.to}") if self.to else RESULT


def parse_arguments(arguments: list[str]) -> tuple[list[str], Options]:
    """Names of cases (none: all), and the rest."""
    options = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    known = [*CASES, "growth"]
    names = [argument for argument in arguments if "=" not in argument] or known
    for name in names:
        if name not in known:
            raise InputError(f"{name!r} is no case: {nearest(name, known)}")
    return names, build(Options, options, text=True)


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
    names, options = parse_arguments(arguments)
    from experiments.draw_speed import draw, save  # here, for each side imports this module

    os.environ.update(QUIET)
    for name in names:
        for dtype in [options.dtype] if options.dtype else ["float32", "bfloat16"]:
            print(f"{name}, {dtype} ...", file=sys.stderr, flush=True)
            began = time.monotonic()
            result = measure(name, dtype, options)
            result |= describe_setting(arguments, options.device) | {"took": round(time.monotonic() - began)}
            results = keep(options.path(), name, dtype, result)
    save(draw(results), options.path().with_suffix(".svg"))
    show(results)


def describe_setting(arguments: list[str], device: str) -> dict:
    """What a result says of how it was made."""
    return {
        "command": " ".join(["python -m experiments.speed", *arguments]),
        "commit": read_commit(),
        "machine": describe_machine(device),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft")},
    }


def measure(name: str, dtype: str, options: Options) -> dict:
    if reason := explain_skip(name, dtype, options):
        return {"not_available": reason}
    if name == "growth":
        return measure_growth(getattr(torch, dtype), options)
    return measure_case(CASES[name], getattr(torch, dtype), options)


def keep(path: Path, name: str, dtype: str, result: dict) -> dict:
    """Puts one result into a file and leaves the others there -> all of them."""
    results = json.loads(path.read_text()) if path.exists() else {}
    results.setdefault(name, {})[dtype] = result
    set_floors(results)
    write_result(path, results)
    return json.loads(path.read_text())


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
