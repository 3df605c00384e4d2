"""Stories told by a program: plain plots over a hero, a thing and a friend.

The real stories teach the language.  These teach what so few of them cannot: that an answer is
about what was asked for, and that a story stays with the hero and the thing that it began
with.  Every sentence is drawn from several ways of saying it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from training.requests import ANY, FORMS
from training.things import ANIMALS, BOYS, GIRLS, OBJECTS, PEOPLE, PLACES, QUALITIES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

FEMALE = frozenset("girl queen princess witch fairy nurse hen cow ladybug".split())
MALE = frozenset("boy king prince wizard knight sailor".split())
CALM = [q for q in QUALITIES if q not in ("broken", "lost", "yummy", "sparkly", "shiny", "golden")]
COLOURS = QUALITIES[:12]
FINE = [*COLOURS, "big", "little", "small", "shiny", "pretty", "beautiful", "magic", "special"]
USES = {
    "eat": "cake apple cookie sandwich pizza banana orange egg pie carrot pumpkin lemon",
    "wear": "hat crown ring necklace dress coat scarf shoe sock",
    "ride": "car boat bike train plane truck rocket wagon sled",
    "look at": "tree flower star castle rainbow cloud treasure snowman picture map mirror rock",
    "listen to": "drum bell song piano guitar flute trumpet phone clock",
}
VERB = {thing: verb for verb, things in USES.items() for thing in things.split()}
"""What one does with a thing; with all others one plays."""
IN = frozenset("park forest garden cave house village zoo school store kitchen jungle".split())


@dataclass(frozen=True)
class Person:
    """Somebody in a story: what they are, how they are called, and their pronouns."""

    kind: str
    name: str
    he: str
    him: str
    his: str
    named: bool
    """Whether the story says the name."""

    @property
    def call(self) -> str:
        """How the story refers to them."""
        return self.name if self.named else f"the {self.kind.split()[-1]}"

    @property
    def introduced(self) -> str:
        """How the story brings them in."""
        return article(self.kind) + (f" named {self.name}" if self.named else "")

    @property
    def He(self) -> str:  # noqa: N802 - it is "he" at the start of a sentence
        """The pronoun at the start of a sentence."""
        return self.he.capitalize()

    @property
    def start(self) -> str:
        """The same at the start of a sentence."""
        return self.call[0].upper() + self.call[1:]


def tell(random: Random) -> tuple[str, str]:
    """Return a request and the story that answers it."""
    hero = _person(random, ANIMALS + PEOPLE + ["girl", "boy"] * 12)
    friend = _person(random, ANIMALS + PEOPLE, but=hero)
    thing = _described(random, random.choice(OBJECTS), FINE, 0.6)
    place = random.choice(PLACES)
    asked = [_phrase(hero, random)]
    match random.choice(("thing", "thing", "thing", "friend", "place", "hero", "both", "object")):
        case "thing":
            asked.append(article(thing))
        case "friend":
            asked.append(article(friend.kind))
        case "place":
            asked.append(article(place))
        case "both":
            asked += [article(thing), article(friend.kind)]
        case "object":
            asked = [article(thing)]
    if random.random() < 0.3 and len(asked) == 2:
        asked.reverse()
    form = random.choice(FORMS)
    request = random.choice(ANY) if random.random() < 0.05 else form.format(listed(asked))
    plot = random.choice(PLOTS)
    story = Story(hero, friend, thing, place, random)
    return request, "\n".join([story.opening(), *plot(story)])


def article(noun: str) -> str:
    """Return a noun with ``a`` or ``an``."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def listed(phrases: list[str]) -> str:
    """Return up to three phrases as one."""
    if len(phrases) < 3:
        return " and ".join(phrases)
    return f"{phrases[0]}, {phrases[1]} and {phrases[2]}"


def _person(random: Random, kinds: Sequence[str], but: Person | None = None) -> Person:
    """Draw somebody who is neither of the same kind nor of the same name as another."""
    noun = random.choice(kinds)
    while but and noun == but.kind.split()[-1]:
        noun = random.choice(kinds)
    female = noun in FEMALE or (noun not in MALE and random.random() < 0.5)
    names = [n for n in (GIRLS if female else BOYS) if not but or n != but.name]
    he, him, his = ("she", "her", "her") if female else ("he", "him", "his")
    kind = _described(random, noun, CALM, 0.35)
    return Person(kind, random.choice(names), he, him, his, random.random() < 0.75)


def _described(random: Random, noun: str, qualities: Sequence[str], chance: float) -> str:
    return f"{random.choice(qualities)} {noun}" if random.random() < chance else noun


def _phrase(hero: Person, random: Random) -> str:
    named = hero.named and random.random() < 0.4
    name = f" {random.choice(('named', 'called'))} {hero.name}" if named else ""
    return article(hero.kind) + name


@dataclass(frozen=True)
class Story:
    """Who and what a story is about, and the sentences that all plots share."""

    hero: Person
    friend: Person
    thing: str
    place: str
    random: Random

    @property
    def last(self) -> str:
        """The thing without its quality."""
        return self.thing.rsplit(maxsplit=1)[-1]

    @property
    def verb(self) -> str:
        """What one does with the thing."""
        return VERB.get(self.last, "play with")

    @property
    def there(self) -> str:
        """The place behind its preposition."""
        on = self.place in ("hill", "island")
        return f"{'in' if self.place in IN else 'on' if on else 'at'} the {self.place}"

    def pick(self, *ways: str) -> str:
        """Draw one of several ways of saying something."""
        return self.random.choice(ways)

    def opening(self) -> str:
        """Return who the story is about and where it happens."""
        h = self.hero
        start = self.pick(
            "Once upon a time, there was", "Once upon a time there was", "Once there was"
        )
        named = self.pick(f" named {h.name}", f" called {h.name}") if h.named else ""
        return f"{start} {article(h.kind)}{named}. " + self.pick(
            f"{h.start} lived near {article(self.place)}.",
            f"{h.start} loved to play {self.there}.",
            f"{h.He} liked to go to the {self.place} every day.",
            f"{h.He} was very kind and liked to help others.",
            f"{h.start} had many friends and liked to laugh.",
        )

    def meeting(self) -> str:
        """Return how the friend comes in."""
        h, who = self.hero, self.friend.introduced
        return self.pick(
            f"Then {h.call} met {who}.",
            f"Just then, {who} came by.",
            f"On the way, {h.he} saw {who}.",
            f"Soon, {who} came to see what was going on.",
        )

    def ending(self) -> str:
        """Return how all is well."""
        h, f = self.hero, self.friend
        return self.pick(
            f"From that day on, {h.call} and {f.call} were best friends.",
            f"{h.start} was very happy. {h.He} gave {f.call} a big hug.",
            f"{h.start} and {f.call} smiled and played together until the sun went down.",
            f"Then {h.call} went home and told {h.his} mom all about it. It was a very good day.",
            f"{h.start} learned that it is good to have a friend.",
            "They all lived happily ever after.",
        )


def lost(s: Story) -> list[str]:
    """Tell how the hero loses the thing, and the friend helps to find it."""
    h, f = s.hero, s.friend
    had = s.pick(
        f"{h.start} had {article(s.thing)}. It was {h.his} favorite thing in the whole world.",
        f"{h.start} loved {h.his} {s.thing}. {h.He} took it everywhere.",
    )
    gone = s.pick(
        f"One day, {h.he} could not find the {s.last}. {h.He} was very sad.",
        f"But one day, the wind blew the {s.last} away. {h.start} began to cry.",
        f"One morning, the {s.last} was gone. {h.start} did not know what to do.",
    )
    met = s.meeting()
    asked = s.pick(
        f'"Why are you sad?" asked {f.call}. "I lost my {s.thing}," said {h.call}.',
        f'"I can not find my {s.thing}," {h.call} said. '
        f'"Do not worry. I will help you," said {f.call}.',
    )
    found = s.pick(
        f"They looked under a bush and behind a tree. At last, they found the {s.last} {s.there}!",
        f"They looked and looked. Then {f.call} saw the {s.last} {s.there}.",
    )
    thanks = f'"Thank you!" said {h.call}.'
    return [f"{had} {gone}", f"{met} {asked} {found}", f"{thanks} {s.ending()}"]


def found(s: Story) -> list[str]:
    """Tell how the hero finds a thing that is the friend's."""
    h, f = s.hero, s.friend
    saw = s.pick(
        f"One day, {h.call} was walking {s.there}. {h.He} saw {article(s.thing)} on the ground.",
        f"One sunny day, {h.call} found {article(s.thing)} {s.there}.",
    )
    thought = s.pick(
        f'"Wow, what a nice {s.last}!" said {h.call}. '
        f"But {h.he} knew that it was not {h.his} {s.last}.",
        f"{h.start} wanted to keep the {s.last}. "
        f"But then {h.he} thought that someone must miss it.",
    )
    met = s.meeting()
    asked = s.pick(
        f'"Is this your {s.last}?" asked {h.call}. '
        f'"Yes, it is!" said {f.call}. "I looked for it all day."',
        f'"I lost my {s.last}," said {f.call}. {h.start} smiled and gave the {s.last} back.',
    )
    thanks = s.pick(
        f'{f.start} was so happy. "Let us {s.verb} it together," {f.he} said.',
        f'"Thank you, you are very kind," said {f.call}.',
    )
    sad = f"{f.start} looked very sad."
    return [f"{saw} {thought}", f"{met} {sad} {asked}", f"{thanks} {s.ending()}"]


def shared(s: Story) -> list[str]:
    """Tell how the hero learns to share."""
    h, f = s.hero, s.friend
    new = s.pick(
        f"{h.He} was so happy that {h.he} ran to the {s.place} to {s.verb} it.",
        f"It was the best {s.last} that {h.he} had ever seen.",
    )
    met = s.meeting()
    asked = s.pick(
        f'"Can I {s.verb} the {s.last} too?" asked {f.call}. "No, it is mine!" said {h.call}.',
        f'"What a nice {s.last}! Will you share it with me?" said {f.call}. {h.start} said no.',
    )
    alone = s.pick(
        f"Soon, {h.call} felt lonely. It was no fun to be alone with the {s.last}.",
        f"{h.start} thought about it. {h.He} did not want {f.call} to be sad.",
    )
    sorry = f'{h.He} went to {f.call} and said, "I am sorry. Let us share the {s.thing}."'
    return [
        f"One day, {h.call} got {article(s.thing)}. {new}",
        f"{met} {asked} {f.start} was sad and went away.",
        f"{alone} {sorry}",
        s.ending(),
    ]


def helped(s: Story) -> list[str]:
    """Tell how the hero helps the friend."""
    h, f = s.hero, s.friend
    trouble = s.pick("was stuck in the mud", "had hurt a foot", "was lost and could not go home")
    came = s.pick(
        f'"I will help you," said {h.call}. {h.He} put down the {s.last} and went to {f.call}.',
        f"{h.start} was a little scared, but {h.he} wanted to help.",
    )
    joy = s.pick(
        f"{h.start} let {f.call} {s.verb} the {s.last}, and {f.call} was not sad anymore.",
        f"Then they went to {s.verb} the {s.thing} together.",
    )
    return [
        f"One day, {h.call} took {h.his} {s.thing} to the {s.place}. "
        f"There {h.he} heard someone cry. It was {f.introduced}. {f.start} {trouble}.",
        f'"Please help me!" said {f.call}. {came} Soon, {f.call} was safe.',
        f'"You are so brave," said {f.call}. {joy} {s.ending()}',
    ]


def wished(s: Story) -> list[str]:
    """Tell how the hero gets what was wished for."""
    h, f = s.hero, s.friend
    dream = s.pick(
        f"{h.He} dreamed about the {s.last} every night.",
        f'"I wish I had {article(s.thing)}," {h.he} said every day.',
    )
    met = s.meeting()
    asked = s.pick(
        f'"Why do you look so sad?" asked {f.call}. {h.start} told {f.him} about the {s.last}.',
        f'"What do you wish for?" asked {f.call}. "I wish for {article(s.thing)}," said {h.call}.',
    )
    gift = s.pick(
        f'"I have {article(s.thing)} at home," said {f.call}. "You can have it."',
        f"The next day, {f.call} came with a big box. Inside was {article(s.thing)}!",
    )
    joy = s.pick(
        f'"Thank you, {f.call}!" {h.he} said.',
        f"{h.He} could {s.verb} it all day long.",
    )
    return [
        f"{h.start} wanted {article(s.thing)} more than anything. {dream}",
        f"One day, {h.call} went to the {s.place}. {met} {asked}",
        f"{gift} {h.start} jumped up and down. {joy} {s.ending()}",
    ]


def brave(s: Story) -> list[str]:
    """Tell how a noise turns out to be the thing."""
    h, f = s.hero, s.friend
    scared = s.pick(f"{h.He} was scared and wanted to run away.", f'"What is that?" {h.he} said.')
    met = s.meeting()
    courage = s.pick(
        f'"I am scared too," said {f.call}. "Let us go and look together."',
        f'"Do not be scared," said {f.call}. "I will go with you."',
    )
    laugh = s.pick(
        f"They were not scared of the {s.last} anymore.",
        f'"It was just {article(s.last)}!" said {h.call}.',
    )
    return [
        f"One day, {h.call} heard a loud noise {s.there}. {scared}",
        f"{met} {courage} They went on and on. "
        f"Then they saw what made the noise. It was only {article(s.thing)}!",
        f"{h.start} and {f.call} laughed. {laugh} {s.ending()}",
    ]


def made(s: Story) -> list[str]:
    """Tell how the hero gets the thing for the friend."""
    h, f = s.hero, s.friend
    friend = s.pick(f"The friend was {f.introduced}.", f"It was for {f.introduced}.")
    work = s.pick(
        f"{h.start} looked for the {s.last} in many places. At last, {h.he} found one {s.there}.",
        f"{h.start} worked on the {s.last} all day. It was hard, but {h.he} did not give up.",
    )
    thanks = s.pick(
        f'"This is the best {s.last} ever!" said {f.call}.',
        f'"Thank you, {h.name if h.named else "my friend"}," said {f.call}.',
    )
    return [
        f"One day, {h.call} wanted to give {h.his} friend {article(s.thing)}. {friend}",
        work,
        f"When {f.call} saw the {s.thing}, {f.he} was so happy. {thanks} {s.ending()}",
    ]


PLOTS = (lost, found, shared, helped, wished, brave, made)
