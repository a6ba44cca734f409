# ruff: noqa: E501 - tables: one rule a line reads better than four
"""
Rules put together from parts: thousands of topics, so that no topic can be learned by heart.

With written rules alone (rules.py) an adapter recognises the topics it was trained on and refuses every other; what it
has to learn is to look for what the question is about in the passages. A quarter of the questions name things or deeds
in other words than the rule does (a kind of goods for the thing, a synonym for the deed), because people do.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from ryorin_demo.rules import LEAST, UP_TO, WITHIN, Choice, Limit

UNITS = ("days", "days", "weeks", "months", "hours")


@dataclass(frozen=True)
class Parts:
    """
    What a desk's rules are put together from.

    kinds: a kind of goods in the plural, and the things of that kind in the singular.
    deeds: (infinitive, participle, the infinitive in other words). areas: the first part of a heading path.
    """

    areas: tuple[str, ...]
    kinds: tuple[tuple[str, str], ...]
    deeds: tuple[tuple[str, str, str], ...]
    events: tuple[str, ...]
    groups: tuple[str, ...]
    services: tuple[str, ...]
    tails: tuple[str, ...]


SUPPORT = Parts(
    areas=("Customer guide", "Service terms", "Good to know", "Shop rules", "Help centre", "Conditions", "Your purchase"),
    kinds=(
        ("Lights", "floor lamp, candle holder, lantern, torch"),
        ("Home textiles", "carpet, curtain, duvet, pillow, blanket, doormat"),
        ("Kitchen goods", "wok, teapot, mug, bread bin, tray, grill, mixer"),
        ("Electronic goods", "speaker, radio, printer, keyboard, humidifier, fan, heater, scale"),
        ("Garden goods", "parasol, garden chair, hose, flower pot, hammock"),
        ("Small furniture", "stool, table, cabinet, mirror, shelf board, coat rack"),
        ("Travel goods", "suitcase, backpack, toiletry bag, folding umbrella"),
        ("Decoration", "vase, picture frame, wall clock, basket"),
        ("Tools", "ladder, toolbox, drill, sewing kit"),
    ),
    deeds=(
        ("trade in", "traded in", "hand in"), ("engrave", "engraved", "put my name on"), ("rent", "rented", "hire"),
        ("insure", "insured", "get insurance for"), ("upgrade", "upgraded", "get a better model of"), ("reserve", "reserved", "put aside"),
        ("store", "stored", "keep with you"), ("polish", "polished", "make shiny"), ("dye", "dyed", "colour"),
        ("recycle", "recycled", "dispose of"), ("resize", "resized", "change the size of"), ("bring back", "brought back", "take back"),
        ("test at home", "tested at home", "try out"), ("collect", "collected", "pick up"), ("wrap", "wrapped", "pack"),
        ("send back", "sent back", "give back"), ("repaint", "repainted", "paint again"), ("resell", "resold", "sell on"),
    ),
    events=("purchase", "delivery", "ordering", "the first use", "payment", "collection", "the show", "the sale"),
    groups=("student", "pensioner", "club member", "trade customer", "new customer", "teacher", "tourist", "subscriber"),
    services=("The fitting service", "The price promise", "Late collection", "The tea voucher", "The video advice", "The moving help",
              "Winter storage", "The welcome discount", "Measuring at home", "The newsletter gift", "The rental van", "Telephone advice"),
    tails=("Please bring the order number.", "Ask our staff for the form.", "Prices are on the notice board.", "This holds in every shop.",
           "A confirmation follows by e-mail.", "We answer questions by telephone.", "The form is on our site.", "Keep the slip."),
)  # fmt: skip

PEOPLE = Parts(
    areas=("Staff handbook", "Office guide", "Your employment", "House rules", "Working here", "Staff services", "Team rules"),
    kinds=(
        ("Devices", "tablet, monitor, phone, camera, scanner, projector, microphone"),
        ("Work clothes", "uniform, helmet, safety vest, apron, raincoat"),
        ("Vehicles", "van, scooter, trolley, bicycle, company car"),
        ("Rooms", "meeting room, guest room, kitchen, studio, workshop room"),
        ("Trainings", "sports course, safety seminar, first aid training, writing course"),
        ("Office goods", "locker, desk, chair, whiteboard, footrest, desk fan"),
        ("Papers", "handbook, key card, visitor badge, voucher, timetable"),
        ("Tools", "toolbox, ladder, drill, measuring tape, label printer"),
    ),
    deeds=(
        ("borrow", "borrowed", "take out"), ("order", "ordered", "ask for"), ("reserve", "reserved", "keep free"),
        ("exchange", "exchanged", "change"), ("repaint", "repainted", "paint again"), ("swap", "swapped", "trade"),
        ("cancel", "cancelled", "call off"), ("share", "shared", "use together"), ("renew", "renewed", "extend"),
        ("replace", "replaced", "get a new one for"), ("use at night", "used at night", "have at night"), ("hand in", "handed in", "give back"),
        ("rent", "rented", "hire"), ("repair", "repaired", "get mended"), ("lend out", "lent out", "pass on"),
    ),
    events=("joining", "the shift", "the request", "the purchase", "a transfer", "the course", "payment", "the meeting"),
    groups=("trainee", "driver", "team leader", "night worker", "contractor", "cashier", "permanent employee", "new parent"),
    services=("The moving allowance", "The lunch voucher", "The study loan", "The relocation flat", "The eye test", "The massage hour",
              "The transport card", "The child bonus", "The holiday home", "The travel loan", "The gym card", "The jubilee gift"),
    tails=("Please tell your manager.", "Ask the reception for the form.", "The form is in the portal.", "This holds at every site.",
           "A confirmation follows by e-mail.", "The team plans it together.", "Keep the slip.", "Exceptions are rare."),
)  # fmt: skip
PARTS = {"support": SUPPORT, "people": PEOPLE}


def mixed_limit(parts: Parts, draw: random.Random) -> Limit:
    """A numeric rule about a topic put together by chance."""
    kind, things = draw.choice(parts.kinds)
    one = draw.choice(things.split(", "))
    many = kind.lower() if draw.random() < 0.25 else plural(one)
    do, done, other = draw.choice(parts.deeds)
    asked_do = other if draw.random() < 0.25 else do
    event, tail, area = draw.choice(parts.events), draw.choice(parts.tails), draw.choice(parts.areas)
    service, group, unit = draw.choice(parts.services), draw.choice(parts.groups), draw.choice(UNITS)
    heading = draw.choice((many.capitalize(), f"{done.capitalize()} {many}", f"Rules for {many}"))
    named = service.removeprefix("The ").capitalize()
    asked: tuple[str, ...]
    shape = draw.randrange(12)
    if shape in (0, 1):
        text = f"{many.capitalize()} can be {done} {{fact}} {draw.choice(('after', 'of'))} {event}. {tail}"
        asked = (f"Can I {asked_do} a {one} {{v}} {unit} after {event}?", f"It is {{v}} {unit} since {event}. Can the {one} be {done}?",
                 f"{{v}} {unit} have passed since {event}. May I still {asked_do} my {one}?", f"May a {one} be {done} after {{v}} {unit}?",
                 f"My {one}: {event} was {{v}} {unit} ago. Can I {asked_do} it?")  # fmt: skip
        return Limit(area, heading, text, unit, asked, words=WITHIN, high=99)
    if shape == 2:
        text = f"{draw.choice(('You may', 'A person may', f'Each {group} may'))} {do} {{fact}} {draw.choice(('at a time', 'a month', 'a year'))}. {tail}"
        asked = (
            f"Can I {asked_do} {{v}} {many}?",
            f"I want to {do} {{v}} {many}. Is that possible?",
            f"May we {asked_do} {{v}} {many}?",
        )
        return Limit(area, heading, text, many, asked, words=UP_TO, low=2, high=40)
    if shape in (3, 4):
        text = f"{draw.choice((many.capitalize(), f'A {one}'))} must be {done} {{fact}} before {event}. {tail}"
        asked = (f"Can I {asked_do} a {one} {{v}} {unit} before {event}?", f"There are {{v}} {unit} left before {event}. May I {asked_do} a {one}?",
                 f"{event.capitalize()} is in {{v}} {unit}. Can I still {asked_do} a {one}?")  # fmt: skip
        return Limit(area, heading, text, unit, asked, most=False, words=LEAST, low=2, high=40)
    if shape == 5:
        text = f"{service} is given {draw.choice(('for', 'from'))} {{fact}}. {tail}"
        asked = (f"I have {{v}} {many}. Do I get {lower(service)}?", f"Is {lower(service)} given for {{v}} {many}?")
        return Limit(area, named, text, many, asked, most=False, words=LEAST, low=2, high=40)
    if shape == 6:
        most = draw.random() < 0.5
        text = f"{service} {draw.choice(('costs nothing', 'is free', 'is paid'))} for {many} of {{fact}}. {tail}"
        asked = (f"My {one} costs {{v}} yen. Is {lower(service)} free?", f"Do I get {lower(service)} for a {one} of {{v}} yen?",
                 f"I spend {{v}} yen on {many}. Does that give me {lower(service)}?")  # fmt: skip
        return Limit(
            area, named, text, "yen", asked, most=most, words=UP_TO if most else LEAST, low=1000, high=90000, step=1000
        )
    if shape == 7:
        text = f"A {group} may use {lower(service)} for {{fact}}. {tail}"
        asked = (
            f"I am a {group}. May I use {lower(service)} for {{v}} {unit}?",
            f"Can a {group} use {lower(service)} for {{v}} {unit}?",
        )
        return Limit(area, named, text, unit, asked, words=UP_TO, low=2, high=60)
    if shape == 8:
        measure, unit = draw.choice((("weigh", "kg"), ("be used up to a heat of", "degrees"), ("measure", "cm")))
        text = f"{draw.choice((f'A {one}', many.capitalize()))} may {measure} {{fact}}. {tail}".replace(
            "up to a heat of", "at a heat of"
        )
        asked = (
            f"Can I {do} a {one} of {{v}} {unit}?",
            f"My {one} has {{v}} {unit}. Is that all right?",
            f"Are {{v}} {unit} all right for a {one}?",
        )
        return Limit(area, heading, text, unit, asked, words=UP_TO, low=3, high=draw.choice((60, 99)))
    if shape == 9:
        text = f"{service} {draw.choice(('is open after', 'starts after', 'is for members of'))} {{fact}}. {tail}"
        asked = (
            f"I have been with you for {{v}} {unit}. Is {lower(service)} open to me?",
            f"I joined {{v}} {unit} ago. May I have {lower(service)}?",
        )
        return Limit(area, named, text, unit, asked, most=False, words=LEAST, low=2, high=40)
    if shape == 10:
        text = f"{draw.choice((many.capitalize(), f'A {one}'))} must be {{fact}} old to be {done}. {tail}"
        asked = (
            f"My {one} is {{v}} {unit} old. Can I {asked_do} it?",
            f"Can a {one} be {done} when it is {{v}} {unit} old?",
        )
        return Limit(area, heading, text, unit, asked, most=False, words=LEAST, low=2, high=40)
    text = f"{service} {draw.choice(('lasts', 'stays open', 'can be used'))} for {{fact}}. {tail}"
    asked = (f"Can I have {lower(service)} for {{v}} {unit}?", f"Is {lower(service)} still open after {{v}} {unit}?")
    return Limit(area, named, text, unit, asked, words=UP_TO, low=2, high=60)


def mixed_choice(parts: Parts, draw: random.Random) -> Choice:
    """A rule by kind about a topic put together by chance."""
    every = [thing for _, things in parts.kinds for thing in things.split(", ")]
    one, second, third, fourth = draw.sample(every, 4)
    do, done, other = draw.choice(parts.deeds)
    asked_do = other if draw.random() < 0.25 else do
    area, tail = draw.choice(parts.areas), draw.choice(parts.tails)
    service, (group, stranger) = draw.choice(parts.services), draw.sample(parts.groups, 2)
    named = service.removeprefix("The ").capitalize()
    able, unable = draw.choice(
        (("can be", "cannot be"), ("may be", "may not be"), ("are", "are not"), ("can be", "must not be"))
    )
    asked: tuple[str, ...]
    shape = draw.randrange(9)
    if shape == 0:
        text = f"{service} is only for a {group}. {tail}"
        asked = (f"I am a {{0}}. Can I have {lower(service)}?", f"Is {lower(service)} open to a {{0}}?")
        return _choice(area, named, text, asked, (group,), (stranger,), draw)
    if shape == 1:
        verb, negated = draw.choice(
            (("is given to", "is not given to"), ("is open to", "is not open to"), ("is meant for", "is not meant for"))
        )
        text = f"{service} {verb} a {group}. It {negated} a {stranger}."
        asked = (f"I am a {{0}}. Can I have {lower(service)}?", f"May a {{0}} use {lower(service)}?")
        return _choice(area, named, text, asked, (group,), (stranger,), draw)
    if shape == 2:
        verb, negated = draw.choice(
            (
                ("covers", "does not cover"),
                ("includes", "does not include"),
                ("is for", "is not for"),
                ("takes", "does not take"),
            )
        )
        text = f"{service} {verb} {plural(one)} and {plural(second)}. It {negated} {plural(third)} or {plural(fourth)}."
        asked = (
            f"Does {lower(service)} help with a {{0}}?",
            f"I have a {{0}}. Is {lower(service)} for me?",
            f"My {{0}}: is it part of {lower(service)}?",
        )
        return _choice(area, named, text, asked, (one, second), (third, fourth), draw)
    if shape == 3:
        text = f"We {do} {plural(one)} and {plural(second)}. We do not {do} {plural(third)} or {plural(fourth)}."
        asked = (f"Do you {asked_do} {{1}}?", f"Can you {do} a {{0}}?")
        return _choice(area, f"What we {do}", text, asked, (one, second), (third, fourth), draw)
    if shape == 4:
        text = f"{plural(one).capitalize()} {able} {done} by a {group}. {plural(one).capitalize()} {unable} {done} by a {stranger}."
        asked = (f"I am a {{0}}. Can I {asked_do} a {one}?", f"May a {{0}} {do} a {one}?")
        return _choice(area, f"{done.capitalize()} {plural(one)}", text, asked, (group,), (stranger,), draw)
    if shape == 5:
        place, elsewhere = draw.sample(
            (
                "at home",
                "in the shop",
                "in the office",
                "in the garden",
                "in the car",
                "on Sundays",
                "in summer",
                "by post",
            ),
            2,
        )
        text = (
            f"A {one} {able.replace('are', 'is')} {done} {place}. It {unable.replace('are', 'is')} {done} {elsewhere}."
        )
        asked = (f"Can I {asked_do} a {one} {{0}}?", f"May my {one} be {done} {{0}}?")
        return _choice(area, plural(one).capitalize(), text, asked, (place,), (elsewhere,), draw)
    asked = (
        f"Can I {asked_do} a {{0}}?",
        f"May a {{0}} be {done}?",
        f"I have a {{0}}. Can it be {done}?",
        f"Is it possible to {asked_do} my {{0}}?",
    )
    first, last = ((one, second), (third, fourth)) if draw.random() < 0.5 else ((one,), (third,))
    yes = f"{' and '.join(map(plural, first)).capitalize()} {able} {done}"
    no = f"{' and '.join(map(plural, last)).capitalize()} {unable} {done}"
    heading = draw.choice((f"What can be {done}", f"{plural(one).capitalize()} and {plural(third)}"))
    return _choice(area, heading, f"{yes}. {no}.", asked, first, last, draw)


# Things of every kind that a rule of "X can, Y cannot" may tell apart; a rule takes two to four of one list.
_GROUPED = (
    "Norway, Chile, Portugal, Vietnam, Kenya, Brazil, Denmark, Peru, Iceland, Egypt, Poland, India",
    "debit cards, bank transfers, gift vouchers, foreign coins, travel cheques, prepaid cards, banknotes, store points",
    "paint, glass, steel, stone walls, brick walls, tiles, wood, concrete, cork, wallpaper",
    "bleach, alcohol, vinegar, warm water, a sponge, a brush, steam, oil, a dry cloth, wax, lemon juice",
    "the freezer, the sun, the bath, the garden, the attic, the lobby, the garage, the lift, the car park, the cellar",
    "scratches, dents, loose screws, faded colours, broken hinges, torn seams, stains, cracks, missing parts, noise",
    "cats, parrots, hamsters, rabbits, turtles, ponies, small dogs, horses",
    "apprentices, drivers, volunteers, managers, night staff, cleaners, visitors, retired staff, temporary staff, nurses",
    "a brother, a sister, a cousin, an aunt, an uncle, a grandparent, a flatmate, a niece, a godparent",
    "scissors, axes, razors, hedge trimmers, saws, chisels, graters, skewers",
    "buses, ferries, taxis, trains, trams, night flights, hire bicycles, motorbikes",
    "books, magazines, streaming films, ringtones, music, maps, dictionaries, puzzles, newspapers",
    "rings, scarves, hats, gloves, belts, sandals, wigs, aprons, sunglasses",
    "language tests, driving licences, first aid exams, cooking diplomas, sailing licences, typing exams",
    "eye tests, vaccinations, haircuts, massages, X-rays, blood tests, tattoos, physiotherapy",
    "monitors, cables, keyboards, projectors, desk fans, cameras, whiteboards, docking stations",
    "jars, lanterns, roses, clocks, rugs, cushions, lamps, mirrors, pans, toys, umbrellas, bottles",
    "weekends, Mondays, public holidays, summer, winter, December, the sales, the evening, the morning",
    "Osaka, Nagoya, Sapporo, Kobe, Fukuoka, Sendai, Kyoto, Okinawa",
    "milk, tea, fish, coffee, chocolate, noodles, cheese, honey, spices",
    "stools, crates, barrels, carts, ladders, shelves, benches, boxes",
)
# (yes, no, questions): {a} is a list of what may, {b} of what may not, {x} the one asked about.
_SENTENCES = (
    ("{A} can be {done}", "{B} cannot be {done}", ("Can I {do} {x}?", "I have {x} here. Can I {do} that?", "Is it possible to {do} {x}?")),
    ("{A} may be {done} {note}", "{B} may not be {done} {note}", ("Can I {do} {x}?", "May I {do} {x} {note}?", "Is it all right to {do} {x}?")),
    ("{A} are accepted", "{B} are not accepted", ("Do you accept {x}?", "Can I use {x}?", "Can I come with {x}?", "May I pay with {x}?")),
    ("We {do} {a}", "We do not {do} {b}", ("Do you {do} {x}?", "Can you {do} {x} for me?", "Will you {do} {x}?")),
    ("We deliver a {thing} to {a}", "We do not deliver to {b}", ("Do you deliver to {x}?", "Can you deliver a {thing} to {x}?", "I live near {x}. Do you deliver there?")),
    ("A {thing} may be {done} with {a}", "It must not be {done} with {b}", ("May I use {x} on a {thing}?", "Can I {do} my {thing} with {x}?", "Can a {thing} be {done} with {x}?")),
    ("A {thing} can be {done} in {a}", "It must not be {done} in {b}", ("May I {do} a {thing} in {x}?", "Can my {thing} be {done} in {x}?", "Is {x} all right for a {thing}?")),
    ("{Service} covers {a}", "It does not cover {b}", ("Does {service} cover {x}?", "My {thing} has {x}. Is that covered?", "I found {x} on my {thing}. Does {service} pay?", "Is there cover for {x}?")),
    ("{Service} is given for {a}", "It is not given for {b}", ("Can I have {service} for {x}?", "It is about {x}. Do I get {service}?", "Is {service} given for {x}?")),
    ("{Service} may be used for {a}", "It may not be used for {b}", ("May I use {service} for {x}?", "Can {service} be used for {x}?")),
    ("{A} may use {service}", "{B} may not use {service}", ("May {x} use {service}?", "Is {service} open to {x}?", "Can {x} have {service}?")),
    ("{A} are paid {note}", "{B} are not paid {note}", ("Are {x} paid?", "Is the price of {x} paid?", "Do I get money for {x}?", "Do you refund {x}?")),
    ("{A} may be taken home", "{B} may not be taken home", ("May I take {x} home?", "Can I take {x} home with me?", "Can {x} leave the building?")),
    ("{A} may be made in working hours", "{B} may not be made in working hours", ("Are {x} allowed in working hours?", "Can I go for {x} in working hours?", "May I plan {x} in working hours?")),
    ("{A} may enter the shop", "{B} may not enter the shop", ("May {x} enter?", "Can I come in with {x}?", "Can {x} come into the shop?")),
    ("{A} may be used as a {thing}", "{B} may not be used as a {thing}", ("Can I use {x} as a {thing}?", "May {x} serve as a {thing}?")),
    ("A {thing} can be fixed to {a}", "It cannot be fixed to {b}", ("Can you fix a {thing} to {x}?", "Can a {thing} hang on {x}?", "Will you fix my {thing} to {x}?")),
    ("The fee for {a} is paid", "The fee for {b} is not paid", ("Is the fee for {x} paid?", "Do you pay for {x}?", "Who pays for {x}? Do you?")),
    ("A {thing} can be {done} on {a}", "It cannot be {done} on {b}", ("Can a {thing} be {done} on {x}?", "May I {do} a {thing} on {x}?")),
    ("{A} can travel in {service}", "{B} cannot travel in {service}", ("Can {x} travel in {service}?", "May {x} go in {service}?")),
)  # fmt: skip
_OBJECTS = (9, 11, 12, 15, 16, 19, 20)
_FOR = {  # the lists whose members make sense in a sentence above; where none is named, any does
    0: _OBJECTS, 1: _OBJECTS, 2: (1,), 3: _OBJECTS, 4: (0, 18), 5: (3,), 6: (4,), 7: (5,), 8: (8,), 9: (8, 7), 10: (7,),
    11: (10, 11, 14), 12: _OBJECTS, 13: (14,), 14: (6, 7), 15: (16, 20), 16: (2,), 17: (13,), 18: (17,), 19: (6, 16, 20),
}  # fmt: skip
_NOTES = ("in the shop", "by post", "at reception", "free of charge", "with a form", "in person", "with a fee")
_MORE_YES = ("", "", "", ", with a fee", " in any season", ", if the manager agrees", ", as before")
_MORE_NO = ("", "", "", ", for reasons of safety", ", because of the law", ", as before", " in any season")


def grouped_choice(parts: Parts, draw: random.Random) -> Choice:
    """A rule that tells apart some things of one kind: the sentence that names the one asked about decides."""
    number = draw.randrange(len(_SENTENCES))
    yes, no, asked = _SENTENCES[number]
    names = _GROUPED[draw.choice(_FOR.get(number, tuple(range(len(_GROUPED)))))].split(", ")
    count = draw.choice((1, 2, 2, 2))
    taken = draw.sample(names, 2 * count)
    good, bad = taken[:count], taken[count:]
    do, done, _ = draw.choice(parts.deeds)
    thing = draw.choice([thing for _, things in parts.kinds for thing in things.split(", ")])
    service = draw.choice(parts.services)
    note = draw.choice(_NOTES)
    words = {"do": do, "done": done, "thing": thing, "service": lower(service), "Service": service, "note": note}
    a, b = " and ".join(good), draw.choice((" or ", " and ")).join(bad)
    lists = {"a": a, "b": b, "A": a[0].upper() + a[1:], "B": " and ".join(bad)[0].upper() + " and ".join(bad)[1:]}
    positive, negative = yes.format(**words, **lists), no.format(**words, **lists)
    tail = draw.choice(parts.tails)
    positive += draw.choice(_MORE_YES)
    negative += draw.choice(_MORE_NO)
    shape = draw.random()
    if shape < 0.15:  # only what is allowed, or only what is not
        text, bad = f"{positive}. {tail}", []
    elif shape < 0.35 and not negative.startswith("It "):
        text, good = f"{negative}. {tail}", []
    elif shape < 0.6 and not negative.startswith("It ") and " it" not in negative:
        text = f"{negative}. {positive}."
    else:
        text = f"{positive}. {negative}."
    heading = draw.choice((f"{thing.capitalize()}", service.removeprefix("The ").capitalize(), f"About {draw.choice(taken)}",
                           "What is possible", "Good to know"))  # fmt: skip
    return Choice(draw.choice(parts.areas), heading, text,
                  tuple((one.format(x=name, **words), positive, name) for one in asked for name in good),
                  tuple((one.format(x=name, **words), negative, name) for one in asked for name in bad))  # fmt: skip


def _choice(
    area: str,
    heading: str,
    text: str,
    asked: tuple[str, ...],
    good: tuple[str, ...],
    bad: tuple[str, ...],
    draw: random.Random,
) -> Choice:
    """The rule with a case for every question and name; one time in three its two sentences change places."""
    parts = text.removesuffix(".").split(". ")
    yes, no = parts if len(parts) == 2 and " not " in f" {parts[1].replace('cannot', 'not')} " else (parts[0], parts[0])
    if yes != no and not no.startswith("It ") and draw.random() < 1 / 3:
        text = f"{no}. {yes}."
    return Choice(area, heading, text,
                  tuple((one.format(name, plural(name)), yes, name) for one in asked for name in good),
                  tuple((one.format(name, plural(name)), no, name) for one in asked for name in bad))  # fmt: skip


def mixed_gap(parts: Parts, thing: str | None, draw: random.Random) -> str:
    """A question that no rule answers: about a thing that the passages name (`thing`) or any other."""
    one = thing or draw.choice(draw.choice(parts.kinds)[1].split(", "))
    asked = ("What colour is the {0}?", "Do you sell {1} for children?", "Who designed the {0}?", "Is the {0} made of wood?",
             "Where is the {0} made?", "How heavy is a {0}?", "Does the {0} smell of lemon?", "Can I get a job with {1}?",
             "Is there a museum of {1}?", "Do you have a film about {1}?", "Can a {0} fly?", "Is the {0} in the window for sale?",
             "Which {0} is the most popular?", "Can my cat sleep on a {0}?", "Do {1} contain wool?", "Are there {1} in the lobby?")  # fmt: skip
    return draw.choice(asked).format(one, plural(one))


def plural(one: str) -> str:
    """'shelf board' to 'shelf boards'."""
    return f"{one}es" if one.endswith(("x", "ch", "s")) else f"{one}s"


def lower(name: str) -> str:
    """With a small first letter."""
    return name[0].lower() + name[1:]
