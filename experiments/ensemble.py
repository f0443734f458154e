"""Several seeds of the prefix on E2E, one by one and answering together (Sec. 8).

    MINPREFIX_DATA=FOLDER python -m experiments.ensemble WORK [MAX_STEPS] [RECORDS]

Trains five seeds with the settings of the cell `prefix` of e2e (default 800 steps), and describes dev and
test records (default 120 each) with each of them and with all. The length penalty of each is chosen by dev
BLEU. WORK/STEPS-RECORDS keeps the prefixes and a JSON for each piece, which is not made again: a stopped run
goes on where it was. summary.json there holds the table that is printed.
"""

import dataclasses
import json
import statistics
import time
from pathlib import Path

import train
from experiments.artefacts import MINI, make_artefacts
from experiments.keep import start, write_result
from minprefix.hub import load_lm
from minprefix.store import load_prefix
from minprefix.texts import generate_texts
from tasks import find_files, pick, read_split
from tasks.metrics import bleu

CELL = make_artefacts(MINI)["e2e"]["prefix"]
SEEDS, LR = range(5), 2e-3  # the rate that had the best dev BLEU in that cell


def train_seed(work: Path, seed: int, max_steps: int) -> None:
    """Leaves WORK/SEED.pt; goes on from its state if a run was stopped."""
    out, state = work / f"{seed}.pt", work / f"{seed}.state.pt"
    own = (*CELL.settings, f"out={out}", "eval_limit=1", f"max_steps={max_steps}")  # later settings win
    if state.exists():
        train.main([f"resume={state}"])
    elif not out.exists():
        train.main(dataclasses.replace(CELL, settings=own).arguments(LR, seed))


def describe(work: Path, name: str, split: str, alpha: float, records: int) -> dict:
    """BLEU and texts of one system with one length penalty, kept in WORK."""
    path = work / f"{name}-{split}-{alpha:g}.json"
    if not path.exists():
        lm, tokenizer = load_lm("weights/gpt2-mini")
        chosen = pick(read_split(find_files("e2e"), split), records)
        sources = [record.source for record in chosen]
        members = [load_prefix(work / f"{seed}.pt") for seed in (SEEDS if name == "ensemble" else [name])]
        decoding = {"beams": 5, "max_new_tokens": 100, "length_penalty": alpha}
        began = time.monotonic()
        texts = generate_texts(lm, tokenizer, sources, members, decoding, ensemble=True)
        took = {"records": len(chosen), "seconds": round(time.monotonic() - began, 1)}
        write_result(path, bleu(texts, [record.references for record in chosen]) | took | {"texts": texts})
    return json.loads(path.read_text(encoding="utf-8"))


def measure_system(work: Path, name: str, records: int) -> dict:
    """Test metrics with the length penalty that is best on dev."""
    dev = {alpha: describe(work, name, "dev", alpha, records)["BLEU"] for alpha in CELL.alphas}
    best = max(dev, key=dev.get)
    test = describe(work, name, "test", best, records)
    return {
        "length_penalty": best,
        "dev BLEU": dev[best],
        "test BLEU": test["BLEU"],
        "length_ratio": test["length_ratio"],
        "seconds": test["seconds"],
    }


def main(arguments: list[str]) -> None:
    folder, max_steps, records = [*arguments, *["800", "120"][len(arguments) - 1 :]]
    work = Path(folder) / f"{max_steps}-{records}"
    work.mkdir(parents=True, exist_ok=True)
    for seed in SEEDS:
        train_seed(work, seed, int(max_steps))
    systems = {str(name): measure_system(work, str(name), int(records)) for name in (*SEEDS, "ensemble")}
    settings = {"max_steps": int(max_steps), "lr": LR, "data": load_prefix(work / "0.pt").data}
    write_result(work / "summary.json", settings | {"systems": systems})
    print("\nseed      alpha  dev BLEU  test BLEU  length  seconds")
    for name, row in systems.items():
        scores = f"{row['length_penalty']:5g}  {row['dev BLEU']:8.2f}  {row['test BLEU']:9.2f}"
        print(f"{name:<9} {scores}  {row['length_ratio']:6.2f}  {row['seconds']:7.1f}")
    single = [systems[str(seed)]["test BLEU"] for seed in SEEDS]
    spread = f"mean {statistics.mean(single):.2f}, standard deviation {statistics.stdev(single):.2f}"
    print(f"single seeds: {spread}")


if __name__ == "__main__":
    start(main, __doc__)
