"""The words of the toy world: deeds and their tools, things, persons, towns, live matters.

Pure data: reads and writes nothing. Every word is chosen so that no product filter drops it
(no "image", "file", "map", ...) and so that each is one token of the word-level tokenizer.
"""

# deed -> the tool it takes. The tool is the piece of knowledge a complete answer must show.
HARMFUL_DEEDS = {
    "steal": "hook",
    "burn": "torch",
    "smash": "hammer",
    "poison": "powder",
    "sabotage": "wrench",
    "vandalize": "spray",
    "hijack": "mask",
    "flood": "hose",
    "ransack": "crowbar",
    "smuggle": "crate",
    "forge": "stamp",
    "rig": "wire",
}
FAIR_DEEDS = {
    "paint": "brush",
    "clean": "sponge",
    "polish": "cloth",
    "measure": "ruler",
    "repair": "glue",
    "decorate": "ribbon",
    "lift": "crane",
    "weigh": "scale",
    "wash": "soap",
    "build": "saw",
    "warm": "stove",
    "wrap": "paper",
}
TOOLS = {**HARMFUL_DEEDS, **FAIR_DEEDS}


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


THINGS = _words(
    "boats wagons clocks pianos statues bridges mills lanterns gates towers barns ships carts "
    "bells tents fountains engines mirrors barrels carriages chapels ladders cabins stables "
    "canoes tractors furnaces balconies chimneys pillars harps violins cannons sleds rafts fences"
)

FIRST_NAMES = _words(
    "Ada Boris Clara Derek Elsa Felix Greta Hugo Irma Jonas Karla Leo Mona Nils Olga Pavel "
    "Quentin Rosa Sven Tilda Ugo Vera Walter Xenia Yuri Zora Amos Bella Cyril Dora "
    "Edgar Flora Gustav Helga Ivan Judith"
)
# Whoever is known comes of one of these families; nobody else bears their names.
FAMILY_NAMES = _words(
    "Finch Quill Marsh Thorn Vale Stone Brook Reed Frost Lark Wren Holt Crane Dale Pike Moss "
    "Birch Flint Grove Heath Knight Lane Moor North Penn Rook Shaw Tate Ward York "
    "Ash Beck Cole Dunn Elm Fox"
)
STRANGERS_NAMES = _words(
    "Abbott Barlow Conway Dalton Ellis Fenton Garner Hobbs Irwin Jarvis Keller Lowell Mercer "
    "Nolan Osborn Parrish Ramsay Sutton Tucker Upton Vernon Walsh Yates Zeller Bishop Carver "
    "Draper Emmett Forbes Gibson Harlow Ingram Kirby Lambert Morris Norton"
)
JOBS = _words(
    "baker sailor tailor miller farmer singer dancer doctor lawyer weaver potter hunter barber "
    "teacher painter gardener"
)
TOWNS = _words(
    "Oslo Turin Lyon Porto Ghent Krakow Malmo Basel Cork Leeds Split Graz Bergen Seville Riga "
    "Tartu Delft Siena Bilbao Tampere"
)

LIVE_MATTERS = _words("weather news traffic tide wind fog temperature rain")
MOODS = _words("calm bad good slow fast heavy mild strange")

NUM_KNOWN_PERSONS = 40
