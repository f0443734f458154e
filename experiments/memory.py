"""The memory of beam search on a BART-large shape: python -m experiments.memory [new tokens]

Ours and transformers' (extra `test`) decode the same 10 sources of 512 tokens with 6 beams, on the same
random weights in float32, each in a process of its own; the ids must agree. Prints, and writes to
experiments/results/memory.json, the peak resident memory of the decoding (Linux), and how much of it came on
top of what the process held before: the weights are loaded by then, and a short source has read all of them.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from experiments.machine import describe_machine, read_memory, reset_peak
from minprefix.errors import InputError
from minprefix.generate import generate
from minprefix.hub import load_lm
from minprefix.store import write_atomically
from minprefix.tokenizer import BART_SPECIAL, BYTE_OF_CHAR

RESULT = Path(__file__).parent / "results" / "memory.json"
SOURCES, LENGTH, BEAMS, ALPHA, VOCABULARY = 10, 512, 6, 0.8, 50265


def make_checkpoint(folder: Path) -> None:
    """Random weights of BART-large's shape, and a vocabulary of bytes: only ids are decoded."""
    from transformers import BartConfig, BartForConditionalGeneration

    torch.manual_seed(0)
    BartForConditionalGeneration(BartConfig(vocab_size=VOCABULARY)).save_pretrained(folder)
    tokens = [*BART_SPECIAL, *BYTE_OF_CHAR]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")


def make_sources() -> list[list[int]]:
    ids = torch.randint(4, VOCABULARY, (SOURCES, LENGTH), generator=torch.Generator().manual_seed(0))
    return ids.tolist()


def load_ours(folder: str) -> Callable[[list[list[int]], int], list[list[int]]]:
    """From sources and a number of new tokens to the ids that beam search finds."""
    lm, _ = load_lm(folder)
    return lambda sources, tokens: generate(
        lm, sources, beams=BEAMS, length_penalty=ALPHA, max_new_tokens=tokens
    )


def load_theirs(folder: str) -> Callable[[list[list[int]], int], list[list[int]]]:
    """The same by transformers; from its ids the start token, the end and the padding are cut."""
    from transformers import BartForConditionalGeneration

    lm = BartForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    end, options = lm.config.eos_token_id, {"num_beams": BEAMS, "length_penalty": ALPHA, "do_sample": False}

    @torch.inference_mode()
    def decode(sources: list[list[int]], tokens: int) -> list[list[int]]:
        rows = lm.generate(torch.tensor(sources), **options, max_new_tokens=tokens)[:, 1:].tolist()
        return [row[: row.index(end)] if end in row else row for row in rows]

    return decode


def measure(side: str, folder: str, tokens: str) -> None:
    """In a process of its own: decodes, then prints what that took as JSON."""
    decode = {"ours": load_ours, "transformers": load_theirs}[side](folder)
    decode([[5, 6, 7]], 2)  # mapped weights count from their first use on
    before, began = read_memory("VmRSS"), time.monotonic()
    reset_peak()  # else the peak is that of loading
    ids = decode(make_sources(), int(tokens))
    peak, seconds = read_memory("VmHWM"), round(time.monotonic() - began)
    print(json.dumps({"peak": peak, "beyond_weights": peak - before, "seconds": seconds, "ids": ids}))


def compare(tokens: int) -> dict:
    sides = {}
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "experiments.memory", "make", folder], check=True)
        for side in ("ours", "transformers"):
            command = [sys.executable, "-m", "experiments.memory", side, folder, str(tokens)]
            printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            sides[side] = json.loads(printed.splitlines()[-1])
    if sides["ours"].pop("ids") != sides["transformers"].pop("ids"):
        raise InputError("the two sides decode different ids: their memory is not comparable")
    ratio = sides["ours"]["beyond_weights"] / sides["transformers"]["beyond_weights"]
    case = {"sources": SOURCES, "length": LENGTH, "beams": BEAMS, "new_tokens": tokens}
    return case | {"machine": describe_machine()} | sides | {"ratio_beyond_weights": round(ratio, 3)}


def main(arguments: list[str]) -> None:
    if arguments and arguments[0] == "make":
        return make_checkpoint(Path(arguments[1]))
    if arguments and arguments[0] in ("ours", "transformers"):
        return measure(*arguments)
    if arguments and not arguments[0].isdecimal():
        raise InputError(f"{arguments[0]!r} is no number of new tokens: write one such as 10")
    result = compare(int(arguments[0]) if arguments else 10)
    write_atomically(RESULT, lambda part: part.write_text(json.dumps(result, indent=1) + "\n"))
    for side in ("ours", "transformers"):
        peak, beyond = result[side]["peak"] / 1e9, result[side]["beyond_weights"] / 1e9
        print(f"{side:<13} peak {peak:5.2f} GB, of which {beyond:5.2f} GB for decoding")
    print(f"ratio of the latter {result['ratio_beyond_weights']:.2f}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        print(f"memory.py: {error}", file=sys.stderr)
        sys.exit(2)
