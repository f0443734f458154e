"""A cell of Table 2 at the paper's scale, as a smoke test: GPT-2 medium with random weights.

    python -m experiments.paper_scale

Goes the way of `python -m experiments.run table2 paper e2e-prefix`, with SMOKE on top: two steps and two
generations on made-up records. The texts mean nothing; what counts is that the path works, its seconds and
its memory. The result is experiments/results/paper_scale.json.
"""

import contextlib
import dataclasses
import json
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from experiments.artefacts import PAPER, make_artefacts, read_runs
from experiments.keep import HERE, RESULTS, read_commit, read_table, start, write_result
from experiments.run import run_cell
from minprefix.gpt2 import GPT2, GPT2Config

NAME = "random-gpt2-medium"
SMOKE = [f"model={NAME}", "data=sample", "n_train=8", "batch_size=2", "max_steps=2"]
SMOKE += ["dev_limit=2", "eval_limit=2"]


def save_model(folder: Path, shape: dict[str, int]) -> None:
    """A random GPT-2 with the bundled vocabulary, and names of our own for the ids that this lacks."""
    torch.manual_seed(0)
    lm = GPT2(GPT2Config(**shape))
    for embedding in (lm.wte, lm.wpe):
        torch.nn.init.normal_(embedding.weight, std=0.02)  # as GPT-2 was started
    folder.mkdir()
    save_file(lm.state_dict(), folder / "model.safetensors")
    bundled = HERE.parent / "weights" / "gpt2-mini"
    vocab = json.loads((bundled / "vocab.json").read_text(encoding="utf-8"))
    vocab |= {f" unused{id}": id for id in range(len(vocab), shape["vocab_size"])}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_bytes((bundled / "merges.txt").read_bytes())
    config = {"model_type": "gpt2", "bos_token_id": 0, "eos_token_id": 0, **shape}
    (folder / "config.json").write_text(json.dumps(config))


def run_smoke(shape: dict[str, int]) -> dict:
    """What run_cell writes of the prefix on E2E at the first learning rate of PAPER's grid."""
    cell = make_artefacts(PAPER)["table2"]["e2e-prefix"]
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        save_model(Path(NAME), shape)
        cell = dataclasses.replace(cell, settings=(*cell.settings, *SMOKE), folder=Path(scratch))
        run_cell(cell, cell.rates[0], 0, read_commit())
        (result,) = read_runs(cell).values()
    return result | {"artefact": "paper_scale", "command": "python -m experiments.paper_scale"}


def main(_: list[str]) -> None:
    result = run_smoke(read_table("published")["gpt2-medium"])
    path = RESULTS / "paper_scale.json"
    write_result(path, result)
    print(f"wrote {path}: {result['seconds']} s, peak {result['peak_memory_bytes'] / 2**30:.2f} GiB")


if __name__ == "__main__":
    start(main, __doc__)
