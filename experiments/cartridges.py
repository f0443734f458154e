"""A prompt, and a document, in a prefix: python -m experiments.cartridges PART [MODEL] [CELL ...]

A text that stands in front of every request is replaced by a few slots, trained so that the frozen model says
behind them what it says behind the text (context distillation; Eyuboglu et al., 2025, for documents). PART:
    prompt     worked E2E examples; the training reads records only, no text that a person wrote
    document   a made-up document of 24 facts (tables/document.toml), asked in other words than in training
    serving    time and memory to the first tokens of 1, 16 and 256 requests behind either
MODEL is gpt2-mini (default) or smollm2-135m; tables/cartridges.toml says how either trains and which cells
there are. A cell is a JSON file in experiments/results/cartridges/MODEL/, and its prefix a .pt file beside
it; one that is there is not run again, and a stopped one goes on. Several processes may share them, and a
GPU is used if there is one. Cells, as KIND-SLOTS, or KIND-SLOTS@SEED, whose training draws other batches:
    whole, nothing    the text itself in front, and nothing
    first, every      no training: the activations of the text's first tokens, of tokens all over it
    distil, spread    distilled from either start; the first of several slots stays as it is
    free, long        as distil, but the first slot trains, too; but with four times the steps
    weighted, single  as distil, but a token counts as much as the text matters to it; but with a third of the
                      questions, one for each fact of the document
    pairs, freepairs  trained on the k examples, or the document's sentences, by Eq. 2; the first slot, too
    both              pairs' loss beside distil's
"""

import functools
import itertools
import json
import random
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from experiments.keep import (
    RESULTS,
    claim,
    describe_machine,
    read_commit,
    read_peak,
    read_table,
    reset_peak,
    start,
    wait_for,
    write_result,
)
from minprefix.checks import InputError
from minprefix.generate import generate
from minprefix.hub import load_lm
from minprefix.methods import collapse, compute_sites, distil_loss, make_theta, target_loss
from minprefix.prefix import DirectPrefix, SavedPrefix, read_activations, spread_activations
from minprefix.store import read_pt, save_prefix, write_atomically, write_pt
from minprefix.texts import encode_source, encode_target
from tasks import find_files, list_pairs, pick, read_split
from tasks.metrics import bleu

PARTS = ("prompt", "document", "serving")
FRONTS, CUTS = ("whole", "nothing"), ("first", "every")  # the former have no |P|, none of them trains
DISTILLED = ("distil", "spread", "free", "long", "weighted", "single", "both")
BY_EQ_2 = ("pairs", "freepairs", "both")
FRAME = "Question: {}\nAnswer:"  # of what is asked about a document
KINDS = (*FRONTS, *CUTS, *DISTILLED, *BY_EQ_2[:2])
Pair = tuple[list[int], list[int]]


@dataclass(frozen=True)
class Bench:
    """What the cells of a part share: a frozen LM, the text in front, and what is asked behind it.

    asked, held_out: sources to train on, and others to measure on. again: some of asked, to measure what of
    the training came through. labelled: pairs for Eq. 2. ends: texts of the model are read up to this token.
    measure(sites, texts, others) -> figures of what it wrote for held_out, and for again. asking: what
    sample.py must know to ask as here.
    """

    lm: torch.nn.Module
    tokenizer: object
    text: list[int]
    asked: list[list[int]]
    held_out: list[list[int]]
    again: list[list[int]]
    labelled: list[Pair]
    ends: int
    measure: Callable[[dict[str, Tensor], list[str], list[str]], dict]
    asking: dict
    settings: dict


def main(arguments: list[str]) -> None:
    part, *names = arguments or [""]
    scales = read_table("cartridges")
    model = names.pop(0) if names and names[0] in scales else "gpt2-mini"
    if part not in PARTS:
        raise InputError(f"unknown part '{part}': choose one of {', '.join(PARTS)}")
    scale, folder = scales[model], RESULTS / "cartridges" / model
    device = "cuda" if torch.cuda.is_available() else "cpu"
    describe = functools.partial(describe_run, model, device, read_commit())
    lm, tokenizer = load_lm(f"weights/{model}", getattr(torch, scale["dtype"]), device)
    openers = {"prompt": open_prompt, "document": open_document}
    if part == "serving":
        benches = {text: openers[text](lm, tokenizer, scale[text]) for text in scale[part]}
        found = {text: measure_serving(bench, scale[part][text]) for text, bench in benches.items()}
        write_result(folder / "serving.json", describe(part) | found)
        return
    bench = openers[part](lm, tokenizer, scale[part])
    teacher = functools.cache(lambda: ask_teacher(bench, folder / part / "teacher.json"))
    for name in names or scale[f"{part}_cells"]:
        path = folder / part / f"{name}.json"
        with claim(path) as mine:
            if mine:
                print(f"{part}: {name}", flush=True)
                write_result(path, describe(part, name) | run_cell(bench, teacher, name, path))


def describe_run(model: str, device: str, commit: str, part: str, cell: str = "") -> dict:
    """What made a result; commit: of the code that was imported, whatever is checked out later."""
    command = f"python -m experiments.cartridges {part} {model} {cell}".strip()
    machine = describe_machine(device)
    return {"command": command, "model": model, "machine": machine, "commit": commit}


def open_prompt(lm, tokenizer, settings: dict) -> Bench:
    """k worked examples in front of a record, as train.py frames them: x, BOS, y, EOS, x, BOS, y, EOS, ..."""
    files = find_files("e2e")
    pairs = list_pairs(read_split(files, "train"))
    rng = random.Random(settings["seed"])
    texts = rng.sample(pairs, settings["examples"])
    labelled = [(encode_source(lm, tokenizer, x), encode_target(lm, tokenizer, y)) for x, y in texts]
    shown = {x for x, _ in texts}
    records = sorted({x for x, _ in pairs} - shown)
    asked = [encode_source(lm, tokenizer, x) for x in rng.sample(records, settings["records"])]
    dev = pick(read_split(files, "dev"), settings["texts"])
    held_out = [encode_source(lm, tokenizer, record.source) for record in dev]
    judged = pick(list_pairs(read_split(files, "dev")), settings["dev"])
    judged = [(encode_source(lm, tokenizer, x), encode_target(lm, tokenizer, y)) for x, y in judged]

    def measure(sites: dict[str, Tensor], written: list[str], others: list[str]) -> dict:
        figures = bleu(written, [record.references for record in dev])
        return {"dev_loss": measure_loss(lm, sites, judged)} | figures

    text = list(itertools.chain.from_iterable(x + y for x, y in labelled))
    facts = settings | {"data": files.origin}
    ends, asking = lm.config.eos_token_id, {"dataset": "e2e"}
    return Bench(lm, tokenizer, text, asked, held_out, [], labelled, ends, measure, asking, facts)


def open_document(lm, tokenizer, settings: dict) -> Bench:
    """A document, two worked questions, and behind them a question; its answer ends with the line."""
    table = read_table("document")
    shown = "".join(f"{FRAME.format(q)} {a}\n\n" for q, a in table["worked"])
    text = tokenizer.encode(f"{table['text'].strip()}\n\n{shown}")
    asked = [tokenizer.encode(FRAME.format(q)) for fact in table["facts"] for q in fact["train"]]
    held_out = [tokenizer.encode(FRAME.format(fact["test"])) for fact in table["facts"]]
    again = [tokenizer.encode(FRAME.format(fact["train"][0])) for fact in table["facts"]]
    sentences = [f"{sentence.strip(' .')}." for sentence in table["text"].strip().split(". ")]
    labelled = [
        (tokenizer.encode(before), tokenizer.encode(f" {after}"))
        for before, after in itertools.pairwise(sentences)
    ]

    def measure(sites: dict[str, Tensor], written: list[str], others: list[str]) -> dict:
        right, trained = (sum(map(is_right, texts, table["facts"])) for texts in (written, others))
        return {"right": right, "right_of_trained": trained, "of": len(table["facts"])}

    [ends] = tokenizer.encode("\n")
    asking = {"dataset": "pairs", "frame": FRAME}
    return Bench(lm, tokenizer, text, asked, held_out, again, labelled, ends, measure, asking, settings)


def is_right(text: str, fact: dict) -> bool:
    return any(answer.lower() in text.lower() for answer in fact["answer"])


def keep_sites(lm, P_theta: Tensor) -> SavedPrefix:
    """A text's activations as a prefix like any other, but on the model's device."""
    theta = DirectPrefix(*P_theta.shape)
    theta.P.data = P_theta
    saved = collapse(lm, "prefix", torch.nn.ModuleDict({"decoder": theta}), {}, "a text's activations")
    return replace(saved, sites={"decoder": P_theta})


def write(bench: Bench, prefix: SavedPrefix | None, sources: list[list[int]]) -> list[list[int]]:
    """What the model says, greedily: ids up to the end and with it."""
    written = generate(bench.lm, sources, prefix, beams=1, max_new_tokens=bench.settings["tokens"])
    cut = (list(itertools.takewhile(lambda id: id != bench.ends, ids)) for ids in written)
    return [[*ids, bench.ends] if len(ids) < bench.settings["tokens"] else ids for ids in cut]


@dataclass(frozen=True)
class Teacher:
    """The text's own activations, and what the model says behind them: of what is asked, and held out.

    told: of the latter's tokens (N,), those that the text tells: without it, the KL to it is above 1 nat.
    """

    prefix: SavedPrefix
    pairs: list[Pair]
    held_out: list[Pair]
    told: Tensor


def ask_teacher(bench: Bench, path: Path) -> Teacher:
    """path: keeps the ids that it has written, for the cells of a later call."""
    prefix = keep_sites(bench.lm, read_activations(bench.lm, bench.text, len(bench.text)))
    parts = {"asked": bench.asked, "held_out": bench.held_out}
    if not path.exists():
        written = {name: write(bench, prefix, sources) for name, sources in parts.items()}
        lines = {name: [" ".join(map(str, ids)) for ids in rows] for name, rows in written.items()}
        write_result(path, lines)
    kept = json.loads(path.read_text(encoding="utf-8"))
    rows = {name: [[int(id) for id in ids.split()] for ids in kept[name]] for name in parts}
    pairs, held_out = (list(zip(sources, rows[name], strict=True)) for name, sources in parts.items())
    return Teacher(prefix, pairs, held_out, measure_kl(bench.lm, {}, prefix.sites, held_out) > 1)


def run_cell(bench: Bench, teacher: Callable[[], Teacher], name: str, path: Path) -> dict:
    """Makes the cell's prefix, measures it, and how far it is from the text on what is held out."""
    kind, length, seed = parse_cell(name, bench.settings["seed"])
    bench = replace(bench, settings=bench.settings | {"seed": seed})
    taught, began = teacher(), time.monotonic()
    prefix, facts = make_prefix(bench, taught, kind, length, path.with_suffix(".state.pt"))
    facts["slots"] = len(prefix.sites["decoder"]) if prefix else 0
    facts["train_seconds"] = round(time.monotonic() - began)
    if prefix:
        save_prefix(prefix, path.with_suffix(".pt"), bench.lm.wte.weight.dtype)
        path.with_suffix(".state.pt").unlink(missing_ok=True)
        facts["bytes"] = path.with_suffix(".pt").stat().st_size
    sources, count = bench.held_out + bench.again, len(bench.held_out)
    said = {tuple(x): y for x, y in taught.held_out + taught.pairs}
    is_teacher = prefix is taught.prefix
    rows = [said[tuple(x)] for x in sources] if is_teacher else write(bench, prefix, sources)
    texts = [bench.tokenizer.decode(id for id in row if id != bench.ends) for row in rows]
    texts = [text.strip().split("\n")[0] for text in texts]  # some tokens hold more than a line break
    sites = prefix.sites if prefix else {}
    kl = measure_kl(bench.lm, sites, taught.prefix.sites, taught.held_out)
    told = kl[taught.told]
    found = {"kl": float(kl.mean()), "kl_told": float(told.sum()) / max(1, len(told)), "told": len(told)}
    found |= {"tokens": len(kl)} | bench.measure(sites, texts[:count], texts[count:])
    facts |= {"text_tokens": len(bench.text), "settings": bench.settings}
    return {"cell": name, **facts, **found, "texts": texts[:count]}


def parse_cell(name: str, seed: int) -> tuple[str, int, int]:
    """KIND-SLOTS@SEED -> its parts; seed: where the name has none. FRONTS have no slots of their own."""
    found = re.fullmatch(r"([a-z]+)(?:-([1-9]\d*))?(?:@(\d+))?", name)
    kind, length, told = found.groups() if found else ("", None, None)
    if kind not in KINDS or (length is None) != (kind in FRONTS):
        raise InputError(f"unknown cell '{name}': write one of {', '.join(KINDS)}, as distil-20@1")
    return kind, int(length or 0), int(told or seed)


def make_prefix(
    bench: Bench, teacher: Teacher, kind: str, length: int, state: Path
) -> tuple[SavedPrefix | None, dict]:
    """The prefix that a cell's name asks for, and the curve of its training."""
    if kind in FRONTS:
        return {"whole": teacher.prefix, "nothing": None}[kind], {}
    theta = make_theta(bench.lm, "prefix", length, 0, bench.text)
    if kind in ("every", "spread"):
        theta["decoder"].P.data = spread_activations(bench.lm, bench.text, length)
    frozen = 0 if kind in ("free", "freepairs") or length == 1 else 1
    losses = [] if kind in CUTS else train(bench, teacher, theta, kind, frozen, state)
    config = {"num_frozen_tokens": frozen, "beams": 1, "max_new_tokens": bench.settings["tokens"]}
    saved = collapse(bench.lm, "prefix", theta, config | bench.asking, bench.settings.get("data", "made up"))
    tens = [losses[i : i + 10] for i in range(0, len(losses), 10)]
    curve = [[10 * i + len(ten), round(sum(ten) / len(ten), 4)] for i, ten in enumerate(tens)]
    return saved, {"loss": curve}


def train(bench: Bench, teacher: Teacher, theta, kind: str, frozen: int, state: Path) -> list[float]:
    """Distils, or trains by Eq. 2, or both."""
    lm, settings, seed = bench.lm, bench.settings, bench.settings["seed"]
    weights = weigh(lm, teacher) if kind == "weighted" else None
    steps = settings["steps"] * (4 if kind == "long" else 1)
    pairs = teacher.pairs[:: 3 if kind == "single" else 1]

    def find_loss(step: int) -> Tensor:
        sites, losses = compute_sites(lm, "prefix", theta), []
        rng = random.Random(f"{seed} {step}")  # so that a stopped cell goes on to the same result
        if kind in DISTILLED:
            chosen = rng.sample(range(len(pairs)), settings["batch"])
            kl = distil_loss(lm, sites, teacher.prefix.sites, [pairs[i] for i in chosen])
            w = torch.cat([weights[i] for i in chosen]) if weights else torch.ones_like(kl)
            losses.append((kl * w).sum() / w.sum())
        if kind in BY_EQ_2:
            count = min(settings["batch"], len(bench.labelled))
            summed, tokens = target_loss(lm, sites, rng.sample(bench.labelled, count))
            losses.append(summed / tokens)
        return sum(losses)

    return descend(theta, find_loss, steps, settings["lr"], frozen, state)


def descend(
    theta, find_loss: Callable[[int], Tensor], steps: int, lr: float, frozen: int, state: Path
) -> list[float]:
    """AdamW on the loss of each step, lr falling to 0 in a line -> these losses.

    The first `frozen` slots stay as they are: where a text begins, heads look that want nothing. state: holds
    an unfinished training, every ten steps, and a later call goes on from it.
    """
    P = theta["decoder"].P
    optimizer = torch.optim.AdamW([P], lr=lr, weight_decay=0.0)
    losses: list[float] = []
    if state.exists():
        kept = read_pt(state)
        P.data, losses = kept["P"].to(P.device), kept["losses"]
        optimizer.load_state_dict(kept["optimizer"])
    for step in range(len(losses), steps):
        loss = find_loss(step)
        optimizer.zero_grad()
        loss.backward()
        P.grad[:frozen] = 0  # and so are AdamW's moments: these slots do not move
        torch.nn.utils.clip_grad_norm_([P], 1.0)
        optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
        optimizer.step()
        losses.append(loss.item())
        if len(losses) % 10 == 0:
            kept = {"P": P.data, "losses": losses, "optimizer": optimizer.state_dict()}
            write_atomically(state, functools.partial(write_pt, kept))
    return losses


@torch.no_grad()
def weigh(lm, teacher: Teacher) -> list[Tensor]:
    """For each pair, how much the text matters to each token of y: KL to what the model says without it."""
    return [0.01 + distil_loss(lm, {}, teacher.prefix.sites, [pair]) for pair in teacher.pairs]


@torch.no_grad()
def measure_kl(lm, sites: dict[str, Tensor], teacher: dict[str, Tensor], pairs: list[Pair]) -> Tensor:
    """For each token of all y, in nats (N,)."""
    parts = [pairs[i : i + 16] for i in range(0, len(pairs), 16)]
    return torch.cat([distil_loss(lm, sites, teacher, part) for part in parts])


@torch.no_grad()
def measure_loss(lm, sites: dict[str, Tensor], pairs: list[Pair]) -> float:
    """Mean over y's tokens, in nats."""
    parts = [target_loss(lm, sites, pairs[i : i + 16]) for i in range(0, len(pairs), 16)]
    return float(sum(loss for loss, _ in parts)) / sum(tokens for _, tokens in parts)


@torch.inference_mode()
def measure_serving(bench: Bench, settings: dict) -> dict:
    """What the first tokens of N requests take, by what stands in front."""
    lm, text = bench.lm, bench.text
    P_text = read_activations(lm, text, len(text))
    whole, few = (keep_sites(lm, P_theta) for P_theta in (P_text, P_text[: settings["slots"]]))
    fronts = {"read for each request": (text, None), "read once": ([], whole)}
    fronts |= {"in a prefix": ([], few), "nothing": ([], None)}
    found: dict[str, dict] = {}
    serve(lm, bench.held_out[:1], few, 1)  # a first call is slower than all others
    for name, (front, prefix) in fronts.items():
        for count in settings["requests"]:
            asked = [front + bench.held_out[i % len(bench.held_out)] for i in range(count)]
            found.setdefault(name, {})[str(count)] = serve(lm, asked, prefix, settings["batch"])
            print(name, count, found[name][str(count)], flush=True)
    return {"text_tokens": len(text), "settings": settings, "fronts": found}


def serve(lm, sources: list[list[int]], prefix: SavedPrefix | None, batch: int) -> dict:
    """One token for each source, so many in a batch: seconds, and memory beyond what is there."""
    device, times = lm.wte.weight.device.type, []
    reset_peak(device)
    before = read_peak(device)
    for _ in range(5 if len(sources) == 1 else 1):  # what is short is noisy: the median
        began = read_clock(device)
        generate(lm, sources, prefix, beams=1, max_new_tokens=1, batch_size=batch)
        times.append(read_clock(device) - began)
    slots = len(sources[0]) + (len(prefix.sites["decoder"]) if prefix else 0)
    width, size = lm.site_widths()["decoder"], lm.wte.weight.element_size()
    held = {"cache_bytes_a_request": slots * width * size, "requests_at_once": min(batch, len(sources))}
    return {"seconds": round(statistics.median(times), 4), "peak_bytes": read_peak(device) - before, **held}


def read_clock(device: str) -> float:
    """Seconds: of the processor, whoever else uses it; of a GPU once it has done what it was given."""
    wait_for(device)
    return time.process_time() if device == "cpu" else time.monotonic()


if __name__ == "__main__":
    start(main, __doc__)
