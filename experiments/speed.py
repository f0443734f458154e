"""Seconds and memory beside transformers and PEFT.

    python -m experiments.speed [CASE ...] [pairs=N] [dtype=bfloat16]

Both sides of a case read the same random weights and the same ids, each in a process of its own, and take
turns: one call of ours, one of theirs, and so on. What they compute must agree. Printed are the median ratio
of the pairs, the peak memory of both processes, and the floor: the case's bytes and operations at the rates
that were measured first. experiments/results/speed.json keeps each case's last result, speed.svg shows them.
"""

import dataclasses
import functools
import json
import math
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from experiments.draw_speed import draw, save
from experiments.machine import describe_machine, read_memory, reset_peak
from experiments.run import read_commit
from minprefix.errors import InputError, nearest
from minprefix.generate import generate
from minprefix.hub import load_lm
from minprefix.methods import compute_sites, make_theta, target_loss
from minprefix.prefix import SavedPrefix
from minprefix.store import write_atomically
from minprefix.tokenizer import BART_SPECIAL, BYTE_OF_CHAR

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
RESULT = Path(__file__).parent / "results" / "speed.json"
SCRATCH = Path(tempfile.gettempdir()) / "minprefix-speed"  # the random checkpoints, 3 GB; may be deleted
MINI = Path(__file__).parent.parent / "weights" / "gpt2-mini"
SHAPES = {"gpt2-medium": {"n_embd": 1024, "n_layer": 24, "n_head": 16}, "bart-large": {}}
PREFIX, HIDDEN = 10, 512
LEARNING_RATE = 1e-9  # a real one would enlarge differences of rounding from step to step


@dataclass(frozen=True)
class Work:
    """What one call does: `rows` sources of `source` ids, `target` ids of y (generated where beams > 0)."""

    rows: int
    source: int
    target: int
    beams: int = 0
    length_penalty: float = 1.0


TINY = {"train": Work(1, 3, 2), "decode": Work(1, 3, 2, 2)}  # touches all weights before memory is read


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
    optimizer = torch.optim.AdamW(theta.parameters(), lr=LEARNING_RATE, fused=True)

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


def count_step(work: Work, size: int, trained: bool) -> Phases:
    """Two operations a weight and token forward, two backward to the activations, two to trained weights."""
    tokens, targets = work.rows * (work.source + work.target), work.rows * work.target
    operations = (6 if trained else 4) * (BLOCKS * tokens + HEAD * targets)
    adam = 7 * 4 * (BLOCKS + HEAD) if trained else 0  # reads w, its gradient and both moments; writes three
    return [(0, operations), (adam, 0)]


def count_gpt2(work: Work, size: int) -> Phases:
    """x once; then, for each new token, all weights once, the cache once, all beams' operations."""
    read = work.rows * (work.source - 1)
    cache = work.rows * (PREFIX + work.source) * 2 * 24 * C
    step = (size * (BLOCKS + HEAD + cache), 2 * (BLOCKS + HEAD) * work.rows * work.beams)
    return [(size * BLOCKS, 2 * BLOCKS * read), *[step] * work.target]


def count_bart(work: Work, size: int) -> Phases:
    read, cache = work.rows * work.source, work.rows * work.source * 2 * 12 * C
    attention = 12 * 4 * C * work.source * read
    encode = 2 * (BART_ENCODER + BART_SOURCE) * read + attention
    step = (size * (BART_DECODER + HEAD + cache), 2 * (BART_DECODER + HEAD) * work.rows * work.beams)
    return [(0, encode), *[step] * work.target]


def measure_rates(dtype: torch.dtype) -> dict[str, float]:
    """Bytes a second of a sum over 1 GB, operations a second of a product of 3000 x 3000: the best of 5."""
    numbers, square = torch.ones(2**28), torch.randn(3000, 3000).to(dtype)
    best = {}
    for name, amount, call in (
        ("bytes", 4 * len(numbers), lambda: numbers.sum()),
        ("operations", 2 * 3000**3, lambda: square @ square),
    ):
        seconds = []
        for _ in range(5):
            began = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - began)
        best[name] = amount / min(seconds)
    return best


@dataclass(frozen=True)
class Case:
    """One comparison: both sides' loaders (module-level, so that a process can be started with them)."""

    title: str
    shape: str
    work: Work
    names: tuple[str, str]
    loaders: tuple[Callable, Callable]
    count: Callable[[Work, int], Phases] | None
    target: float  # the largest ratio of seconds that was promised in float32
    peak_target: float | None = None
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
        0.85,
        0.8,
    ),
    "full-step": Case(
        "full fine-tuning step",
        "gpt2-medium",
        STEP,
        ("ours", "transformers"),
        (functools.partial(step_ours, "full"), functools.partial(step_theirs, "full")),
        functools.partial(count_step, trained=True),
        1.0,
    ),
    "prefix-to-full": Case(
        "prefix step / our full step",
        "gpt2-medium",
        STEP,
        ("ours, prefix", "ours, full"),
        (PREFIX_STEP, functools.partial(step_ours, "full")),
        functools.partial(count_step, trained=False),
        0.6,
    ),
    "beam-1": Case(
        "beam 5, batch 1",
        "gpt2-medium",
        Work(1, 40, 30, 5),
        ("ours", "PEFT"),
        (functools.partial(decode_ours, "one"), functools.partial(decode_theirs, "one")),
        count_gpt2,
        0.75,
    ),
    "beam-16": Case(
        "beam 5, batch 16",
        "gpt2-medium",
        Work(16, 40, 30, 5),
        ("ours", "PEFT"),
        (functools.partial(decode_ours, "one"), functools.partial(decode_theirs, "one")),
        count_gpt2,
        0.45,
        pairs=3,
    ),
    "bart": Case(
        "BART, beam 6, batch 10, |x| = 512",
        "bart-large",
        Work(10, 512, 30, 6, 0.8),
        ("ours", "transformers"),
        (functools.partial(decode_ours, "none"), functools.partial(decode_theirs, "none")),
        count_bart,
        0.4,
        0.5,
        pairs=3,
    ),
    "mixed": Case(
        "16 prefixes / one prefix, 16 rows",
        "gpt2-medium",
        Work(16, 40, 8, 5),
        ("ours, mixed", "ours, one"),
        (functools.partial(decode_ours, "mixed"), functools.partial(decode_ours, "one")),
        count_gpt2,
        1.05,
    ),
    "start": Case(
        "start to first token",
        "gpt2-mini",
        Work(1, 0, 1),
        ("ours", "transformers"),
        (functools.partial(start_cold, "ours"), functools.partial(start_cold, "transformers")),
        None,
        0.6,
    ),
}
# Growth: seconds a token while one of these changes and the others stay as in BASE.
BASE = Work(1, 40, 2, 5)
GROWTH = {"source": (40, 160, 640), "beams": (1, 5, 20), "rows": (1, 4, 16)}
MORE = 5  # tokens: the difference to BASE's two is timed, so reading x does not count


def serve(connection, load: Callable, folder: Path, dtype: torch.dtype, tiny: Work) -> None:
    """One side in its own process: loads, then times each Work that it is sent."""
    job = load(folder, dtype)
    job(tiny)
    held = read_memory("VmRSS")
    reset_peak()  # else the peak is that of loading
    connection.send(None)
    while (work := connection.recv()) is not None:
        began = time.perf_counter()
        outputs = job(work)
        seconds = time.perf_counter() - began
        connection.send({"seconds": seconds, "outputs": outputs, "held": held, "peak": read_memory("VmHWM")})


class Sides:
    """Both sides of a case, loaded one after the other, in processes that end with the `with`."""

    def __init__(self, case: Case, dtype: torch.dtype):
        context = multiprocessing.get_context("spawn")
        folder = MINI if case.shape == "gpt2-mini" else make_checkpoint(case.shape)
        tiny = TINY["decode" if case.work.beams else "train"]
        self.connections, self.processes = [], []
        for load in case.loaders:
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, load, folder, dtype, tiny), daemon=True)
            process.start()
            theirs.close()  # so that recv() fails if the process ends
            self.connections.append(ours)
            self.processes.append(process)
            ours.recv()

    def __enter__(self) -> "Sides":
        return self

    def __exit__(self, *error) -> None:
        for connection, process in zip(self.connections, self.processes):
            connection.close()
            process.kill()
            process.join()

    def run(self, work: Work) -> list[dict]:
        """Ours, then theirs -> what each of them says."""
        replies = []
        for connection in self.connections:
            connection.send(work)
            replies.append(connection.recv())
        return replies


def agree(ours: list, theirs: list) -> bool:
    """The same ids; or the same loss and norms, to 1e-4."""
    if isinstance(ours[0], float):
        return all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(ours, theirs, strict=True))
    return ours == theirs


def measure_case(case: Case, dtype: torch.dtype, pairs: int) -> dict:
    rates = measure_rates(dtype)
    with Sides(case, dtype) as sides:
        replies = [sides.run(case.work) for _ in range(pairs)]
    same = case.names[0] != "ours" or all(agree(a["outputs"], b["outputs"]) for a, b in replies)
    if not same and dtype == torch.float32:
        raise InputError(f"{case.title}: the two sides do not agree, so their times say nothing")
    result = {"names": case.names, "target": case.target, "peak_target": case.peak_target, "agree": same}
    result["ratio"] = statistics.median(a["seconds"] / b["seconds"] for a, b in replies)
    result["seconds"] = [[round(reply["seconds"], 3) for reply in pair] for pair in replies]
    if case.count is None:
        return result
    size = torch.finfo(dtype).bits // 8
    phases = case.count(case.work, size)
    floor = sum(max(b / rates["bytes"], o / rates["operations"]) for b, o in phases)
    result |= {"rates": rates, "floor": floor}
    result |= {key: [reply[key] for reply in replies[-1]] for key in ("held", "peak")}
    return result


def measure_growth(dtype: torch.dtype) -> dict:
    """For each value: seconds a token of both sides."""
    case = CASES["beam-1"]
    found: dict = {"names": case.names}
    with Sides(case, dtype) as sides:
        for name, values in GROWTH.items():
            found[name] = {}
            for value in values:
                short = dataclasses.replace(BASE, **{name: value})
                long = dataclasses.replace(short, target=short.target + MORE)
                times = [[reply["seconds"] for reply in sides.run(work)] for work in (short, long)]
                found[name][value] = [round((b - a) / MORE, 4) for a, b in zip(*times)]
                print(f"  {name} {value}: {found[name][value]}", flush=True)
    return found


def lacks_bfloat16() -> str:
    """Why bfloat16 is not measured here, or "" if the processor multiplies it."""
    flags = Path("/proc/cpuinfo").read_text()
    has = re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", flags)
    return "" if has else "the processor has no bfloat16 products (no avx512_bf16, no amx_bf16)"


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


def describe(name: str, dtype: str, result: dict) -> str:
    line = f"{name:<15}{dtype:<10}"
    if "not_available" in result:
        return f"{line}n/a: {result['not_available']}"
    if name == "growth":
        return f"{line}see the picture"
    middle = [statistics.median(times) for times in zip(*result["seconds"])]
    line += f"{result['ratio']:6.3f} {result['target']:6.2f} {middle[0]:9.3f} {middle[1]:9.3f}"
    if "floor" not in result:
        return line
    peaks = [peak / 1e9 for peak in result["peak"]]
    return f"{line} {result['floor']:8.3f} {peaks[0]:8.2f} {peaks[1]:8.2f} {peaks[0] / peaks[1]:6.2f}"


HEADER = f"{'case':<15}{'dtype':<10} ratio target      ours    theirs    floor  GB ours   theirs  ratio"


def main(arguments: list[str]) -> None:
    names, pairs, dtypes = parse_arguments(arguments)
    command = " ".join(["python -m experiments.speed", *arguments])
    for name in names:
        for dtype in dtypes:
            began = time.monotonic()
            print(f"{name}, {dtype} ...", file=sys.stderr, flush=True)
            if dtype == "bfloat16" and len(dtypes) > 1 and (reason := lacks_bfloat16()):
                result = {"not_available": reason}
            elif name == "growth":
                result = measure_growth(getattr(torch, dtype))
            else:
                result = measure_case(CASES[name], getattr(torch, dtype), pairs or CASES[name].pairs)
            facts = {"command": command, "commit": read_commit(), "machine": describe_machine()}
            keep(name, dtype, result | facts | {"took": round(time.monotonic() - began)})
            print(describe(name, dtype, result), flush=True)
    results = json.loads(RESULT.read_text())
    show(results)
    save(draw(results), RESULT.with_suffix(".svg"))


def keep(name: str, dtype: str, result: dict) -> None:
    """Puts one result into speed.json and leaves the others there."""
    results = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    results.setdefault(name, {})[dtype] = result
    text = json.dumps(results, indent=1) + "\n"
    write_atomically(RESULT, lambda part: part.write_text(text))


def show(results: dict) -> None:
    print(f"\nratio: seconds of ours / theirs, median of pairs; GB: peak memory\n{HEADER}")
    for name, by_dtype in results.items():
        for dtype, result in by_dtype.items():
            print(describe(name, dtype, result))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        print(f"speed.py: {error}", file=sys.stderr)
        sys.exit(2)
