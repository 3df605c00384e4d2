"""What stories are about: words and names that the requests and the augmentation know."""

from __future__ import annotations

GIRLS = (
    "Lily Sue Mia Lucy Anna Sara Jane Daisy Sarah Sally Molly Amy Lila Jill Mary Jen Emma Sandy "
    "Bella Jenny Ella Lisa Grace Susie Polly Rose Kate Emily Luna Tina Lulu Rosie Helen Pam Ann "
    "Julie Rachel Lola Lilly Nina Zoe Ruby Ivy Clara Maya Olivia"
).split()
BOYS = (
    "Tim Tom Ben Max Sam Timmy Jack Bob John Joe Billy Tommy Jake Andy Leo Benny Peter Alex Bobby "
    "Jimmy Jim Pete Henry Jerry Harry Fred Danny Sammy Bill James Mark Dave Gary Kian Finn Oliver "
    "Noah Luke Adam Charlie Oscar Theo Felix Hugo"
).split()

ANIMALS = (
    "dog cat bird bunny rabbit bear frog lion monkey horse cow pig duck fox squirrel snake turtle "
    "tiger dinosaur dragon puppy kitten parrot hen goat bee spider worm zebra giraffe crocodile "
    "whale dolphin robot monster butterfly elephant owl ant octopus eagle mouse fish sheep wolf "
    "deer hedgehog penguin donkey crab lizard snail shark ladybug caterpillar raccoon hippo panda"
).split()
PEOPLE = (
    "girl boy king queen princess prince witch wizard fairy farmer doctor teacher baby giant "
    "pirate clown artist soldier sailor tailor hunter knight baker captain nurse pilot chef"
).split()
OBJECTS = (
    "ball car boat toy book tree hat cake flower kite balloon box doll drum swing star apple key "
    "bike train plane truck rocket castle bed blanket cookie crown ring bell stone rock shell "
    "stick rope ladder map bag basket bucket bottle cup spoon pot jar lamp candle mirror picture "
    "pencil crayon puzzle game song gift present treasure coin medal necklace dress coat scarf "
    "shoe sock sandwich pizza banana orange egg pie carrot pumpkin lemon leaf seed feather cloud "
    "rainbow umbrella hose piano guitar flute trumpet camera phone computer clock towel pillow "
    "chair table snowman sled wagon tent hammer axe sword wand"
).split()
PLACES = (
    "park forest garden beach lake river pond cave farm house hill mountain island village zoo "
    "school store kitchen playground jungle meadow bridge tower"
).split()
QUALITIES = (
    "red blue green yellow pink purple orange white black brown golden gray big little small tiny "
    "huge tall old new shiny pretty beautiful magic magical special colorful soft brave kind "
    "happy sad lonely hungry sleepy friendly clever curious silly lost broken yummy sparkly"
).split()

NOUNS = frozenset(ANIMALS + PEOPLE + OBJECTS + PLACES)
SWAPPED = (ANIMALS, OBJECTS, QUALITIES[:12])
"""Groups within which one word may take another's place: animals, objects and colours."""
