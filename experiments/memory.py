"""The memory of beam search on a BART-large shape: python -m experiments.memory [new tokens]

Ours and transformers' (extra `test`) decode the same 10 sources of 512 tokens with 6 beams, on the same
random weights in float32, each in a process of its own; the ids must agree. Prints, and writes to
experiments/results/memory.json, the peak resident memory, and what of it is neither the weights nor what the
process held before it read them.
"""

import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

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


def decode_ours(folder: str, tokens: int) -> tuple[int, list[list[int]]]:
    """Bytes in use before the model is loaded, and the ids."""
    before = read_resident()
    lm, _ = load_lm(folder)
    return before, generate(lm, make_sources(), beams=BEAMS, length_penalty=ALPHA, max_new_tokens=tokens)


def decode_theirs(folder: str, tokens: int) -> tuple[int, list[list[int]]]:
    """The same by transformers; from its ids the start token, the end and the padding are cut."""
    from transformers import BartForConditionalGeneration

    before = read_resident()
    lm = BartForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    options = {"num_beams": BEAMS, "length_penalty": ALPHA, "do_sample": False, "max_new_tokens": tokens}
    with torch.inference_mode():
        rows = lm.generate(torch.tensor(make_sources()), **options)[:, 1:].tolist()
    end = lm.config.eos_token_id
    return before, [row[: row.index(end)] if end in row else row for row in rows]


def read_resident() -> int:
    """This process's memory in bytes (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def measure(side: str, folder: str, tokens: str) -> None:
    """In a process of its own: decodes, then prints what that took as JSON."""
    began = time.monotonic()
    before, ids = {"ours": decode_ours, "transformers": decode_theirs}[side](folder, int(tokens))
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = round(time.monotonic() - began)
    weights = (Path(folder) / "model.safetensors").stat().st_size
    beyond = peak - weights - before
    print(json.dumps({"peak": peak, "beyond_weights": beyond, "seconds": seconds, "ids": ids}))


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
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    case = {"sources": SOURCES, "length": LENGTH, "beams": BEAMS, "new_tokens": tokens, "machine": machine}
    return case | sides | {"ratio_beyond_weights": round(ratio, 3)}


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
        print(f"{side:<13} peak {peak:5.2f} GB, of which {beyond:5.2f} GB are not weights")
    print(f"ratio of the latter {result['ratio_beyond_weights']:.2f}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        print(f"memory.py: {error}", file=sys.stderr)
        sys.exit(2)
