"""How well a checkpoint copies: python weights/copying.py weights/gpt2-mini CORPUS [records [PREFIX.pt]]

Records of held-out documents, in a format that pre-training never showed (`key : value | key : value`, then
<|endoftext|>), are continued greedily. Printed are two shares: of the names and numbers in the outputs, how
many stand in the record; of those in the records, how many the outputs mention.
"""

import random
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import corpus
import records

from minprefix.hub import load_lm
from minprefix.store import load_prefix
from minprefix.texts import generate_texts


def make_sources(folder: str, count: int) -> list[tuple[str, set[str]]]:
    """(source, its names and numbers) for one sentence of each of `count` held-out documents."""
    rng, sources = random.Random(0), []
    documents = [d for path in corpus.find_files(folder).values() for d in corpus.read_documents(path)]
    documents = [document for document in documents if corpus.is_held_out(document)]
    rng.shuffle(documents)
    for document in documents:
        facts = records.extract_facts(records.SENTENCE_END.split(document[0])[0], rng)
        names = find_names(" | ".join(phrase for _, phrase in facts))
        if len(names) >= 2 and len(facts) <= 8:
            keyed = (f"{rng.choice(records.KEYS[kind])} : {phrase}" for kind, phrase in facts)
            sources.append((" | ".join(keyed), names))
        if len(sources) == count:
            break
    return sources


def find_names(text: str) -> set[str]:
    facts = records.FACT.finditer(text)
    return {fact.group().rstrip(".,:") for fact in facts if fact.lastgroup in ("name", "number")}


def holds(text: str, name: str) -> bool:
    """Whether it is there as whole words: 18 is not in 1843."""
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) is not None


def main(checkpoint: str, folder: str, count: str = "500", prefix: str = "") -> None:
    lm, tokenizer = load_lm(checkpoint)
    saved = load_prefix(prefix) if prefix else None
    sources = make_sources(folder, int(count))
    texts = generate_texts(lm, tokenizer, [x for x, _ in sources], saved, {"beams": 1, "max_new_tokens": 60})
    written = [find_names(text) for text in texts]
    copied = sum(holds(source, name) for names, (source, _) in zip(written, sources) for name in names)
    mentioned = sum(holds(text, name) for text, (_, names) in zip(texts, sources) for name in names)
    total, given = sum(map(len, written)), sum(len(names) for _, names in sources)
    print(f"{checkpoint}: {len(sources)} records; {total} names and numbers in the outputs, {copied} copied;")
    print(f"{given} names and numbers in the records, {mentioned} mentioned")
    for text, (source, _) in list(zip(texts, sources))[:5]:
        print(f"\n{source}\n  {text}")


if __name__ == "__main__":
    main(*sys.argv[1:])
