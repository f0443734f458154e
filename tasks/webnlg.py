"""WebNLG Challenge 2017 (Gardent et al. 2017): DBpedia triples of 15 categories, 5 of them only in test.

Aarhus_Airport : cityServed : "Aarhus, Denmark"
"""

from xml.etree import ElementTree

from minprefix.checks import InputError
from tasks import DataFiles, Record, Task
from tasks.dart import join_triples, tidy_all
from tasks.metrics import bleu, first_three, ter
from tasks.rows import blame, decode, make_each, read_members

PARTS = {"train": "/train/", "dev": "/dev/", "test": "/test/testdata_with_lex.xml"}
UNSEEN = frozenset({"Artist", "Athlete", "CelestialBody", "MeanOfTransportation", "Politician"})


def read(files: DataFiles, split: str) -> list[Record]:
    """The entries in the order of the files' names (size, then category) and within a file; the group is the
    category. Raises InputError with file and entry."""
    path = files.paths[split]
    members = [item for item in read_members(path).items() if PARTS[split] in f"/{item[0]}"]
    return [record for name, content in members for record in read_xml(content, f"{path}, {name}")]


def read_xml(content: bytes, place: str) -> list[Record]:
    text = decode(content, place)
    if "<!DOCTYPE" in text:  # a few lines of entities can grow to gigabytes
        raise InputError(f"{place} declares a DOCTYPE, as no file of WebNLG does; take the official file")
    with blame(place):
        entries = list(ElementTree.fromstring(text).iter("entry"))
    return make_each(make, ((f"{place}, entry {number}", entry) for number, entry in enumerate(entries, 1)))


def make(entry: ElementTree.Element) -> Record:
    triples = [triple.text.split(" | ") for triple in entry.iterfind("modifiedtripleset/mtriple")]
    texts = [lex.text or "" for lex in entry.iterfind("lex")]
    return Record(join_triples(triples), tidy_all(texts), entry.attrib["category"])


def linearise(row: dict) -> str:
    """The source for triples under modifiedtripleset."""
    return join_triples(row["modifiedtripleset"])


WEBNLG = Task(
    name="webnlg",
    files=(("webnlg_challenge_2017", "webnlg_challenge_2017_xml.tar"),) * 3,
    advice="take the folder data/webnlg_challenge_2017 of https://github.com/XiangLi1999/PrefixTuning",
    digests=("409f41df4ecb7fba1a502e9425e27388740b896556c0bdb7b38cf7315e97c811",) * 3,
    read=read,
    linearise=linearise,
    metrics=(bleu, ter),
    prepare=first_three,
    part=lambda category: "unseen" if category in UNSEEN else "seen",
    paper={"lr": 5e-5, "epochs": 5, "batch_size": 5, "prefix_len": 5},
)
