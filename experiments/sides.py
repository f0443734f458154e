"""What the two sides of a case of speed.py compute: each loads once, then does its job as often as asked.

A job goes from a Work to what both sides must agree on: ids, or the loss and the norms of gradients.
"""

import functools
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from minprefix.generate import generate
from minprefix.hub import load_lm
from minprefix.methods import compute_sites, make_theta, target_loss
from minprefix.prefix import SavedPrefix
from minprefix.tokenizer import BART_SPECIAL, BYTE_OF_CHAR

SCRATCH = Path(tempfile.gettempdir()) / "minprefix-speed"  # the random checkpoints, 3 GB; may be deleted
MINI = Path(__file__).resolve().parent.parent / "weights" / "gpt2-mini"
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

    def decoding(self) -> dict:
        """Options of both generate() that have one name."""
        length = {"max_new_tokens": self.target, "min_new_tokens": self.target}
        return length | {"length_penalty": self.length_penalty}


Job = Callable[[Work], list]


def make_ids(rows: int, length: int, vocab_size: int, seed: int) -> list[list[int]]:
    """Random ids, none of them special (GPT-2's end is the last id; BART's are the first four)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(4, vocab_size - 1, (rows, length), generator=generator).tolist()


def make_checkpoint(shape: str) -> Path:
    """The folder of a random model with that shape; the vocabulary is of bytes, for only ids are decoded."""
    if shape == "gpt2-mini":
        return MINI
    folder = SCRATCH / shape
    if (folder / "merges.txt").exists():
        return folder
    import transformers

    torch.manual_seed(0)
    if shape.startswith("gpt2"):
        lm = transformers.GPT2LMHeadModel(transformers.GPT2Config(**SHAPES[shape]))
    else:
        lm = transformers.BartForConditionalGeneration(transformers.BartConfig(**SHAPES[shape]))
    for name, parameter in lm.named_parameters():
        if "wpe" in name or "embed_positions" in name:
            parameter.data.mul_(20)  # or the tied head says the last token again
    lm.save_pretrained(folder)
    special = ["<|endoftext|>"] if shape.startswith("gpt2") else BART_SPECIAL
    vocabulary = {token: i for i, token in enumerate([*special, *BYTE_OF_CHAR])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder


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
        lm = add_prefix(lm, prefix_projection=True)
        watched = [lm.prompt_encoder]
        fill(lm.prompt_encoder.parameters())
    trained = [parameter for parameter in lm.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE)
    vocab_size = lm.config.vocab_size

    def job(work: Work) -> list:
        sources = torch.tensor(make_ids(work.rows, work.source, vocab_size, 2))
        ids = torch.cat((sources, torch.tensor(make_ids(work.rows, work.target, vocab_size, 3))), 1)
        labels = torch.cat((torch.full_like(sources, -100), ids[:, work.source :]), 1)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = lm(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss
        return take_step(loss, optimizer, watched)

    return job


def add_prefix(lm, prefix_projection: bool):
    """PEFT's prefix before a model of transformers."""
    from peft import PrefixTuningConfig, get_peft_model

    shape = {"num_virtual_tokens": PREFIX, "encoder_hidden_size": HIDDEN}
    shape |= {"prefix_projection": prefix_projection}
    return get_peft_model(lm, PrefixTuningConfig(task_type="CAUSAL_LM", **shape))


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
        prefix = None if prefixes == "none" else make_prefix(4)
        if prefixes == "mixed":
            prefix = [make_prefix(4 + row) for row in range(work.rows)]
        return generate(lm, sources, prefix, beams=work.beams, **work.decoding())

    return job


def decode_theirs(prefixes: str, folder: Path, dtype: torch.dtype) -> Job:
    """PEFT's generate where there is a prefix, else transformers'."""
    import transformers

    is_bart = folder.name == "bart-large"
    Model = transformers.BartForConditionalGeneration if is_bart else transformers.GPT2LMHeadModel
    lm = Model.from_pretrained(folder, dtype=dtype).eval()
    vocab_size, end = lm.config.vocab_size, lm.config.eos_token_id
    if prefixes == "one":
        lm = add_prefix(lm, prefix_projection=False).eval()
        weight = lm.prompt_encoder["default"].embedding.weight
        weight.data = draw_prefix(weight.shape[1])

    @torch.inference_mode()
    def job(work: Work) -> list:
        ids = torch.tensor(make_ids(work.rows, work.source, vocab_size, 2))
        options = {"num_beams": work.beams, "do_sample": False, **work.decoding()}
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


JOBS = {job.__name__: job for job in (step_ours, step_theirs, decode_ours, decode_theirs, start_cold)}


def agree(ours: list, theirs: list) -> bool:
    """The same ids; or the same loss and norms, to 1e-4."""
    if isinstance(ours[0], float):
        return all(math.isclose(a, b, rel_tol=1e-4) for a, b in zip(ours, theirs, strict=True))
    return ours == theirs
