"""Many users of one frozen model, each with a prefix file of their own: python -m experiments.users [COUNT]

Measures, and writes to experiments/results/users/:
    isolation  whether a user's output depends on who else is in the batch
    loading    COUNT prefix files (default 10,000) of the bundled model: time, memory and bytes
    sizes      bytes for a thousand, a million and a billion users, and how many rows a batch can have

    MINPREFIX_DATA=FOLDER python -m experiments.users half FILE.pt [RECORDS] [OUT.pt]

measures what storing a trained prefix in half precision does to its logits, and to BLEU on so many test
records (default 120; 0: logits only). OUT.pt keeps the half, with its own figures. All of it needs Linux.
"""

import multiprocessing
import os
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from experiments.keep import RESULTS, describe_machine, read_memory, read_table, start, write_result
from minprefix.checks import InputError
from minprefix.config import Config
from minprefix.generate import gather_prefixes, generate
from minprefix.gpt2 import GPT2, GPT2Config
from minprefix.hub import load_lm
from minprefix.prefix import SavedPrefix, read_activations
from minprefix.store import load_prefix, save_prefix
from minprefix.texts import encode_source, encode_target
from tasks import find_files, list_pairs, pick, read_split
from train import describe_split, score_texts

BUNDLED = "weights/gpt2-mini"
RECORD = "name : Blue Spice | Type : coffee shop | food : Thai | area : city centre | near : Crowne"
USERS = {"one": 1, "a thousand": 10**3, "a million": 10**6, "a billion": 10**9}
GIB = 2**30


def make_user(lm, seed: int, length: int) -> SavedPrefix:
    """A prefix of a trained one's scale without a training: the activations of random words (Sec. 7.4)."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(1, lm.config.vocab_size, (length,), generator=generator).tolist()
    base = {"name": lm.config.name, "config": {}, "fingerprint": lm.config.fingerprint}
    P_theta = read_activations(lm, words, length)
    return SavedPrefix("prefix", {"decoder": P_theta}, lm.positions, base, {}, {}, "made up")


@torch.inference_mode()
def read_logits(lm, x: list[int], y: list[int], prefixes: list) -> Tensor:
    """Logits (1 + |y|, V) behind x and behind y's tokens, of the last of the rows, each with its prefix."""
    first, last = lm.split(x)
    read, rest = (torch.tensor([ids] * len(prefixes)) for ids in (first, [*last, *y]))
    cache = lm.read(read, torch.ones_like(read), gather_prefixes(prefixes))
    return lm.logits(lm.hidden(rest, cache))[-1]


def measure_isolation(neighbours: int = 20) -> dict:
    """User B beside `neighbours` different users A, with the batch's shape kept and changed, and alone."""
    lm, tokenizer = load_lm(BUNDLED)
    source = encode_source(lm, tokenizer, RECORD)
    b, seeds = make_user(lm, 0, 10), range(1, neighbours + 1)
    beside = {
        "another A": [[make_user(lm, seed, 10)] for seed in seeds],
        "a shorter A, padded": [[make_user(lm, seed, 4)] for seed in seeds],
        "a longer A, which pads B": [[make_user(lm, seed, 16)] for seed in seeds],
        "nobody": [[]],
        "31 others": [[make_user(lm, seed, 1 + seed % 16) for seed in range(31)]],
    }
    reference = read_logits(lm, source, [], [make_user(lm, 99, 10), b])
    found = {}
    for name, batches in beside.items():
        rows = [read_logits(lm, source, [], [*others, b]) for others in batches]
        apart = max(float((row - reference).abs().max() / reference.abs().max()) for row in rows)
        equal = sum(torch.equal(row, reference) for row in rows)
        found[name] = {"batches": len(rows), "bit for bit": equal, "largest relative difference": apart}
    batches = [[], *(others for name in beside for others in beside[name][:3])]
    texts = [generate(lm, [source] * (1 + len(o)), [*o, b], max_new_tokens=30)[-1] for o in batches]
    same = sum(text == texts[0] for text in texts)
    return {"logits": found, "texts": {"batches": len(texts), "equal to B alone": same, "beams": 5}}


def measure_loading(count: int) -> dict:
    """Writes a folder of prefixes and reads it as a server would, in a process of its own."""
    lm, _ = load_lm(BUNDLED)
    user = make_user(lm, 0, 10)
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        for i in range(count):
            other = {"decoder": user.sites["decoder"] + i / count}
            save_prefix(replace(user, sites=other), Path(folder) / f"{i}.pt")
        seconds = time.monotonic() - began
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            loading = process.submit(load_folder, Path(folder)).result()
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
    facts = {"count": count, "numbers each": user.sites["decoder"].numel(), "bytes on disk": size}
    return facts | {"save seconds": round(seconds, 1)} | loading


def load_folder(folder: Path) -> dict:
    load_prefix(folder / "0.pt")  # what the first load sets up does not count
    before, began = read_memory(), time.monotonic()
    prefixes = [load_prefix(path) for path in sorted(folder.iterdir())]
    loaded, after = time.monotonic(), read_memory()
    gather_prefixes(prefixes[:32])
    return {
        "load seconds (files just written)": round(loaded - began, 1),
        "memory": after - before,
        "seconds to stack 32 rows": round(time.monotonic() - loaded, 5),
    }


def count_sizes() -> dict:
    """Computed, not measured. Adapters as in the paper: LayerNorm, down and up after each block."""
    mini, _ = load_lm(BUNDLED)
    with torch.device("meta"):
        medium = GPT2(GPT2Config(**read_table("published")["gpt2-medium"]))
    return {"gpt2-mini": count_model(mini, 10, 66), "GPT-2 medium": count_model(medium, 5, 224)}


def count_model(lm: GPT2, prefix_len: int, bottleneck: int) -> dict:
    c, width = lm.config, lm.site_widths()["decoder"]
    full = sum(parameter.numel() for parameter in lm.parameters())
    adapter = c.n_layer * (2 * c.n_embd * bottleneck + bottleneck + 3 * c.n_embd)
    stored = {
        f"prefix, {prefix_len} slots, float16": 2 * prefix_len * width,
        f"prefix, {prefix_len} slots": 4 * prefix_len * width,
        f"adapter, bottleneck {bottleneck} ({adapter / full:.1%})": 4 * adapter,
        "full fine-tuning": 4 * full,
    }
    # A table-to-text row: prefix, 60 tokens of x, and 5 beams that each append a slot in all of 100 steps.
    slots = prefix_len + 60 + 5 * 100
    row = 4 * width * slots
    return {
        "bytes each": stored,
        "weights": 4 * full,
        "cache bytes a slot": 4 * width,
        "slots a row": slots,
        "cache bytes a row": row,
        "rows beside the weights in 16 GiB": (16 * GIB - 4 * full) // row,
        "fully fine-tuned models in 16 GiB": 16 * GIB // (4 * full),
    }


def show_bytes(count: float) -> str:
    units = ["B", "KB", "MB", "GB", "TB", "PB"]
    while count >= 1000 and len(units) > 1:
        count, units = count / 1000, units[1:]
    return f"{count:.3g} {units[0]}" if count < 1000 else f"{count:,.0f} {units[0]}"


def measure_half(path: str, records: int, out: str | None = None) -> dict:
    """A trained prefix against the same, stored as float16: logits over dev targets, and texts and BLEU.

    out: where the half stays, with the figures that were measured of it. InputError if it exists.
    """
    if out and Path(out).exists():
        raise InputError(f"{out} exists and is not overwritten: give another name")
    whole = load_prefix(path)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "half.pt"
        save_prefix(whole, file, torch.float16)
        half = load_prefix(file)
        sizes = {"float32": Path(path).stat().st_size, "float16": file.stat().st_size}
    config = replace(Config(**whole.config), eval_limit=records)
    files = find_files(config.dataset, config.data, (config.source_key, config.target_key))
    lm, tokenizer = load_lm(config.model)
    result = {"prefix": Path(path).name, "data": files.origin, "bytes": sizes}
    result["logits"] = compare_logits(
        lm, tokenizer, pick(list_pairs(read_split(files, "dev")), 100), whole, half
    )
    if records:
        texts, others = (describe_split(config, lm, tokenizer, files, prefix) for prefix in (whole, half))
        named = {"float32": texts, "float16": others}
        result["test"] = {name: score_texts(config.dataset, found) for name, found in named.items()}
        result["texts that differ"] = sum(a != b for (_, a), (_, b) in zip(texts, others))
    if out:  # without its old figures, and the place where the whole one was, which means nothing to others
        metrics = result.get("test", {}).get("float16", {})
        save_prefix(replace(half, config=half.config | {"out": ""}, metrics=metrics), out, torch.float16)
    return result


def compare_logits(lm, tokenizer, texts: list, whole: SavedPrefix, half: SavedPrefix) -> dict:
    """Over the tokens of so many targets: differences, and how often the likeliest token is another."""
    largest, changed, tokens, kl = 0.0, 0, 0, 0.0
    for source, target in texts:
        x, y = encode_source(lm, tokenizer, source), encode_target(lm, tokenizer, target)
        a, b = (read_logits(lm, x, y[:-1], [prefix]).log_softmax(-1) for prefix in (whole, half))
        largest = max(largest, float((a - b).abs().max()))
        changed += int((a.argmax(-1) != b.argmax(-1)).sum())
        kl += float((a.exp() * (a - b)).sum())
        tokens += len(y)
    return {
        "targets": len(texts),
        "tokens": tokens,
        "largest difference of log p": largest,
        "mean KL in nats": kl / tokens,
        "likeliest token is another": changed,
    }


def keep(name: str, result: dict) -> None:
    # the times are those of a busy machine
    facts = {"machine": describe_machine(), "load average": os.getloadavg()[0]}
    write_result(RESULTS / "users" / f"{name}.json", facts | result)
    print(f"\n{name}")
    show(result)


def show(result: dict, indent: str = "  ") -> None:
    for name, found in result.items():
        if isinstance(found, dict):
            print(f"{indent}{name}")
            show(found, f"{indent}  ")
        else:
            print(
                f"{indent}{name:<36} {found:,}" if isinstance(found, int) else f"{indent}{name:<36} {found}"
            )


def show_sizes(result: dict) -> None:
    """What so many users take."""
    for model, sizes in result.items():
        print(f"\n{model:<36}" + "".join(f"{name:>12}" for name in USERS))
        for name, each in sizes["bytes each"].items():
            cells = [f"{show_bytes(each * count):>12}" for count in USERS.values()]
            print(f"  {name:<34}" + "".join(cells))


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["half"]:
        path, records, *out = [*arguments[1:], "120"] if len(arguments) == 2 else arguments[1:]
        keep(f"half-{Path(path).stem}", measure_half(path, int(records), *out))
        return
    keep("isolation", measure_isolation())
    keep("loading", measure_loading(int(arguments[0]) if arguments else 10_000))
    keep("sizes", sizes := count_sizes())
    show_sizes(sizes)


if __name__ == "__main__":
    start(main, __doc__)
