"""Fences: what the code of commit e7fd707 computed, in small files that tests/test_fences.py compares with.

Run once, with that commit, as `python -m tests.make_fences` (MINPREFIX_DATA names the real data), where
tests/data/fences had no pt/, stopped/, peft/ and half.pt. Do not run it again to hide a difference: a fence
that fails says that behaviour has changed. What stood in tests/data/fences before: cases.toml, three models
of random weights (large ones, so that no two tokens are nearly as likely; EOS is likely enough to end texts),
a data set in E2E's format, and lines.txt for sample.py.
"""

# What the fences touch of the project. Names may move, what they do may not: only this block follows them.
import sample
import train
from minprefix import from_peft, generate, load_lm, load_prefix, save_prefix, to_peft  # noqa: F401 (the tests')
from minprefix.config import Config, parse_config
from minprefix.methods import collapse, compute_sites, make_theta, target_loss
from minprefix.texts import encode_source, encode_target
from tasks import choose_presets, find_files, pick, read_split
from train import make_batches

# isort: split
import contextlib
import hashlib
import itertools
import json
import math
import os
import re
import shutil
import signal
import tomllib
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

ROOT = Path(__file__).resolve().parent.parent
FENCES = ROOT / "tests" / "data" / "fences"
TABLE = tomllib.loads((FENCES / "cases.toml").read_text())


def describe_machine() -> str:
    """Equal where the same code gives the same bits: processor, its instructions, torch; one thread."""
    path = Path("/proc/cpuinfo")
    facts = r"(?:vendor_id|cpu family|model|model name)\s*: (.+)"
    processor = " ".join(re.findall(facts, path.read_text())[:4]) if path.exists() else "unknown"
    return f"{processor}; {torch.backends.cpu.get_cpu_capability()}; torch {torch.__version__}"


def digest(values: object) -> str:
    """Of the bits and shape of a tensor, or of plain values."""
    content = json.dumps(list(values.shape) if isinstance(values, Tensor) else values).encode()
    content += values.detach().contiguous().numpy().tobytes() if isinstance(values, Tensor) else b""
    return hashlib.sha256(content).hexdigest()[:16]


def thin(tensor: Tensor) -> Tensor:
    """At most 16 of its numbers, and the root of the mean of their squares."""
    numbers = tensor.detach().flatten()
    stride = math.ceil(len(numbers) / 16)
    return torch.cat((numbers[::stride], numbers.square().mean().sqrt()[None]))


def make_trained(case: str):
    """A model, its tokenizer, and a theta of the case as if it had been trained: far from its start."""
    model, method, length, hidden, sites = TABLE["cases"][case]
    torch.manual_seed(0)
    lm, tokenizer = load_lm(FENCES / model)
    theta = make_theta(lm, method, length, hidden, [], sites, 4)
    generator = torch.Generator().manual_seed(len(case))
    for _, parameter in sorted(theta.named_parameters()):
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return lm, tokenizer, theta


def measure_case(case: str) -> dict:
    """Losses and gradients on a batch of uneven lengths; logits and ids."""
    lm, tokenizer, theta = make_trained(case)
    method = TABLE["cases"][case][1]
    sources = [encode_source(lm, tokenizer, x) for x, _ in TABLE["texts"]]
    targets = [encode_target(lm, tokenizer, y) for _, y in TABLE["texts"]]
    sites = compute_sites(lm, method, theta)
    loss, tokens = target_loss(lm, sites, list(zip(sources, targets)))
    (loss / tokens).backward()
    facts = {"tokens": tokens, "loss": loss, "logits": read_logits(lm, sites, sources[1], targets[0])}
    facts |= {f"P_theta {site}": P_theta for site, P_theta in sites.items()}
    facts |= {f"gradient {name}": p.grad for name, p in theta.named_parameters() if p.grad is not None}
    saved = collapse(lm, method, theta, {}, "made up")
    return facts | decode(lm, sources, saved if saved.sites else None)


@torch.no_grad()
def read_logits(lm, sites: dict, source: list[int], target: list[int]) -> Tensor:
    """Of each token of a target (1, T, V): the condition is read first, the target in two calls."""
    x, start = lm.split(source)
    prefixes = {site: (P_theta, None) for site, P_theta in sites.items()}
    cache = lm.read(torch.tensor([x]), torch.ones(1, len(x), dtype=torch.bool), prefixes)
    calls = (start + target[:3], target[3:])
    return torch.cat([lm.logits(lm.hidden(torch.tensor([ids]), cache)) for ids in calls], 1)


def decode(lm, sources: list, prefix, ensemble: bool = False) -> dict:
    """The ids that each way of decoding finds."""
    common = {"max_new_tokens": 8, "banned": (22, 61, 265), "ensemble": ensemble}
    ways = TABLE["decodings"].items()
    return {name: generate(lm, sources, prefix, **common, **given) for name, given in ways}


def measure_mixed(model: str) -> dict:
    """Prefixes of several lengths and methods in one batch, or as an ensemble; a padded batch's logits."""
    lm, tokenizer = load_lm(FENCES / model)
    sources = [encode_source(lm, tokenizer, x) for x, _ in TABLE["texts"]]
    prefixes = [make_saved(case) if case else None for case in TABLE["mixed"][model]]
    together = decode(lm, sources, prefixes[:3], ensemble=True)
    facts = decode(lm, sources, prefixes) | {f"{name} together": ids for name, ids in together.items()}
    ids = pad_sequence([torch.tensor(source) for source in sources], batch_first=True)
    mask = pad_sequence([torch.ones(len(source)) for source in sources], batch_first=True)
    inputs = (ids, ids[:, :9]) if model == "bart" else (ids,)
    return facts | {"logits": lm(*inputs, attention_mask=mask)}


def make_saved(case: str):
    lm, _, theta = make_trained(case)
    return collapse(lm, TABLE["cases"][case][1], theta, {}, "made up")


def measure_reader(dataset: str, data: str) -> dict:
    """The origin of a data set, how many records each split has, and a digest over them."""
    files = find_files(dataset, data)
    facts = {"origin": files.origin}
    for split in ("train", "dev", "test"):
        records = [[r.source, list(r.references), r.group] for r in read_split(files, split)]
        facts[split] = [len(records), digest(records)]
    return facts


def measure_real_data(dataset: str) -> dict:
    """Empty if MINPREFIX_DATA does not have it."""
    folder = os.environ.get("MINPREFIX_DATA", "")
    is_there = folder and (Path(folder) / dataset.partition("-")[0]).is_dir()
    return measure_reader(dataset, folder) if is_there else {}


def measure_orders() -> dict:
    """The order of a training's batches, and which records are picked."""
    facts = {"9 of 23": pick(list(range(23)), 9), "all": pick([3, 1, 2], 0)}
    for count, size, seed, epoch in itertools.product((1, 7, 333), (1, 4, 5), (0, 3), (0, 2)):
        batches = make_batches([i * i % 53 for i in range(count)], size, seed, epoch)
        facts[f"{count} in {size}, seed {seed}, epoch {epoch}"] = batches if count == 7 else digest(batches)
    return facts


def measure_presets() -> dict:
    """What differs from the defaults for data sets, models and methods."""
    facts = {}
    methods = ("method=prefix", "method=prefix mlp_hidden=0", "method=full", "method=lora")
    datasets = ("e2e", "webnlg", "xsum", "bbc")
    for dataset, model, method in itertools.product(datasets, ("", "model=gpt2-medium "), methods):
        line = f"dataset={dataset} {model}{method}"
        config = parse_config(line.split(), choose_presets)
        changed = {name: getattr(config, name) for name in vars(Config()) if name not in line}
        facts[line] = {name: value for name, value in changed.items() if value != getattr(Config(), name)}
    return facts


def list_arguments(name: str) -> list[str]:
    """Of the training of a .pt file, begun where its model and data are. Later keys win."""
    settings = [f"model={name.partition('-')[0]}", *TABLE["common"], *TABLE["runs"][name], f"out={name}.pt"]
    return [f"{key}={value}" for key, value in dict(text.split("=", 1) for text in settings).items()]


def ask(name: str) -> dict:
    """What sample.py answers, begun where the models and prefixes are."""
    answers = Path("answers.jsonl")
    sample.main([*TABLE["asked"][name], "--output", str(answers)])
    lines = answers.read_text(encoding="utf-8").splitlines()
    answers.unlink()
    return {"lines": [json.loads(line) for line in lines]}


GROUPS = {  # what is measured -> how
    **{f"case {name}": (measure_case, name) for name in TABLE["cases"]},
    **{f"mixed {model}": (measure_mixed, model) for model in TABLE["mixed"]},
    **{f"asked {name}": (ask, name) for name in TABLE["asked"]},
    **{f"sample {dataset}": (measure_reader, dataset, "sample") for dataset in TABLE["samples"]},
    **{f"data {dataset}": (measure_real_data, dataset) for dataset in TABLE["data"]},
    "orders": (measure_orders,),
    "presets": (measure_presets,),
}


def measure(group: str) -> dict:
    """Plain values and tensors by name; the current folder must hold what sample.py is asked for."""
    function, *arguments = GROUPS[group]
    return function(*arguments)


def pick_tensors(found: dict) -> dict[str, Tensor]:
    return {key: found[key] for key in sorted(found) if isinstance(found[key], Tensor)}


def write_facts(groups: dict[str, dict]) -> None:
    """Plain values and digests as JSON, a few numbers of each tensor beside it."""
    facts, numbers = {}, {}
    for group, found in groups.items():
        tensors = pick_tensors(found)
        facts[group] = found | {key: digest(value) for key, value in tensors.items()}
        if tensors:
            numbers[group] = torch.cat([thin(value) for value in tensors.values()])
    lines = [f"{json.dumps(group)}: {json.dumps(found)}" for group, found in facts.items()]
    (FENCES / "facts.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    save_file(numbers, FENCES / "facts.safetensors")


def stop(arguments: list[str]) -> None:
    """A training that is interrupted in its second step."""

    def interrupt(*given: object) -> object:
        if step.call_count == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return mock.DEFAULT  # go on to the step itself

    step = mock.Mock(wraps=train.take_step, side_effect=interrupt)
    with mock.patch.object(train, "take_step", step), contextlib.suppress(SystemExit):
        train.main(arguments)


def write_runs() -> None:
    """Trainings, some of them once more as far as their second step; a float16 file, a PEFT folder."""
    for folder, names in (("pt", TABLE["runs"]), ("stopped", TABLE["stopped"])):
        Path(folder).mkdir()
        for name in names:
            (train.main if folder == "pt" else stop)(list_arguments(name))
            for file in Path().glob(f"{name}.*"):
                shutil.move(file, folder)
    save_prefix(load_prefix("pt/gpt2-prefix.pt"), "half.pt", torch.float16)
    to_peft("pt/gpt2-prefix.pt", "peft")


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.chdir(FENCES)
    write_runs()
    write_facts({group: measure(group) for group in GROUPS} | {"machine": {"name": describe_machine()}})
