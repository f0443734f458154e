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
import math
import multiprocessing
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from experiments.machine import describe_machine, read_memory, reset_peak
from experiments.run import read_commit
from minprefix.errors import InputError, nearest
from minprefix.generate import generate
from minprefix.hub import load_lm
from minprefix.methods import compute_sites, make_theta, target_loss
from minprefix.prefix import SavedPrefix
from minprefix.store import write_atomically
from minprefix.tokenizer import BART_SPECIAL, BYTE_OF_CHAR

QUIET = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": "1"}
QUIET |= {"PYTHONWARNINGS": "ignore"}  # for the processes that are started
RESULT = Path(__file__).parent / "results" / "speed.json"
SCRATCH = Path(tempfile.gettempdir()) / "minprefix-speed"  # the random checkpoints, 3 GB; may be deleted
MINI = Path(__file__).parent.parent / "weights" / "gpt2-mini"
SHAPES = {"gpt2-medium": {"n_embd": 1024, "n_layer": 24, "n_head": 16}, "bart-large": {}}
PREFIX, HIDDEN = 10, 512
LEARNING_RATE = 5e-5


@dataclass(frozen=True)
class Work:
    """What one call does: `rows` sources of `source` ids, `target` ids of y (generated where beams > 0)."""

    rows: int
    source: int
    target: int
    beams: int = 0
    length_penalty: float = 1.0


def make_ids(rows: int, length: int, vocab_size: int, seed: int) -> list[list[int]]:
    """Random ids, none of them special (GPT-2's end is the last id; BART's are the first four)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(4, vocab_size - 1, (rows, length), generator=generator).tolist()


def make_checkpoint(shape: str) -> Path:
    """The folder of a random model with that shape; the vocabulary is of bytes, for only ids are decoded."""
    folder = SCRATCH / shape
    if not (folder / "merges.txt").exists():
        import transformers

        kind = "GPT2" if shape.startswith("gpt2") else "Bart"
        torch.manual_seed(0)
        config = getattr(transformers, f"{kind}Config")(**SHAPES[shape])
        head = {"GPT2": "GPT2LMHeadModel", "Bart": "BartForConditionalGeneration"}[kind]
        lm = getattr(transformers, head)(config)
        for name, parameter in lm.named_parameters():
            if "wpe" in name or "embed_positions" in name:
                parameter.data.mul_(20)  # or the tied head says the last token again
        lm.save_pretrained(folder)
        tokens = [*(BART_SPECIAL if kind == "Bart" else ["<|endoftext|>"]), *BYTE_OF_CHAR]
        (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
        (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder


# The sides. Each loads once and returns what is timed: from a Work to what both sides must agree on.
Job = Callable[[Work], list]


def fill(parameters, seed: int = 1) -> None:
    """The same random numbers for both sides' parameters, in this order."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.data.normal_(0, 0.1, generator=generator)


def step_ours(method: str, folder: Path, dtype: torch.dtype) -> Job:
    lm, _ = load_lm(folder)
    theta = make_theta(lm, method, PREFIX, HIDDEN, [])
    if method == "prefix":
        fill(theta.parameters())
    optimizer = torch.optim.AdamW(theta.parameters(), lr=LEARNING_RATE)

    def job(work: Work) -> list:
        sources = make_ids(work.rows, work.source, lm.config.vocab_size, 2)
        targets = make_ids(work.rows, work.target, lm.config.vocab_size, 3)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            summed, tokens = target_loss(lm, compute_sites(lm, method, theta), list(zip(sources, targets)))
        return take_step(summed / tokens, optimizer, [theta] if method == "prefix" else [lm.wte, lm.h[0]])

    return job


def step_theirs(method: str, folder: Path, dtype: torch.dtype) -> Job:
    """PEFT's prefix with its MLP, or transformers alone."""
    from transformers import GPT2LMHeadModel

    lm = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval()
    watched = [lm.transformer.wte, lm.transformer.h[0]]
    if method == "prefix":
        from peft import PrefixTuningConfig, get_peft_model

        shape = {"num_virtual_tokens": PREFIX, "prefix_projection": True, "encoder_hidden_size": HIDDEN}
        lm = get_peft_model(lm, PrefixTuningConfig(task_type="CAUSAL_LM", **shape))
        watched = [lm.prompt_encoder]
        fill(lm.prompt_encoder.parameters())
    trained = [parameter for parameter in lm.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE)

    def job(work: Work) -> list:
        vocab_size = lm.config.vocab_size
        sources = torch.tensor(make_ids(work.rows, work.source, vocab_size, 2))
        ids = torch.cat((sources, torch.tensor(make_ids(work.rows, work.target, vocab_size, 3))), 1)
        labels = torch.cat((torch.full_like(sources, -100), ids[:, work.source :]), 1)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = lm(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss
        return take_step(loss, optimizer, watched)

    return job


def take_step(loss, optimizer, watched: list) -> list:
    """Backward and AdamW -> the loss and the norm of each watched parameter's gradient."""
    optimizer.zero_grad()
    loss.backward()
    norms = [parameter.grad.norm().item() for module in watched for parameter in module.parameters()]
    optimizer.step()
    return [loss.item(), *norms]


def draw_prefix(width: int, seed: int = 4) -> torch.Tensor:
    return torch.randn(PREFIX, width, generator=torch.Generator().manual_seed(seed)) * 0.3


def decode_ours(prefixes: str, folder: Path, dtype: torch.dtype) -> Job:
    """prefixes: "none", "one" for all rows, or "mixed", another for each row."""
    lm, _ = load_lm(folder, dtype)
    base = {"name": lm.config.name, "fingerprint": lm.config.fingerprint, "config": {}}

    @functools.cache
    def make_prefix(seed: int) -> SavedPrefix:
        sites = {"decoder": draw_prefix(lm.site_widths()["decoder"], seed)}
        return SavedPrefix("prefix", sites, lm.positions, base, {}, {}, "")

    def job(work: Work) -> list:
        sources = make_ids(work.rows, work.source, lm.config.vocab_size, 2)
        options = {"beams": work.beams, "length_penalty": work.length_penalty}
        options |= {"max_new_tokens": work.target, "min_new_tokens": work.target}
        prefix = [make_prefix(4 + row) for row in range(work.rows)] if prefixes == "mixed" else None
        return generate(lm, sources, make_prefix(4) if prefixes == "one" else prefix, **options)

    return job


def decode_theirs(prefixes: str, folder: Path, dtype: torch.dtype) -> Job:
    """PEFT's generate where there is a prefix, else transformers'."""
    import transformers

    is_bart = folder.name == "bart-large"
    Model = transformers.BartForConditionalGeneration if is_bart else transformers.GPT2LMHeadModel
    lm = Model.from_pretrained(folder, dtype=dtype).eval()
    vocab_size, end = lm.config.vocab_size, lm.config.eos_token_id
    if prefixes == "one":
        from peft import PrefixTuningConfig, get_peft_model

        lm = get_peft_model(lm, PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=PREFIX))
        weight = lm.prompt_encoder["default"].embedding.weight
        weight.data = draw_prefix(weight.shape[1])
        lm.eval()

    @torch.inference_mode()
    def job(work: Work) -> list:
        ids = torch.tensor(make_ids(work.rows, work.source, vocab_size, 2))
        options = {"num_beams": work.beams, "length_penalty": work.length_penalty, "do_sample": False}
        options |= {"max_new_tokens": work.target, "min_new_tokens": work.target}
        rows = lm.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **options)
        rows = rows[:, 1 if is_bart else work.source :].tolist()
        return [row[: row.index(end)] if end in row else row for row in rows]  # a BART's last token is forced

    return job


# Cold start: a process of its own, from its start to the first token. FOLDER is the bundled model's.
START = {
    "ours": """
import minprefix
lm, tokenizer = minprefix.load_lm(FOLDER)
print(minprefix.generate(lm, [tokenizer.encode(TEXT)], beams=1, max_new_tokens=1)[0][0])
""",
    "transformers": """
from transformers import AutoModelForCausalLM, AutoTokenizer
lm, tokenizer = AutoModelForCausalLM.from_pretrained(FOLDER), AutoTokenizer.from_pretrained(FOLDER)
inputs = tokenizer(TEXT, return_tensors="pt")
print(lm.generate(**inputs, max_new_tokens=1, do_sample=False)[0, -1].item())
""",
}


def start_cold(side: str, folder: Path, dtype: torch.dtype) -> Job:
    text = "name : Blue Lantern | food : Indian | area : riverside"
    program = f"FOLDER, TEXT = {str(folder)!r}, {text!r}\n{START[side]}"

    def job(work: Work) -> list:
        process = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
        return [int(process.stdout.split()[-1])]

    return job


# The floor: what a case must read (bytes) and compute (operations), in phases that cannot overlap.
Phases = list[tuple[float, float]]
C, VOCABULARY = 1024, 50257  # of both shapes, up to 8 ids
BLOCKS = 24 * 12 * C * C  # weights of GPT-2 medium's 24 blocks
BART_ENCODER, BART_DECODER, BART_SOURCE = 12 * 12 * C * C, 12 * 14 * C * C, 12 * 2 * C * C
HEAD = VOCABULARY * C
THETA = HIDDEN * (C + 24 * 2 * C)  # weights of the MLP that makes the prefix
WIDE = 2**14  # of a square of 1 GB, far more than caches hold
ADAM = 7 * 4  # bytes a trained weight: reads it, its gradient and both moments, writes three of them


def count_step(work: Work, size: int, trained: bool) -> Phases:
    """Two operations a weight and token forward, two backward to the activations, two to trained weights."""
    products = BLOCKS * work.rows * (work.source + work.target) + HEAD * work.rows * work.target
    if trained:
        return [(0, 6 * products), (ADAM * (BLOCKS + HEAD), 0)]
    return [(0, 4 * products + 6 * PREFIX * THETA), (ADAM * THETA, 0)]


def count_gpt2(work: Work, size: int) -> Phases:
    """x once; then, for each new token, all weights and the cache once, and all beams' operations."""
    read = work.rows * (work.source - 1)
    cache = work.rows * (PREFIX + work.source) * 2 * 24 * C
    first = (size * (BLOCKS + HEAD + cache), 2 * (BLOCKS + HEAD) * work.rows)  # beams differ after it
    step = (first[0], first[1] * work.beams)
    return [(size * BLOCKS, 2 * BLOCKS * read), first, *[step] * (work.target - 1)]


def count_bart(work: Work, size: int) -> Phases:
    read, cache = work.rows * work.source, work.rows * work.source * 2 * 12 * C
    attention = 12 * 4 * C * work.source * read
    encode = 2 * (BART_ENCODER + BART_SOURCE) * read + attention
    first = (size * (BART_DECODER + HEAD + cache), 2 * (BART_DECODER + HEAD) * work.rows)
    step = (first[0], first[1] * work.beams)
    return [(0, encode), first, *[step] * (work.target - 1)]


@torch.inference_mode()
def measure_rates(dtype: torch.dtype) -> dict[str, float]:
    """Bytes and operations a second: the best of two kernels each, for none is the best everywhere."""
    weights, square = torch.ones(WIDE, WIDE), torch.randn(3000, 3000).to(dtype)

    def multiply(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:  # oneDNN's
        return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")

    readers, products = [weights.sum], [lambda: square @ square]
    if torch.backends.mkldnn.is_available():
        readers.append(lambda: multiply(weights[:1], weights))
        if dtype == torch.float32:  # in bfloat16, @ is oneDNN's where the processor has it
            products.append(lambda: multiply(square, square))
    reading, multiplying = min(map(time_best, readers)), min(map(time_best, products))
    return {"bytes": 4 * weights.numel() / reading, "operations": 2 * 3000**3 / multiplying}


def time_best(call: Callable) -> float:
    """Seconds of the fastest of five calls."""
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


# What both sides' outputs are compared by.
def agree(ours: list, theirs: list) -> bool:
    """The same ids; or the same loss and norms, to 1e-4."""
    if isinstance(ours[0], float):
        return all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(ours, theirs, strict=True))
    return ours == theirs


def agree_in_first_row(ours: list, theirs: list) -> bool:
    return ours[0] == theirs[0]


@dataclass(frozen=True)
class Case:
    """One comparison: both sides' loaders (module-level, so that a process can be started with them)."""

    title: str
    shape: str
    work: Work
    names: tuple[str, str]
    loaders: tuple[Callable, Callable]
    count: Callable[[Work, int], Phases] | None
    targets: dict[str, float]  # by dtype: the largest ratio of seconds that was promised
    peak_target: float | None = None
    same: Callable[[list, list], bool] | None = agree  # None: the sides compute different things
    warm_up: Work | None = None  # the first call, which is not timed; None: `work`
    pairs: int = 5


STEP = Work(5, 40, 30)
PREFIX_STEP = functools.partial(step_ours, "prefix")
CASES = {
    "prefix-step": Case(
        "prefix step",
        "gpt2-medium",
        STEP,
        ("ours", "PEFT"),
        (PREFIX_STEP, functools.partial(step_theirs, "prefix")),
        functools.partial(count_step, trained=False),
        {"float32": 0.85, "bfloat16": 0.5},
        0.8,
    ),
    "full-step": Case(
        "full fine-tuning step",
        "gpt2-medium",
        STEP,
        ("ours", "transformers"),
        (functools.partial(step_ours, "full"), functools.partial(step_theirs, "full")),
        functools.partial(count_step, trained=True),
        {},
    ),
    "prefix-to-full": Case(
        "prefix step / our full step",
        "gpt2-medium",
        STEP,
        ("ours, prefix", "ours, full"),
        (PREFIX_STEP, functools.partial(step_ours, "full")),
        functools.partial(count_step, trained=False),
        {"float32": 0.6, "bfloat16": 0.6},
        same=None,
    ),
    "beam-1": Case(
        "beam 5, batch 1",
        "gpt2-medium",
        Work(1, 40, 30, 5),
        ("ours", "PEFT"),
        (functools.partial(decode_ours, "one"), functools.partial(decode_theirs, "one")),
        count_gpt2,
        {"float32": 0.75, "bfloat16": 0.45},
    ),
    "beam-16": Case(
        "beam 5, batch 16",
        "gpt2-medium",
        Work(16, 40, 30, 5),
        ("ours", "PEFT"),
        (functools.partial(decode_ours, "one"), functools.partial(decode_theirs, "one")),
        count_gpt2,
        {"float32": 0.45, "bfloat16": 0.35},
        warm_up=Work(16, 40, 2, 5),
    ),
    "bart": Case(
        "BART, beam 6, batch 10, |x| = 512",
        "bart-large",
        Work(10, 512, 30, 6, 0.8),
        ("ours", "transformers"),
        (functools.partial(decode_ours, "none"), functools.partial(decode_theirs, "none")),
        count_bart,
        {"float32": 0.4, "bfloat16": 0.4},
        0.5,
        warm_up=Work(1, 3, 2, 2),
        pairs=3,  # of two minutes each
    ),
    "mixed": Case(
        "16 prefixes / one prefix, 16 rows",
        "gpt2-medium",
        Work(16, 40, 8, 5),
        ("ours, mixed", "ours, one"),
        (functools.partial(decode_ours, "mixed"), functools.partial(decode_ours, "one")),
        count_gpt2,
        {"float32": 1.05, "bfloat16": 1.05},
        same=agree_in_first_row,  # its prefix is the one
    ),
    "start": Case(
        "start to first token",
        "gpt2-mini",
        Work(1, 0, 1, 1),
        ("ours", "transformers"),
        (functools.partial(start_cold, "ours"), functools.partial(start_cold, "transformers")),
        None,
        {"float32": 0.6},
    ),
}
# Growth: seconds a step (a token of each row) while one of these changes and the others stay as in BASE.
BASE = Work(1, 40, 2, 5)
GROWTH = {"source": (40, 160, 640), "beams": (1, 5, 20), "rows": (1, 4, 16)}
MORE = 8  # tokens: the difference to BASE's two is timed, so reading x does not count


def serve(connection, load: Callable, folder: Path, dtype: torch.dtype) -> None:
    """One side in its own process: loads, then times each Work that it is sent, until it is sent None."""
    job = load(folder, dtype)
    connection.send(None)
    while (work := connection.recv()) is not None:
        held = read_memory("VmRSS")
        reset_peak()  # else the peak could be that of loading
        began = time.perf_counter()
        outputs = job(work)
        seconds = time.perf_counter() - began
        children = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # of a cold start
        peak = max(read_memory("VmHWM"), children)
        connection.send({"seconds": seconds, "outputs": outputs, "held": held, "peak": peak})


@contextlib.contextmanager
def open_sides(case: Case, dtype: torch.dtype) -> Iterator[Callable[[Work], list[dict]]]:
    """Both sides, loaded one after the other, each in a process -> what runs a Work on ours, then theirs."""
    context = multiprocessing.get_context("spawn")
    folder = MINI if case.shape == "gpt2-mini" else make_checkpoint(case.shape)
    connections, processes = [], []

    def ask(side: int, *works: Work) -> dict | None:
        """What that side replies to a Work, or, without one, once it has loaded."""
        try:
            for work in works:
                connections[side].send(work)
            return connections[side].recv()
        except (EOFError, OSError):
            message = f"{case.title}: the process of {case.names[side]} ended; what it said stands above"
            raise InputError(message) from None

    try:
        for side, load in enumerate(case.loaders):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, load, folder, dtype), daemon=True)
            process.start()
            theirs.close()  # so that recv() fails if the process ends
            connections.append(ours)
            processes.append(process)
            ask(side)
        yield lambda work: [ask(side, work) for side in range(2)]
    finally:
        for connection, process in zip(connections, processes):
            with contextlib.suppress(OSError):  # it has ended already
                connection.send(None)
            process.join(10)
            process.kill()
            process.join()


def check(case: Case, replies: list[list[dict]], dtype: torch.dtype) -> bool | None:
    """Whether the outputs of all pairs agree, which float32 must; None where nothing can be compared."""
    if case.same is None:
        return None
    same = all(case.same(ours["outputs"], theirs["outputs"]) for ours, theirs in replies)
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
    kind = str(dtype).removeprefix("torch.")
    return {
        "title": case.title,
        "names": case.names,
        "target": case.targets.get(kind),
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
    names = [argument for argument in arguments if "=" not in argument] or [*CASES, "growth"]
    for name in names:
        if name not in CASES and name != "growth":
            raise InputError(f"{name!r} is no case: {nearest(name, [*CASES, 'growth'])}")
    if wrong := set(options) - {"pairs", "dtype"}:
        raise InputError(f"{wrong.pop()!r} is no option: give pairs=N or dtype=float32 or dtype=bfloat16")
    pairs, dtype = options.get("pairs"), options.get("dtype")
    if pairs is not None and (not pairs.isdecimal() or not int(pairs)):
        raise InputError(f"pairs={pairs} must be a whole number from 1 on")
    if dtype not in (None, "float32", "bfloat16"):
        raise InputError(f"dtype={dtype} must be float32 or bfloat16")
    return names, int(pairs) if pairs else None, [dtype] if dtype else ["float32", "bfloat16"]


def set_floors(results: dict) -> None:
    """Each case's floor in seconds, at the best rates that any case of that dtype has measured."""
    for name, by_dtype in results.items():
        for dtype, result in by_dtype.items():
            if "rates" not in result or CASES[name].count is None:
                continue
            known = [cases[dtype]["rates"] for cases in results.values() if "rates" in cases.get(dtype, {})]
            best = {key: max(rates[key] for rates in known) for key in ("bytes", "operations")}
            phases = CASES[name].count(CASES[name].work, getattr(torch, dtype).itemsize)
            result["floor"] = sum(max(b / best["bytes"], o / best["operations"]) for b, o in phases)


HEADER = (
    f"{'case':<15}{'dtype':<9} same  ratio (least-most) target     ours   theirs    floor"
    "  GB ours theirs ratio target"
)


def describe(name: str, dtype: str, result: dict) -> str:
    line = f"{name:<15}{dtype:<9} "
    if "not_available" in result:
        return f"{line}n/a: {result['not_available']}"
    if name == "growth":
        return f"{line}see the picture"
    ratios = [ours / theirs for ours, theirs in result["seconds"]]
    middle = [statistics.median(times) for times in zip(*result["seconds"])]
    same = {True: "yes", False: "no", None: "-"}[result["agree"]]
    line += f"{same:>4} {result['ratio']:6.3f}  ({min(ratios):.2f}-{max(ratios):.2f}) {say(result['target'])}"
    line += f" {middle[0]:8.3f} {middle[1]:8.3f} {say(result.get('floor'), 8, 3)}"
    peaks = [peak / 1e9 for peak in result["peak"]]
    return f"{line} {peaks[0]:8.2f} {peaks[1]:6.2f} {peaks[0] / peaks[1]:5.2f} {say(result['peak_target'])}"


def say(number: float | None, width: int = 6, digits: int = 2) -> str:
    return "-".rjust(width) if number is None else f"{number:{width}.{digits}f}"


def describe_setting(arguments: list[str]) -> dict:
    """What a result says of how it was made."""
    return {
        "command": " ".join(["python -m experiments.speed", *arguments]),
        "commit": read_commit(),
        "machine": describe_machine(),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft")},
    }


def main(arguments: list[str]) -> None:
    if {"-h", "--help", "help"} & set(arguments):
        print(__doc__)
        return
    names, pairs, dtypes = parse_arguments(arguments)
    from experiments.draw_speed import draw, save  # here, for each side imports this module

    os.environ.update(QUIET)
    for name in names:
        for dtype in dtypes:
            began = time.monotonic()
            print(f"{name}, {dtype} ...", file=sys.stderr, flush=True)
            if reason := explain_skip(name, dtype, is_forced=len(dtypes) == 1):
                result = {"not_available": reason}
            elif name == "growth":
                result = measure_growth(getattr(torch, dtype))
            else:
                result = measure_case(CASES[name], getattr(torch, dtype), pairs or CASES[name].pairs)
            took = {"took": round(time.monotonic() - began)}
            results = keep(name, dtype, result | describe_setting(arguments) | took)
            print(describe(name, dtype, results[name][dtype]), flush=True)
    save(draw(results), RESULT.with_suffix(".svg"))
    show(results)


def keep(name: str, dtype: str, result: dict) -> dict:
    """Puts one result into speed.json and leaves the others there -> all of them."""
    results = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    results.setdefault(name, {})[dtype] = result
    set_floors(results)
    text = json.dumps(results, indent=1) + "\n"
    write_atomically(RESULT, lambda part: part.write_text(text))
    return json.loads(text)


def show(results: dict) -> None:
    """All results as a table; InputError if one is faster than its floor, which then is none."""
    print(f"\nratio: seconds of ours / theirs, median of pairs; GB: peak memory\n{HEADER}")
    for name, by_dtype in results.items():
        for dtype, result in by_dtype.items():
            print(describe(name, dtype, result))
            if "floor" in result and min(ours for ours, _ in result["seconds"]) < result["floor"]:
                raise InputError(f"{name}, {dtype} is faster than its floor: the count or a rate is wrong")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        print(f"speed.py: {error}", file=sys.stderr)
        sys.exit(2)
