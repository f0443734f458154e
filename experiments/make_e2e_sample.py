"""Write the bundled sample: made-up restaurants in E2E's format, described by a small grammar.

    python experiments/make_e2e_sample.py [FOLDER]

The same records every time. A text is a main sentence (a frame around a noun phrase); attributes that the
noun phrase does not take become verb phrases or a sentence of their own. No name of a restaurant or place in
the dev and test files is in the training file, so that a model has to copy it from the record.
"""

import csv
import gzip
import io
import random
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "minprefix" / "samples" / "e2e"
SPLITS = {  # file -> records, references of each, share of the names
    "trainset.csv.gz": (700, 4, 0.6),
    "devset.csv.gz": (60, 5, 0.1),
    "testset_w_refs.csv.gz": (120, 6, 0.3),
}

ADJECTIVES = str.split("Amber Brass Copper Crooked Dancing Gentle Hidden Hungry Jolly Lazy Little Lucky")
ADJECTIVES += str.split(
    "Merry Old Patient Quiet Red Rusty Silver Sleepy Stone Sunny Velvet White Wooden Yellow"
)
NOUNS = str.split("Anchor Badger Barrel Basket Candle Cherry Fiddler Fork Garden Goose Heron Kettle Ladle")
NOUNS += str.split("Lantern Lemon Magpie Oven Pepper Piper Saucer Spoon Table Teapot Thistle Tulip Walnut")
OWNERS = str.split(
    "Agnes Bruno Clara Dora Edgar Felix Greta Hugo Ivy Jasper Leo Marta Nora Oscar Rosa Victor"
)
PLACES = str.split("Ashford Beacon Chapel Daisy Elder Falcon Granary Harrow Juniper Kestrel Linden Marble")
PLACES += str.split("Orchard Poplar Rowan Saffron Tanner Weaver")
SITES = str.split("Abbey Bridge Castle Court Gardens Hall Market Park Square Station Street Wharf")

VALUES = {
    "eatType": ["restaurant", "pub", "coffee shop", "bistro", "tea room"],
    "food": [
        "Fast food",
        *str.split("Chinese English French Greek Indian Italian Japanese Mexican Spanish Thai"),
    ],
    "priceRange": ["cheap", "moderate", "high", "less than £20", "£20-25", "more than £30"],
    "customer rating": ["low", "average", "high", "1 out of 5", "3 out of 5", "5 out of 5"],
    "area": ["city centre", "riverside", "old town", "harbour"],
    "familyFriendly": ["yes", "no"],
}

# Ways to say a value: before the noun, after it, as a verb phrase ("it ..."), as a sentence. {} is the value.
PRICE = {
    "cheap": (
        ["cheap", "inexpensive", "low-priced"],
        ["with low prices"],
        ["is cheap", "has low prices", "keeps its prices low"],
        ["prices are low", "a meal is cheap"],
    ),
    "moderate": (
        ["moderately priced", "mid-priced"],
        ["with moderate prices"],
        ["is moderately priced", "has moderate prices", "charges moderate prices"],
        ["prices are moderate", "prices are in the middle range"],
    ),
    "high": (
        ["expensive", "high-priced"],
        ["with high prices"],
        ["is expensive", "has high prices", "charges high prices"],
        ["prices are high", "a meal is expensive"],
    ),
    "less than £20": (
        [],
        ["with prices of {}", "with meals for {}"],
        ["has prices of {}", "charges {}", "offers meals for {}"],
        ["a meal costs {}", "you will pay {}", "prices are below £20"],
    ),
    "£20-25": (
        [],
        ["with prices of {}", "with a price range of {}", "with meals for {}"],
        ["has a price range of {}", "charges {}", "offers meals for {}"],
        ["a meal costs {}", "prices are between £20 and £25", "the price range is {}"],
    ),
    "more than £30": (
        [],
        ["with prices of {}", "with meals for {}"],
        ["has prices of {}", "charges {}", "offers meals for {}"],
        ["a meal costs {}", "you will pay {}", "prices are above £30"],
    ),
}
STARS = (
    ["{}-star"],
    ["with a rating of {} out of 5", "with a customer rating of {} out of 5"],
    ["has a customer rating of {} out of 5", "is rated {} out of 5", "gets {} out of 5 from its customers"],
    ["customers rate it {} out of 5", "its customer rating is {} out of 5", "guests give it {} out of 5"],
)
RATING = {
    "low": (
        ["poorly rated", "low-rated"],
        ["with a low customer rating", "with poor reviews"],
        ["has a low customer rating", "is rated poorly", "gets poor reviews"],
        ["customers rate it poorly", "its customer rating is low", "reviews are poor"],
    ),
    "average": (
        [],
        ["with an average customer rating", "with average reviews"],
        ["has an average customer rating", "is rated average", "gets average reviews"],
        ["customers rate it as average", "its customer rating is average", "reviews are average"],
    ),
    "high": (
        ["highly rated", "well-reviewed"],
        ["with a high customer rating", "with very good reviews"],
        ["has a high customer rating", "is highly rated", "gets very good reviews"],
        ["customers rate it highly", "its customer rating is high", "reviews are very good"],
    ),
}
FAMILY = {
    "yes": (
        ["family-friendly", "child-friendly"],
        ["for the whole family", "for families with children"],
        ["is family friendly", "welcomes children", "is a good place for families", "welcomes families"],
        ["children are welcome", "families are welcome", "you can bring your children"],
    ),
    "no": (
        ["adults-only"],
        ["for adults only", "for guests without children"],
        [
            "is not family friendly",
            "does not welcome children",
            "is not a place for children",
            "is for adults only",
        ],
        ["children are not welcome", "it is not for families", "it is better to leave the children at home"],
    ),
}
AREA = {
    "city centre": ["in the city centre", "in the centre of the city"],
    "riverside": ["by the river", "on the riverside", "in the riverside area"],
    "old town": ["in the old town", "in the old part of town"],
    "harbour": ["at the harbour", "by the harbour", "in the harbour area"],
}
NEAR = ["near {}", "close to {}", "not far from {}", "a short walk from {}"]
GOOD = {"cheap", "less than £20", "high rating", "5 out of 5", "yes"}
BAD = {"high", "more than £30", "low rating", "1 out of 5", "no"}


def make_names(rng: random.Random) -> tuple[list[str], list[str]]:
    """All names of restaurants and of places nearby, shuffled."""
    names = [f"The {adjective} {noun}" for adjective in ADJECTIVES for noun in NOUNS]
    names += [f"{adjective} {noun}" for adjective in ADJECTIVES for noun in NOUNS]
    names += [f"{owner}'s {noun}" for owner in OWNERS for noun in NOUNS]
    places = [f"{place} {site}" for place in PLACES for site in SITES]
    return rng.sample(names, len(names)), rng.sample(places, len(places))


def make_record(rng: random.Random, names: list[str], places: list[str]) -> dict[str, str]:
    """A name and two to seven more attributes, in E2E's order."""
    optional = rng.sample([*VALUES, "near"], rng.choice([2, 3, 4, 4, 5, 5, 6, 6, 7]))
    if not {"eatType", "food"} & set(optional):
        optional[0] = "eatType"  # a text needs a noun to hang on
    values = {"name": rng.choice(names)}
    values |= {key: rng.choice(options) for key, options in VALUES.items() if key in optional}
    return values | ({"near": rng.choice(places)} if "near" in optional else {})


def describe(rng: random.Random, record: dict[str, str]) -> str:
    """One text that says everything in the record."""
    traits = [key for key in ("priceRange", "customer rating", "familyFriendly") if key in record]
    words = {key: ways_to_say(key, record[key]) for key in traits}
    chosen = rng.sample(traits, min(len(traits), rng.choice([0, 1, 1, 2])))
    before = [key for key in traits if key in chosen and words[key][0]]
    rest = rng.sample([key for key in traits if key not in before], len(traits) - len(before))
    after = rest[:1] if rng.random() < 0.4 else []
    rest = rest[len(after) :]
    place = say_place(rng, record)
    noun, serving, food_verb = say_noun(rng, record, [rng.choice(words[key][0]) for key in before])
    tail = " ".join(rng.choice(words[key][1]) for key in after)
    if tail.startswith("for "):  # "a pub for adults only near ...", but "a pub near ... with low prices"
        serving, tail = glue(serving, tail), ""
    verbs = [(rng.choice(words[key][2]), polarity(key, record[key])) for key in rest]
    if place and rng.random() < 0.2:
        verbs.insert(0, (f"{rng.choice(['is', 'can be found'])} {place}", 0))
        place = ""
    if food_verb:
        verbs.insert(0, (food_verb, 0))
    main, verbs_said = say_main(rng, record, noun, serving, place, tail, verbs)
    more = [] if verbs_said or not verbs else say_rest(rng, record, words, rest, verbs)
    return " ".join(f"{text[0].upper()}{text[1:]}." for text in [main, *more])


def ways_to_say(key: str, value: str) -> tuple[list[str], ...]:
    if key == "customer rating" and value[0].isdigit():
        return tuple([way.format(value[0]) for way in ways] for ways in STARS)
    table = {"priceRange": PRICE, "customer rating": RATING, "familyFriendly": FAMILY}[key]
    return tuple([way.format(value) for way in ways] for ways in table[value])


def polarity(key: str, value: str) -> int:
    """+1 good, -1 bad, 0 neither: "but" joins opposites."""
    value = f"{value} rating" if key == "customer rating" and value in ("high", "low") else value
    return (value in GOOD) - (value in BAD)


def say_place(rng: random.Random, record: dict[str, str]) -> str:
    parts = [rng.choice(AREA[record["area"]])] if "area" in record else []
    parts += [rng.choice(NEAR).format(record["near"])] if "near" in record else []
    if len(parts) == 2 and rng.random() < 0.3:
        parts.reverse()
    return " ".join(parts)


def say_noun(rng: random.Random, record: dict[str, str], adjectives: list[str]) -> tuple[str, str, str]:
    """The noun with its article, what it serves, and the food as a verb phrase: food is in one of them."""
    noun = record.get("eatType") or rng.choice(["place", "place to eat", "eating place"])
    serving = verb = ""
    if food := record.get("food"):
        dish = "fast food" if food == "Fast food" else f"{food} {rng.choice(['food', 'dishes', 'cooking'])}"
        how = rng.choice(["before", "serving", "serving", "verb"])
        if how == "before":
            noun = f"{food.lower() if food == 'Fast food' else food} {noun}"
        elif how == "serving":
            serving = f"{rng.choice(['serving', 'that serves', 'offering', 'that offers'])} {dish}"
        else:
            verb = f"{rng.choice(['serves', 'specialises in'])} {dish}"
    noun = " ".join([", ".join(adjectives), noun]).strip()
    article = "an" if noun[0].lower() in "aeiou" else "a"
    return f"{article} {noun}", serving, verb


def say_main(
    rng, record: dict, noun: str, serving: str, place: str, tail: str, verbs: list
) -> tuple[str, bool]:
    """The first sentence, and whether it says the verb phrases."""
    name, phrase = record["name"], glue(noun, serving)
    frames = [glue(name, "is", phrase, place, tail)] * 2
    frames += [glue("there is", noun, "called", name, serving, place, tail)]
    if record.get("customer rating") not in ("low", "1 out of 5"):
        frames += [glue("if you are looking for", phrase, place, tail, ", try", name)]
    if place:
        frames += [
            glue("located", place, ",", name, "is", phrase, tail),
            glue(place, ", you will find", name, ",", phrase, tail),
            glue(place, ", there is", noun, "called", name, serving, tail),
            glue("you can find", name, ",", phrase, tail, ",", place),
        ]
    closed = []
    if verbs:
        said = join_verbs(verbs)
        closed = [glue(name, ",", phrase, place, tail, ",", said)] * 2
        closed += [glue(name, "is", phrase, place, tail, ", and it", said)] * (len(verbs) == 1)
    pick = rng.randrange(len(frames) + len(closed))
    return [*frames, *closed][pick], pick >= len(frames)


def say_rest(rng, record: dict[str, str], words: dict, rest: list[str], verbs: list) -> list[str]:
    """What the main sentence left out: "It ...", or sentences of their own."""
    if len(verbs) == len(rest) <= 2 and rng.random() < 0.5:
        clauses = [(rng.choice(words[key][3]), polarity(key, record[key])) for key in rest]
        return [join_verbs(clauses, comma=True)]
    subject = rng.choice(["it", "it", f"the {record.get('eatType', 'place')}"])
    if len(verbs) > 2 and rng.random() < 0.6:
        return [glue(subject, join_verbs(verbs[:-2])), glue("it", join_verbs(verbs[-2:]))]
    return [glue(subject, join_verbs(verbs))]


def join_verbs(phrases: list[tuple[str, int]], comma: bool = False) -> str:
    """Phrases joined by "and", or by "but" where there are two, one good and one bad."""
    texts = [text for text, _ in phrases]
    if len(texts) == 1:
        return texts[0]
    word = "but" if len(texts) == 2 and phrases[0][1] * phrases[1][1] < 0 else "and"
    return glue(", ".join(texts[:-1]), "," if comma else "", word, texts[-1])


def glue(*parts: str) -> str:
    """The parts that are not empty, with blanks between them and none before a comma."""
    return " ".join(part for part in parts if part).replace(" ,", ",")


def format_mr(record: dict[str, str]) -> str:
    return ", ".join(f"{key}[{value}]" for key, value in record.items())


def make_rows(rng: random.Random, count: int, references: int, names: list[str], places: list[str]):
    """(mr, ref) rows: `count` different records with `references` different texts each."""
    seen = set()
    while len(seen) < count:
        record = make_record(rng, names, places)
        texts = dict.fromkeys(describe(rng, record) for _ in range(10 * references))
        if format_mr(record) not in seen and len(texts) >= references:
            seen.add(format_mr(record))
            yield from ((format_mr(record), text) for text in list(texts)[:references])


def write_sample(folder: Path) -> None:
    rng = random.Random(2021)
    names, places = make_names(rng)
    folder.mkdir(parents=True, exist_ok=True)
    start = 0.0
    for file, (count, references, share) in SPLITS.items():
        own = [pool[int(start * len(pool)) : int((start + share) * len(pool))] for pool in (names, places)]
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerow(("mr", "ref"))
        csv.writer(text, lineterminator="\n").writerows(make_rows(rng, count, references, *own))
        start += share
        (folder / file).write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))


if __name__ == "__main__":
    write_sample(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
