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
SHAPES["smollm2-135m"] = {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536}
SHAPES["smollm2-135m"] |= {"num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3}
SHAPES["smollm2-135m"] |= {"rope_theta": 1e5, "rms_norm_eps": 1e-5, "tie_word_embeddings": True}
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
    from transformers import AutoConfig

    torch.manual_seed(0)
    if shape == "bart-large":
        lm = transformers.BartForConditionalGeneration(transformers.BartConfig(**SHAPES[shape]))
    else:
        kind = "gpt2" if shape.startswith("gpt2") else "llama"
        lm = transformers.AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SHAPES[shape]))
    for name, parameter in lm.named_parameters():
        if "wpe" in name or "embed_positions" in name or (shape == "smollm2-135m" and "proj" in name):
            parameter.data.mul_(20)  # or the tied head says the last token again
    lm.save_pretrained(folder)
    special = ["<|endoftext|>"] if shape.startswith("gpt2") else BART_SPECIAL
    vocabulary = {token: i for i, token in enumerate([*special, *BYTE_OF_CHAR])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder


def fill(parameters, seed: int = 1) -> None:
    """The same random numbers for both sides' parameters, in this order, on any device."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.data.copy_(torch.empty(parameter.shape).normal_(0, 0.1, generator=generator))


def step_ours(method: str, folder: Path, dtype: torch.dtype, device: str = "cpu") -> Job:
    lm, _ = load_lm(folder, dtype, device)
    theta = make_theta(lm, method, PREFIX, HIDDEN, [])
    if method == "prefix":
        fill(theta.parameters())
    optimizer = torch.optim.AdamW(theta.parameters(), lr=LEARNING_RATE, fused=is_fused(dtype))
    watched = [theta] if method == "prefix" else [lm.wte, lm.blocks()[0]]

    def job(work: Work) -> list:
        sources = make_ids(work.rows, work.source, lm.config.vocab_size, 2)
        targets = make_ids(work.rows, work.target, lm.config.vocab_size, 3)
        sites = compute_sites(lm, method, theta)
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            summed, tokens = target_loss(lm, sites, list(zip(sources, targets)))
        return take_step(summed / tokens, optimizer, watched)

    return job


def step_theirs(method: str, folder: Path, dtype: torch.dtype, device: str = "cpu") -> Job:
    """PEFT's prefix with its MLP, or transformers alone. In bfloat16 frozen weights are held in it, as ours;
    for "prefix, held in float32" only products are taken in it, by autocast, as people mostly do.
    """
    from transformers import AutoModelForCausalLM

    frozen, is_prefix = dtype if method == "prefix" else torch.float32, method.startswith("prefix")
    lm = AutoModelForCausalLM.from_pretrained(folder, dtype=frozen).eval().to(device)
    stack = lm.base_model
    watched = [lm.get_input_embeddings(), (stack.h if hasattr(stack, "h") else stack.layers)[0]]
    if is_prefix:
        lm = add_prefix(lm, prefix_projection=True)
        watched = [lm.prompt_encoder]
        fill(lm.prompt_encoder.parameters())
    trained = [parameter for parameter in lm.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, fused=is_fused(dtype))
    vocab_size = lm.config.vocab_size

    def job(work: Work) -> list:
        sources = torch.tensor(make_ids(work.rows, work.source, vocab_size, 2))
        ids = torch.cat((sources, torch.tensor(make_ids(work.rows, work.target, vocab_size, 3))), 1).to(
            device
        )
        labels = torch.cat((torch.full_like(ids[:, : work.source], -100), ids[:, work.source :]), 1)
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            loss = lm(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss
        return take_step(loss, optimizer, watched)

    return job


def is_fused(dtype: torch.dtype) -> bool | None:
    """AdamW as train.py takes it: fused in bfloat16 (transformers' Trainer always does so), else not."""
    return dtype == torch.bfloat16 or None


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
    named = [item for module in watched for item in sorted(module.named_parameters())]
    norms = [parameter.grad.norm().item() for _, parameter in named]
    optimizer.step()
    return [loss.item(), *norms]


def draw_prefix(width: int, seed: int = 4) -> torch.Tensor:
    return torch.randn(PREFIX, width, generator=torch.Generator().manual_seed(seed)) * 0.3


def decode_ours(prefixes: str, folder: Path, dtype: torch.dtype, device: str = "cpu") -> Job:
    """prefixes: "none", "one" for all rows, or "mixed", another for each row."""
    lm, _ = load_lm(folder, dtype, device)
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


def decode_theirs(prefixes: str, folder: Path, dtype: torch.dtype, device: str = "cpu") -> Job:
    """PEFT's generate where there is a prefix, else transformers'."""
    import transformers

    is_bart = folder.name == "bart-large"
    Model = transformers.BartForConditionalGeneration if is_bart else transformers.AutoModelForCausalLM
    lm = Model.from_pretrained(folder, dtype=dtype).eval().to(device)
    vocab_size, end = lm.config.vocab_size, lm.config.eos_token_id
    if prefixes == "one":
        lm = add_prefix(lm, prefix_projection=False).eval().to(device)
        weight = lm.prompt_encoder["default"].embedding.weight
        weight.data = draw_prefix(weight.shape[1]).to(device)

    @torch.inference_mode()
    def job(work: Work) -> list:
        ids = torch.tensor(make_ids(work.rows, work.source, vocab_size, 2), device=device)
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


def start_cold(side: str, folder: Path, *_: object) -> Job:
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
