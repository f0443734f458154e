"""XSum (Narayan et al. 2018): BBC articles and their first sentences; its two extrapolation sets; bbc."""

import re
from dataclasses import replace
from functools import partial

from tasks import SPLITS, DataFiles, Record, Task
from tasks.metrics import rouge
from tasks.rows import read_rows, tidy

SECTION = re.compile(r"/((?:news|sport)/[a-z]*)")  # of a BBC address: news/uk, sport/football


def read(files: DataFiles, split: str, seen: str = "", unseen: str = "") -> list[Record]:
    """Article -> summary. seen, unseen: patterns that the section of a training or dev record, and of a test
    record, must match. Raises InputError with file and line."""
    return read_rows(partial(make, sections=unseen if split == "test" else seen), files.paths[split])


def make(row: dict, sections: str) -> Record | None:
    """A row has document, summary and any of url, topic, topic_guess, which give section and group."""
    found = SECTION.search(row.get("url") or "")
    section = found[1].rstrip("/") if found else row.get("topic") or row.get("topic_guess") or ""
    record = Record(linearise(row), (tidy(row["summary"]),), section.partition("/")[0])
    return record if re.match(sections, section) else None


def linearise(row: dict) -> str:
    """The article, in one line."""
    return tidy(row["document"])


# Sec. 5.3. The authors' script says nothing of no_repeat_ngram_size and early_stopping, so theirs were those
# of the checkpoint's own files; here, too, it decides where nobody gives them.
DECODING = {"max_source": 512, "max_target": 60, "min_new_tokens": 11, "max_new_tokens": 62}
DECODING |= {"beams": 6, "length_penalty": 0.8}
XSUM = Task(
    name="xsum",
    files=tuple((f"{split}.jsonl",) for split in SPLITS),
    advice="python experiments/get_xsum.py downloads the official archive and converts it",
    read=read,
    linearise=linearise,
    metrics=(rouge,),
    decoding=DECODING,
    paper={"lr": 5e-5, "epochs": 30, "batch_size": 14, "prefix_len": 100, "mlp_hidden": 800},
    mini={"model": "weights/bart-mini", "max_steps": 300, "batch_size": 16, "max_source": 128},
)
SPORTS = replace(XSUM, name="xsum-news-to-sports", read=partial(read, seen="news", unseen="sport"))
# a record whose section is not known is in neither part
COMMON = "(uk|world|business)$"
WITHIN = partial(read, seen=f"news/{COMMON}", unseen=f"news/(?!{COMMON}).")
NEWS = replace(XSUM, name="xsum-within-news", read=WITHIN)
BBC = replace(XSUM, name="bbc", advice="experiments/make_bbc.py writes it, from a file that one has to have")
