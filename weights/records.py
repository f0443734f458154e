"""Self-supervised records: the facts of a sentence, written in one of many random ways, then the sentence.

Table-to-text needs copying, which a small model does not pick up from plain text. The formats here are not
those of the tasks that the model is later tuned on: no " : ", no " | ", and no key of theirs.
"""

import random
import re

EOT = "<|endoftext|>"
MAX_CHARS = 600  # longer runs of sentences give no record


def words(text: str) -> list[str]:
    return text.split()


STOP_WORDS = words(
    "a about after all also although an and any are as at be because been before being between both but "
    "by can could did do does don't during each for from had has have he her here him his how however i "
    "i'd i'll i'm if in into is it it's its just many may me more most much my no not of ok okay on one "
    "only or other our out over per please she should so some such than thank thanks that that's the "
    "their them then there there's these they this those through to too under until up us very via was we "
    "were what what's when where which while who whom whose why will with would yes you your"
)
NOT_STOP = rf"(?!(?:{'|'.join(map(re.escape, STOP_WORDS))})\b)"
NUMBER = r"(?:[£$€]?\d[\d,.:/–-]*\d%?|[£$€]?\d%?)"
UNIT = r"(?:million|billion|thousand|percent|km|miles|metres|meters|feet|people|years|am|pm)"
CAPITAL = r"[A-Z][\w'’.&-]*\w"
LOWER = rf"{NOT_STOP}[a-z][a-z'’-]{{2,}}"
FACT = re.compile(
    rf"(?P<number>{NUMBER}(?: {UNIT}\b)?)"
    rf"|(?P<name>\b(?i:{NOT_STOP}){CAPITAL}(?:(?: of| of the| de| von| van| the)? {CAPITAL}| \d+\b)*)"
    rf"|(?P<words>\b{LOWER}(?: {LOWER}){{0,2}})"
)
SENTENCE_END = re.compile(
    r"""(?:(?<=[.!?])|(?<=[.!?]["')]))(?<!\b[A-Z]\.)(?<!\b(?:St|Dr|Mr|Jr|No)\.) +(?=["'(]?[A-Z0-9])"""
)

KEYS = {
    "name": words(
        "title label who subject entity person place topic main item entry thing of party source target id"
    ),
    "number": words("year date number count amount time value size when figure total n quantity age score"),
    "words": words(
        "about detail feature kind note property aspect fact info attribute class tag theme role use"
    ),
}
BARE_KEYS = words(
    "a b c d e f g h k1 k2 k3 k4 x y z q1 q2 q3 i ii iii iv v #1 #2 #3 #4 #5 one two three alpha beta"
)
PAIRS = words("{k}={v} {k}:{v} {k}[{v}] {k}({v}) <{k}>{v}</{k}>")
PAIRS += ["{k} = {v}", "{k}: {v}", "{k} -> {v}", "{k} >> {v}", "{k} - {v}", "{k} / {v}", "{k} is {v}"]
PAIRS += ["{k} [{v}]", "{k} ({v})", "{v} ({k})", "<{k}> {v}", "@{k} {v}", '"{k}": "{v}"', "'{k}': '{v}'"]
VALUES = ["[{v}]", "({v})", "<{v}>", "{{{v}}}", '"{v}"', "'{v}'", "- {v}", "* {v}", "_{v}_", "#{v}"]
VALUES += ["{v}"] * 6
BETWEEN = ["\n", "\t", "  ", ", ", "; ", " ; ", " / ", " // ", " ~ ", " & ", " + ", " * "]
BETWEEN += [" • ", " -- ", " > "]
LINKS = ["\t", ", ", "; ", " / ", " -> ", " - ", " > ", " = ", " .. ", " ~ "]
AROUND = ["[{}]", "({})", "<{}>", "{{{}}}", "facts: {}", "Notes\n{}", "data = {}", "input: {}", "# {}"]
AROUND += ["{}"] * 6
MARKERS = ["\n", "\n\n", "\n---\n", "\nText: ", "\nSo: ", " => ", " -> ", " :: ", " >>> "]
MARKERS += [" # ", " = ", " || "]

Facts = list[tuple[str, str]]


def make_records(paragraph: str, rng: random.Random) -> list[tuple[str, str]]:
    """(record, text) for each run of one to three sentences that has facts.

    Half of the records end in <|endoftext|>, as x does in fine-tuning, the others in a marker.
    """
    sentences, records = SENTENCE_END.split(paragraph), []
    while sentences:
        size = rng.choice((1, 1, 2, 2, 3))
        text, sentences = " ".join(sentences[:size]), sentences[size:]
        facts = extract_facts(text, rng) if len(text) <= MAX_CHARS else []
        if len(facts) >= 2:
            ends = rng.random() < 0.5
            record = format_record(facts, rng) + (EOT if ends else rng.choice(MARKERS))
            records.append((record, " " + text if ends and rng.random() < 0.8 else text))
    return records


def extract_facts(text: str, rng: random.Random) -> Facts:
    """(kind, phrase) of most names, numbers and content words of a text, in random order."""
    kinds = {match.group().rstrip(".,:"): match.lastgroup for match in FACT.finditer(text)}
    coverage = rng.choice((0.7, 0.85, 1.0, 1.0))
    facts = [(kind, phrase) for phrase, kind in kinds.items() if rng.random() < coverage]
    rng.shuffle(facts)
    return facts


def format_record(facts: Facts, rng: random.Random) -> str:
    """Facts in a random layout, with random keys, separators and brackets."""
    layout = rng.choice((*[list_values] * 2, *[list_pairs] * 3, list_groups, list_about))
    return rng.choice(AROUND).format(rng.choice(BETWEEN).join(layout(facts, rng)))


def list_values(facts: Facts, rng: random.Random) -> list[str]:
    """Values alone, all in the same brackets: [Zarnock] [1843]."""
    value = rng.choice(VALUES)
    return [value.format(v=phrase) for _, phrase in facts]


def list_pairs(facts: Facts, rng: random.Random) -> list[str]:
    """A key for every value: year=1843 label=Zarnock."""
    pair, bare = rng.choice(PAIRS), rng.random() < 0.25
    case = rng.choice((str, str, str.capitalize, str.upper))
    keys = (rng.choice(BARE_KEYS if bare else KEYS[kind]) for kind, _ in facts)
    return [pair.format(k=case(key), v=phrase) for key, (_, phrase) in zip(keys, facts)]


def list_groups(facts: Facts, rng: random.Random) -> list[str]:
    """Two or three values belong together: (Zarnock / 1843)."""
    link, value, size = rng.choice(LINKS), rng.choice(VALUES), rng.choice((2, 3))
    phrases = [phrase for _, phrase in facts]
    return [value.format(v=link.join(phrases[i : i + size])) for i in range(0, len(phrases), size)]


def list_about(facts: Facts, rng: random.Random) -> list[str]:
    """One name stands before every fact: <Zarnock -> year -> 1843>."""
    link, value = rng.choice(LINKS), rng.choice(VALUES)
    about = next((phrase for kind, phrase in facts if kind == "name"), facts[0][1])
    rest = [(kind, phrase) for kind, phrase in facts if phrase != about]
    return [value.format(v=link.join((about, rng.choice(KEYS[kind]), phrase))) for kind, phrase in rest]
