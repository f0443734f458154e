"""One cell of Table 2 at the paper's scale, as a smoke test: GPT-2 medium with random weights.

    python -m experiments.paper_scale [device=cuda]

Two steps of prefix-tuning and two generations go the way of train.py and sample.py, with the paper's settings
but a batch of 2. The texts mean nothing; what counts is that the path works, its seconds and its memory. The
result is experiments/results/paper_scale.json.
"""

import dataclasses
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import sample
import train
from experiments.machine import describe_machine
from minprefix.config import parse_config
from minprefix.data import find_files
from minprefix.gpt2 import GPT2, GPT2Config
from minprefix.hub import load_lm
from minprefix.methods import collapse
from minprefix.store import load_prefix, save_prefix

RESULT = Path(__file__).parent / "results" / "paper_scale.json"
SETTINGS = ["dataset=e2e", "data=sample", "model=gpt2-medium", "max_steps=2", "batch_size=2", "n_train=8"]
SETTINGS += ["dev_limit=2", "eval_limit=2"]


def make_medium() -> tuple[GPT2, object]:
    """GPT-2 medium's shape at random; the bundled vocabulary, its other ids written as question marks."""
    tokenizer = load_lm("weights/gpt2-mini")[1]
    tokenizer.bytes_of_id |= {id: b"?" for id in range(len(tokenizer.bytes_of_id), 50257)}
    torch.manual_seed(0)
    config = GPT2Config(50257, 1024, 1024, 24, 16, name="random gpt2-medium", fingerprint="random")
    lm = GPT2(config)
    for embedding in (lm.wte, lm.wpe):
        torch.nn.init.normal_(embedding.weight, std=0.02)  # as GPT-2 was started
    return lm.eval(), tokenizer


def time_call(seconds: dict, name: str, call):
    began = time.monotonic()
    result = call()
    seconds[name] = round(time.monotonic() - began, 1)
    return result


def run_cell(more: list[str]) -> dict:
    """Train, save, load and describe two records -> settings, counts, seconds, memory and texts."""
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        config = parse_config([*SETTINGS, f"out={scratch}/e2e.pt", *more])
        files = find_files(config.dataset, config.data)
        lm, tokenizer = time_call(seconds, "build", make_medium)
        lm.to(config.device)
        theta = time_call(seconds, "train", lambda: train.train(config, lm, tokenizer, files))
        save_prefix(collapse(lm, "prefix", theta, dataclasses.asdict(config), files.origin), config.out)
        losses = [json.loads(line) for line in Path(scratch, "e2e.jsonl").read_text().splitlines()]
        (saved,) = sample.prepare_prefixes(lm, [load_prefix(config.out)])
        size = Path(config.out).stat().st_size
    metrics, described = time_call(
        seconds, "generate", lambda: train.evaluate(config, lm, tokenizer, files, saved)
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if config.device != "cpu":
        peak = torch.cuda.max_memory_allocated()
    return {
        "command": " ".join(["python -m experiments.paper_scale", *more]),
        "commit": subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip(),
        "machine": describe_machine(),
        "seed": config.seed,
        "config": dataclasses.asdict(dataclasses.replace(config, out="")),
        "parameters_of_the_lm": sum(parameter.numel() for parameter in lm.parameters()),
        "parameters_in_training": sum(parameter.numel() for parameter in theta.parameters()),
        "stored_numbers": saved.sites["decoder"].numel(),
        "file_bytes": size,
        "losses": [round(line["loss"], 3) for line in losses if "loss" in line],
        "seconds": seconds,
        "peak_memory_bytes": peak,
        "records": metrics["records"],
        "texts": [text for _, text in described],
    }


if __name__ == "__main__":
    cell = run_cell(sys.argv[1:])
    RESULT.write_text(json.dumps(cell, indent=1, ensure_ascii=False) + "\n")
    print(f"\nwrote {RESULT}: {cell['seconds']}, peak {cell['peak_memory_bytes'] / 2**30:.2f} GiB")
