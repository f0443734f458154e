"""Write the bundled sample for summarisation: made-up news articles, each with a one-sentence summary.

    python experiments/make_xsum_sample.py [FOLDER]

The same articles every time, in the form of the compact XSum files (JSON lines with document, summary and
topic). An article is of a kind (a football match, a storm, ...): its facts are drawn, then said in three to
six sentences. As in XSum the summary is no sentence of the article. No name of a person, town or firm in the
dev and test files is in the training file, so that a model has to copy it from the article.
"""

import gzip
import json
import random
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "minprefix" / "samples" / "xsum"
SPLITS = {"train": (400, 0.6), "dev": (60, 0.2), "test": (60, 0.2)}  # articles, share of the names

STARTS = str.split(
    "Al Bar Bren Cal Cor Dal Dun Ed El Fen Gar Hal Har Ing Kel Lang Mar Nor Os Pen Quen Ram Sel"
)
STARTS += str.split("Stan Tal Thorn Ul Van Wel Wyn Yar Zan")
ENDS = str.split(
    "bury by combe dale den field ford gate ham hurst ley mere mouth sey stead stow ton wick worth"
)
FIRST = str.split(
    "Ada Ben Cora Dan Ella Finn Gwen Hana Ian Jana Karl Lena Milo Nina Omar Pia Quinn Rosa Sam Tess"
)
FIRST += str.split("Umar Vera Will Yara Zoe")
SURNAMES = str.split(
    "Abar Ashdown Beckley Birch Brandt Carrow Coyle Dacre Devlin Eames Farrow Fenner Galt Gorsky"
)
SURNAMES += str.split(
    "Hale Hibbert Ibbot Jessop Keane Kirwan Larkin Lund Maddox Moreau Nash Nkemi Oakes Okell"
)
SURNAMES += str.split(
    "Pardoe Pryce Quist Rahimi Renner Sandys Serle Tamsin Tully Udall Vance Varga Wexler Yates"
)
FIRMS = str.split(
    "Arvon Brightwell Calder Dexmoor Elmtree Farrin Glasson Hexham Ivorine Jarrold Kestra Lumley"
)
FIRMS += str.split(
    "Merrow Norvane Oldbrook Pellam Quarrick Ruston Silverby Tarrant Umberley Vexford Winslow Yeoman"
)
DAYS = str.split("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = str.split("January February March April May June July August September October November December")
COUNTRIES = str.split("Arvenia Belmora Costaria Drelland Estavia Feronia Galdia Hestria")
NUMBERS = str.split("two three four five six seven eight nine ten")

# kind -> section, facts to draw, summaries, and the article's sentences: the first two are always there, one
# to four of the others follow, each said in one of its ways. {town} and the like are the facts.
KINDS = {
    "match": (
        "sport/football",
        {
            "minute": [str(n) for n in range(12, 90)],
            "goals": ["two goals", "a hat-trick", "a late winner", "a header", "a penalty"],
            "place": ["third", "fifth", "sixth", "bottom", "top", "second"],
            "league": ["League One", "the Northern League", "the Premier Division", "League Two"],
        },
        [
            "{name} scored {goals} as {town} beat {town2} in {league}.",
            "{goals!c} from {name} gave {town} victory over {town2} in {league}.",
        ],
        [
            [
                "{name} settled the match against {town2} with {goals}, the last of it in minute {minute}.",
                "The home crowd saw {name} beat {town2} with {goals} after {minute} minutes.",
            ],
            [
                "{town2} are still without a win in {league}, in which {town} are {place}.",
                "{town} are now {place} in the table of {league}.",
            ],
            [
                "The visitors hit the post early on and never came so close again.",
                "The visiting goalkeeper made {number} good saves.",
            ],
            [
                '"{name} was the difference today," said {town} manager {other}.',
                'Manager {other} said: "{name} works harder than anyone at this club."',
            ],
            [
                "{town2} have not won away from home since {month}.",
                "It was defeat number {number} in a row for {town2}.",
            ],
            [
                "{number!c} players were booked in a heated second half.",
                "The match was held up for {number} minutes by a power cut.",
            ],
        ],
    ),
    "signing": (
        "sport/football",
        {
            "role": ["striker", "goalkeeper", "defender", "midfielder", "winger", "full-back"],
            "deal": [
                "a two-year deal",
                "a three-year contract",
                "a loan until the end of the season",
                "a one-year contract",
            ],
            "age": [str(n) for n in range(18, 35)],
        },
        [
            "{town} have signed {town2} {role} {name} on {deal}.",
            "{role!c} {name} has joined {town} from {town2} on {deal}.",
        ],
        [
            [
                "{name}, a {role} aged {age}, leaves {town2} after {number} seasons and has agreed {deal}.",
                "The {role} {name}, {age}, played {count} games for {town2} before agreeing {deal}.",
            ],
            ["{town} had followed the {role} since {month}.", "{town} paid no fee for {name}."],
            [
                '"{town} is the right place for me," {last} told the club website.',
                '"I cannot wait to start," said {last}.',
            ],
            [
                "Manager {other} has now brought in {number} new players.",
                "{other}, the {town} manager, had lost {number} players to injury.",
            ],
            [
                "{last} could play against Farside United on {day}.",
                "The new man wears the number {count} shirt.",
            ],
        ],
    ),
    "tennis": (
        "sport/tennis",
        {
            "event": ["Harbour Open", "Lakeside Masters", "Winter Cup", "Coast Classic", "Island Open"],
            "round": ["first round", "second round", "quarter-final", "semi-final", "final"],
            "score": ["6-4 6-3", "7-5 6-2", "3-6 6-4 6-1", "6-7 7-5 6-4", "6-0 6-3"],
            "seed": ["top seed", "second seed", "third seed", "eighth seed"],
        },
        [
            "{name} beat {seed} {other} in the {round} of the {event}.",
            "{seed!c} {other} has lost to {name} in the {round} of the {event}.",
        ],
        [
            [
                "{name} won {score} in the {round}, in {number} hours on centre court.",
                "It took {name} {number} match points in the {round} to win {score}.",
            ],
            [
                "{other}, the {seed}, made {count} unforced errors at the {event}.",
                "The {seed}, {other}, had won the {event} a year ago.",
            ],
            ['"I played the match of my life," said {last}.', '"My serve saved me," {last} said.'],
            [
                "{last} comes from {town} and first played on a public court there.",
                "{last}, from {town}, is number {count} in the world.",
            ],
            ["Rain delayed the start on {day}.", "The tournament ends on {day}."],
        ],
    ),
    "race": (
        "sport/athletics",
        {
            "race": ["marathon", "half marathon", "10,000m", "hill race", "5,000m"],
            "record": [
                "a course record",
                "a national record",
                "a personal best",
                "the best time of the year",
            ],
        },
        [
            "{name} has won the {town} {race} in {record}.",
            "{record!c} gave {name} victory in the {race} at {town}.",
        ],
        [
            [
                "{name} pulled away from the field on the last hill in {town} and set {record}.",
                "Nobody in {town} could follow {name}, whose time was {record}.",
            ],
            [
                "{other} came second in the {race}, {count} seconds behind.",
                "Last year's {race} winner {other} was second.",
            ],
            [
                '"The wind was with us today," said {last}.',
                '"I only wanted to finish," {last} told reporters.',
            ],
            ["About {count}00 runners took part on {day}.", "Thousands lined the streets on {day}."],
            [
                "{last} took up running {number} years ago after an operation.",
                "{last} works as a nurse and trains before dawn.",
            ],
        ],
    ),
    "injury": (
        "sport/rugby",
        {
            "part": ["knee", "shoulder", "ankle", "hamstring", "thumb"],
            "time": ["six weeks", "three months", "the rest of the season", "the next four games"],
            "role": ["captain", "prop", "fly-half", "scrum-half", "lock"],
        },
        [
            "{town} {role} {name} will miss {time} with a {part} injury.",
            "A {part} injury will keep {town} {role} {name} out for {time}.",
        ],
        [
            [
                "{role!c} {name} was carried off holding the {part} in the win over {town2} on {day}.",
                "{name}, the {role}, hurt the {part} in training before the game at {town2}.",
            ],
            [
                "Scans showed that {town} will be without {last} for {time}.",
                "Doctors at {town} say that it will take {time} to heal.",
            ],
            [
                '"It is a blow for all of us," said coach {other}.',
                'Coach {other} said: "We have others who can do the job."',
            ],
            [
                "{last} has scored {count} tries since {month}.",
                "{last} has played for {town} for {number} years.",
            ],
            ["{town} next meet Oldshore on {day}.", "The squad has lost {number} players this year."],
        ],
    ),
    "council": (
        "news/uk",
        {
            "plan": ["close", "rebuild", "sell", "reopen", "double the size of"],
            "place": [
                "library",
                "swimming pool",
                "town hall",
                "bus station",
                "covered market",
                "leisure centre",
            ],
            "cost": [f"£{n / 10:g}m" for n in range(8, 60, 3)],
        },
        [
            "Councillors in {town} have voted to {plan} the {place}.",
            "Under plans worth {cost}, {town} is to {plan} its {place}.",
        ],
        [
            [
                "The decision to {plan} the {place} was taken by {count} votes to {number} on {day}.",
                "A meeting in {town} on {day} backed the proposal to {plan} the {place}.",
            ],
            [
                "The council of {town} expects it to cost {cost}.",
                "Officials in {town} put the cost at {cost}.",
            ],
            [
                '"This is about the future of our town," said council leader {name}.',
                'Council leader {name} said: "We listened to everyone."',
            ],
            [
                'Campaigner {other} called it "a sad day".',
                "A petition by {other} was signed by {count}00 people.",
            ],
            ["Work is due to start in {month}.", "Nothing will change before {month}, the council said."],
            ["The {place} was built {count} years ago.", "The {place} has been in use for {count} years."],
        ],
    ),
    "fire": (
        "news/uk",
        {
            "place": [
                "a furniture warehouse",
                "a former mill",
                "a farm shop",
                "a row of garages",
                "a paint factory",
                "a bakery",
            ],
            "hurt": [
                "Nobody was hurt",
                "Two people were treated for smoke",
                "One man was taken to hospital",
                "A woman and her dog were rescued",
            ],
            "crews": [
                "Forty firefighters",
                "Sixty firefighters",
                "Crews from six stations",
                "More than 50 firefighters",
            ],
        },
        ["{crews} have tackled a blaze at {place} in {town}.", "A fire has destroyed {place} in {town}."],
        [
            [
                "{crews} were called to {place} on the edge of {town} just after {hour} on {day}.",
                "Smoke from {place} could be seen across {town}, and {crews!l} worked through the night.",
            ],
            [
                "{hurt}, the fire service said, but little of the building is left.",
                "{hurt}, said fire chief {name} in front of the ruins.",
            ],
            [
                '"The flames were as high as the trees," said neighbour {other}.',
                'Neighbour {other} said: "We heard a bang and ran."',
            ],
            [
                "Residents were told to keep their windows closed.",
                "The road to {town2} was shut for {number} hours.",
            ],
            ["The cause is not yet known.", "Investigators think that an electrical fault was to blame."],
        ],
    ),
    "animal": (
        "news/uk",
        {
            "animal": ["cat", "goat", "parrot", "tortoise", "pony", "sheepdog", "donkey", "owl"],
            "trap": [
                "a drainpipe",
                "a disused well",
                "a chimney",
                "the mud of a river bank",
                "a cattle grid",
                "a supermarket roof",
            ],
            "pet": ["Biscuit", "Captain", "Duchess", "Gizmo", "Marmalade", "Pickle", "Rocket", "Smudge"],
        },
        [
            "A {animal} called {pet} has been rescued from {trap} in {town}.",
            "Rescuers in {town} have freed a {animal} from {trap}.",
        ],
        [
            [
                "{pet} the {animal} was stuck in {trap} for {number} hours before help came.",
                "It took {number} hours to get {pet} out of {trap}.",
            ],
            [
                "Owner {name}, from {town}, had searched for the {animal} since {day}.",
                "The {animal} belongs to {name}, who lives in {town}.",
            ],
            [
                '"I thought we had lost {pet} for good," said {last}.',
                '{last} said: "{pet} is eating again, so all is well."',
            ],
            ["Rescue worker {other} used soap and a rope.", "A vet, {other}, found nothing but a scratch."],
            ["The team is called out about {count} times a year.", "A crowd of {count} people watched."],
        ],
    ),
    "storm": (
        "news/world",
        {
            "storm": ["storm", "flood", "earthquake", "landslide", "cyclone", "forest fire"],
            "country": COUNTRIES,
            "harm": [
                "has destroyed hundreds of homes",
                "has left thousands without power",
                "has cut off several villages",
                "has closed the main airport",
            ],
        },
        ["A {storm} in {country} {harm}.", "Rescue teams are at work in {country} after a {storm}."],
        [
            [
                "The {storm} struck the region of {town} in the early hours of {day} and {harm}.",
                "Officials say that the {storm}, which hit {town} on {day}, {harm}.",
            ],
            [
                "The government of {country} has declared a state of emergency.",
                "{country} has asked its neighbours for help.",
            ],
            [
                '"We lost everything in a few minutes," said farmer {name}.',
                '"The noise was terrible," {name}, a teacher, said.',
            ],
            [
                "About {count} people are missing.",
                "At least {count} people were hurt, according to local media.",
            ],
            [
                "Aid workers led by {other} are handing out tents and water.",
                "Minister {other} is to visit the area on {day}.",
            ],
            [
                "It is the worst {storm} there in {number} years.",
                "A similar {storm} killed {count} people {number} years ago.",
            ],
        ],
    ),
    "election": (
        "news/world",
        {
            "country": COUNTRIES,
            "office": ["president", "prime minister", "mayor of the capital"],
            "issue": ["higher wages", "an end to corruption", "cheaper housing", "more money for schools"],
            "share": [str(n) for n in range(51, 68)],
        },
        [
            "{name} has been elected {office} of {country} after promising {issue}.",
            "Voters in {country} have chosen {name} as {office}.",
        ],
        [
            [
                "With all votes counted, {name} had {share}% and will be the next {office}.",
                "{name} won {share}% of the vote for the post of {office}.",
            ],
            [
                "The winner promised {issue} during a long campaign across {country}.",
                "Much of the campaign in {country} was about {issue}.",
            ],
            ["Rival {other} has accepted defeat.", "{other}, who came second, asked for a recount."],
            [
                '"This victory belongs to you," {last} told supporters.',
                '{last} said: "The hard work starts now."',
            ],
            ["Observers said that voting was calm.", "Turnout was about {count}%."],
            ["The new {office} takes office in {month}.", "{last} was a judge for {number} years."],
        ],
    ),
    "jobs": (
        "news/business",
        {
            "trade": [
                "carmaker",
                "supermarket chain",
                "shipbuilder",
                "clothes shop",
                "software firm",
                "brewery",
            ],
            "move": ["create", "cut"],
            "jobs": [f"{n}0" for n in range(12, 95, 4)],
        },
        [
            "{trade!c} {firm} is to {move} {jobs} jobs in {town}.",
            "{firm} plans to {move} {jobs} jobs at its site in {town}.",
        ],
        [
            [
                "The {trade} told staff in {town} on {day} that it would {move} {jobs} posts.",
                "Staff of the {trade} in {town} learned on {day} that {firm} will {move} {jobs} posts.",
            ],
            ["{firm} employs {count}00 people in all.", "{firm} was founded {count} years ago."],
            [
                "The union's {other} asked for talks.",
                'Union official {other} said that workers were "surprised".',
            ],
            [
                'Chief executive {name} said: "Our market is changing fast."',
                '"We had to decide now," said chief executive {name}.',
            ],
            [
                "Shares rose by {number} per cent after the news.",
                "Shares fell by {number} per cent in early trading.",
            ],
        ],
    ),
    "profit": (
        "news/business",
        {
            "trade": ["airline", "bank", "toy maker", "energy firm", "bookseller", "food producer"],
            "way": ["risen", "fallen"],
            "cause": [
                "strong sales abroad",
                "the price of fuel",
                "a mild winter",
                "demand from younger customers",
                "the weak pound",
            ],
            "percent": [str(n) for n in range(3, 48)],
        },
        [
            "Profits at {trade} {firm} have {way} by {percent}% because of {cause}.",
            "{trade!c} {firm} says that its profits have {way} by {percent}%.",
        ],
        [
            [
                "The {trade} made £{count}m before tax, and {firm} gave {cause} as the reason.",
                "{firm} pointed to {cause} and reported £{count}m before tax.",
            ],
            [
                "The figure has {way} by {percent}% in a year.",
                "That means that it has {way} by {percent}% since last year.",
            ],
            ['"We expected as much," said analyst {other}.', 'Analyst {other} called the results "mixed".'],
            [
                "{name}, who has run the {trade} for {number} years, is to step down in {month}.",
                "{name} took over the {trade} in {month}.",
            ],
            [
                "The firm has {count} branches, most of them near {town}.",
                "A new office is to open in {town}.",
            ],
        ],
    ),
    "study": (
        "news/health",
        {
            "habit": [
                "walking to work",
                "eating breakfast",
                "sleeping with an open window",
                "singing in a choir",
                "learning a language",
                "keeping a garden",
            ],
            "gain": ["lower blood pressure", "better sleep", "a better memory", "less stress", "fewer colds"],
        },
        [
            "People who make a habit of {habit} may have {gain}, a study suggests.",
            "{habit!c} could lead to {gain}, according to scientists in {town}.",
        ],
        [
            [
                "Researchers in {town} followed {count}00 adults and asked about {habit}.",
                "The team from {town} compared {count}00 adults and their answers about {habit}.",
            ],
            [
                "After {number} years one group had {gain}.",
                "Those in the first group had {gain} {number} years later.",
            ],
            [
                '"The effect was larger than we thought," said {name}, who led the work.',
                "{name}, who led the work, warned that the cause is not certain.",
            ],
            [
                "{other}, who was not involved, asked for larger trials.",
                "Heart specialist {other} said that more evidence was needed.",
            ],
            ["The work was paid for by a charity.", "The results appear in a journal in {month}."],
        ],
    ),
    "school": (
        "news/education",
        {
            "idea": [
                "ban mobile phones",
                "start lessons an hour later",
                "keep hens in the playground",
                "teach chess to every pupil",
                "drop homework for a year",
            ],
            "kind": ["primary school", "secondary school", "village school", "college"],
        },
        [
            "A {kind} in {town} is to {idea}.",
            "Pupils at a {kind} in {town} will see a change: it plans to {idea}.",
        ],
        [
            [
                "Head teacher {name} told parents of the {kind} on {day} that it would {idea}.",
                "Parents of the {kind} got a letter from head teacher {name}: it will {idea}.",
            ],
            ["The {town} school has {count}0 pupils.", "Other schools in {town} may follow."],
            [
                '"We want children to be awake and happy," said {last}.',
                '{last} said: "We will see how it goes."',
            ],
            ["{other}, whose {number} children go there, had doubts.", "Parent {other} welcomed the idea."],
            ["The trial begins in {month}.", "It will be reviewed after {number} months."],
        ],
    ),
    "find": (
        "news/entertainment",
        {
            "thing": [
                "a lost painting",
                "a box of Roman coins",
                "an early film reel",
                "a letter by a poet",
                "a medieval ring",
                "an unheard song",
            ],
            "where": [
                "in an attic",
                "under a church floor",
                "in a charity shop",
                "behind a bookcase",
                "in a ploughed field",
            ],
            "cost": [f"£{n}0,000" for n in range(2, 60, 3)],
        },
        [
            "{thing!c} found {where} in {town} has been sold for {cost}.",
            "{thing!c} that lay {where} in {town} has gone to a museum.",
        ],
        [
            [
                "{name} came across {thing} {where} while looking for something else.",
                "It was {where} that {name} noticed {thing}.",
            ],
            [
                "A museum in {town} paid {cost} for it at an auction on {day}.",
                "It fetched {cost} at a sale in {town} on {day}.",
            ],
            ['"I nearly threw it away," said {last}.', '{last} said: "My hands were shaking."'],
            [
                "Curator {other} called it the find of the decade.",
                "Expert {other} said that only {number} like it were known.",
            ],
            ["It is thought to be {count}0 years old.", "Visitors can see it from {month}."],
        ],
    ),
}


def make_names(rng: random.Random) -> dict[str, list[str]]:
    """What is split between the files: towns, surnames and firms, each list shuffled."""
    towns = [start + end for start in STARTS for end in ENDS]
    return {
        key: rng.sample(pool, len(pool))
        for key, pool in (("town", towns), ("last", SURNAMES), ("firm", FIRMS))
    }


def draw_facts(rng: random.Random, names: dict[str, list[str]], own: dict[str, list[str]]) -> dict[str, str]:
    """A value for everything that a kind's sentences may mention."""
    last, last2 = rng.sample(names["last"], 2)
    first, first2 = rng.sample(FIRST, 2)
    town, town2 = rng.sample(names["town"], 2)
    facts = {key: rng.choice(values) for key, values in own.items()}
    facts |= {
        "name": f"{first} {last}",
        "last": last,
        "other": f"{first2} {last2}",
        "town": town,
        "town2": town2,
    }
    facts |= {"firm": rng.choice(names["firm"]), "day": rng.choice(DAYS), "month": rng.choice(MONTHS)}
    facts |= {"number": rng.choice(NUMBERS), "count": str(rng.randint(11, 90))}
    return facts | {"hour": rng.choice(["midnight", "noon", "five in the morning", "eight in the evening"])}


def fill(template: str, facts: dict[str, str]) -> str:
    """The template with its facts; {x!c} is x with a capital at its start, {x!l} with a small letter."""
    for key, value in facts.items():
        template = template.replace("{" + key + "!c}", value[0].upper() + value[1:])
        template = template.replace("{" + key + "!l}", value[0].lower() + value[1:])
        template = template.replace("{" + key + "}", value)
    return template[0].upper() + template[1:]


def write_article(rng: random.Random, kind: str, names: dict[str, list[str]]) -> dict[str, str]:
    """One article of a kind, drawn again until it has every fact that its summary mentions."""
    section, own, summaries, sentences = KINDS[kind]
    facts = draw_facts(rng, names, own)
    summary = rng.choice(summaries)
    needed = [value.lower() for key, value in facts.items() if "{" + key in summary.replace("!", "}")]
    others = rng.sample(sentences[2:], rng.randint(1, min(4, len(sentences) - 2)))
    chosen = sentences[:2] + sorted(others, key=sentences.index)
    document = "\n".join(fill(rng.choice(ways), facts) for ways in chosen)
    if not all(value in document.lower() for value in needed):
        return write_article(rng, kind, names)
    return {"document": document, "summary": fill(summary, facts), "topic": section}


def write_sample(folder: Path) -> None:
    rng = random.Random(2018)
    pools, start = make_names(rng), 0.0
    folder.mkdir(parents=True, exist_ok=True)
    for split, (count, share) in SPLITS.items():
        names = {
            key: pool[round(start * len(pool)) : round((start + share) * len(pool))]
            for key, pool in pools.items()
        }
        kinds = [list(KINDS)[i % len(KINDS)] for i in range(count)]
        articles = [write_article(rng, kind, names) for kind in rng.sample(kinds, count)]
        lines = [
            json.dumps({"id": f"{split}-{i}"} | article, ensure_ascii=False)
            for i, article in enumerate(articles)
        ]
        content = "".join(line + "\n" for line in lines).encode()
        (folder / f"{split}.jsonl.gz").write_bytes(gzip.compress(content, mtime=0))
        start += share


if __name__ == "__main__":
    write_sample(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
