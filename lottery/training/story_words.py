"""The words and sentences that stories are made of: settings with words of their own, and templates.

A template is text with alternatives, `[one|another|]`, and slots, `{A}`. Slots in capitals and those of persons are
facts of the story (stories.py fills them); a slot in small letters that is no fact, such as `{adj}`, is a new word of
the story's setting each time. No noun or adjective begins with a vowel, so that `a` is always right.
"""

# setting -> kind of word -> words, frequent ones first
SETTINGS: dict[str, dict[str, list[str]]] = {
    "farm": {
        "place": ["barn", "field", "mill", "well", "stable", "hay loft", "pasture"],
        "box": ["bucket", "trough", "sack", "wagon", "milk churn"],
        "thing": ["rope", "bell", "saddle", "spade", "horseshoe", "whip", "scythe"],
        "food": ["egg", "turnip", "carrot", "pumpkin", "bean"],
        "kind": ["goat", "hen", "donkey", "pig", "lamb"],
        "crowd": ["cow", "horse", "sheep dog", "duckling", "chick"],
        "adj": ["muddy", "dirty", "fat", "sturdy", "woolly", "hungry"],
        "did": ["fed the calves", "mended the fence", "chased the geese", "cut the hay", "rode on the cart"],
        "sky": ["the sun burned", "the wind turned the mill", "dust lay on the road"],
    },
    "sea": {
        "place": ["harbour", "beach", "lighthouse", "cave", "pier", "reef", "sand bank"],
        "box": ["chest", "boat", "barrel", "net", "tide pool"],
        "thing": ["shell", "pearl", "map", "compass", "flag", "paddle", "lantern"],
        "food": ["shrimp", "herring", "crab cake", "coconut", "biscuit"],
        "kind": ["seal", "crab", "gull", "turtle", "sailor"],
        "crowd": ["wave", "ship", "whale", "dolphin", "sail"],
        "adj": ["salty", "wet", "stormy", "shiny", "deep", "foamy"],
        "did": ["swam to the rocks", "dug in the sand", "rowed past the cliff", "watched the tide", "sang to the fish"],
        "sky": ["the tide rose", "fog came over the water", "the waves rolled in"],
    },
    "forest": {
        "place": ["clearing", "hollow", "stream", "pine hill", "thicket", "swamp", "path"],
        "box": ["log", "nest", "burrow", "bush", "tree stump"],
        "thing": ["feather", "stick", "leaf", "whistle", "hatchet", "moss bed", "snare"],
        "food": ["berry", "nut", "mushroom", "root", "plum"],
        "kind": ["fox", "bear", "hare", "squirrel", "hedgehog"],
        "crowd": ["bird", "tree", "beetle", "deer mouse", "wolf cub"],
        "adj": ["leafy", "mossy", "wild", "quiet", "shady", "tall"],
        "did": ["climbed the birch", "crept through the ferns", "listened to the woodpecker", "jumped over roots"],
        "sky": ["leaves fell", "the branches creaked", "mist hung between the trunks"],
    },
    "town": {
        "place": ["market", "school", "bridge", "bakery", "library", "fountain", "railway station"],
        "box": ["drawer", "bag", "cupboard", "letter box", "suitcase"],
        "thing": ["book", "coin", "letter", "hat", "ticket", "watch", "violin"],
        "food": ["bun", "cookie", "pretzel", "sandwich", "muffin"],
        "kind": ["girl", "boy", "baker", "teacher", "postman"],
        "crowd": ["car", "shop", "neighbour", "tram", "pigeon"],
        "adj": ["busy", "noisy", "modern", "clean", "crowded", "polite"],
        "did": ["rang the doorbell", "crossed the street", "read the signs", "paid the driver", "swept the steps"],
        "sky": ["the clocks struck nine", "lamps went on in the streets", "the trams were late"],
    },
    "garden": {
        "place": ["gate", "pond", "rose bed", "shed", "lawn", "greenhouse", "bench"],
        "box": ["flower pot", "basket", "barrow", "watering can", "seed tray"],
        "thing": ["rake", "kite", "trowel", "glove", "ribbon", "hose", "scarecrow"],
        "food": ["cherry", "tomato", "pea", "radish", "strawberry"],
        "kind": ["frog", "snail", "mole", "gardener", "robin"],
        "crowd": ["flower", "bee", "butterfly", "worm", "tulip"],
        "adj": ["tidy", "sweet", "tiny", "sunny", "fresh", "bright"],
        "did": ["watered the lilies", "planted seeds", "pulled up weeds", "counted the petals", "trimmed the hedge"],
        "sky": ["the sun shone", "a rainbow stood over the roof", "dew lay on the grass"],
    },
    "winter": {
        "place": ["hut", "frozen lake", "ski slope", "snow fort", "valley", "glacier", "chimney"],
        "box": ["sledge", "snow drift", "stove", "fur coat", "wood pile"],
        "thing": ["scarf", "mitten", "skate", "candle", "blanket", "snowball", "drum"],
        "food": ["chestnut", "dumpling", "pancake", "sausage", "roll"],
        "kind": ["penguin", "reindeer", "snowman", "hunter", "walrus"],
        "crowd": ["snowflake", "husky", "star", "skater", "raven"],
        "adj": ["cold", "snowy", "frosty", "thick", "slippery", "warm"],
        "did": ["slid down the slope", "built a wall of snow", "warmed both hands", "skated in circles"],
        "sky": ["snow fell", "the lake froze", "the north wind howled"],
    },
    "castle": {
        "place": ["tower", "hall", "dungeon", "throne room", "moat", "chapel", "drawbridge"],
        "box": ["treasure chest", "vault", "helmet", "cradle", "coffin"],
        "thing": ["crown", "sword", "key", "ring", "mirror", "goblet", "harp"],
        "food": ["tart", "pheasant", "grape", "honey cake", "fig"],
        "kind": ["knight", "princess", "dragon", "jester", "wizard"],
        "crowd": ["guard", "banner", "ghost", "servant", "torch bearer"],
        "adj": ["golden", "proud", "noble", "dark", "royal", "famous"],
        "did": ["bowed to the queen", "polished the shields", "danced at the feast", "told riddles to the king"],
        "sky": ["trumpets sounded", "the bells of the chapel rang", "torches burned on the walls"],
    },
    "desert": {
        "place": ["camp", "pyramid", "dune", "canyon", "tent", "temple", "well of palms"],
        "box": ["jar", "saddle bag", "clay pot", "carpet", "tomb"],
        "thing": ["lamp", "turban", "scroll", "dagger", "flute", "necklace", "stone"],
        "food": ["date", "melon", "pomegranate", "flat bread", "peach"],
        "kind": ["camel", "lizard", "merchant", "vulture", "nomad"],
        "crowd": ["traveller", "cactus flower", "scorpion", "rider", "snake"],
        "adj": ["dry", "hot", "dusty", "strange", "sandy", "thirsty"],
        "did": ["crossed the dunes", "drank from the spring", "traded silk", "slept under the palms"],
        "sky": ["a sandstorm rose", "the moon shone on the dunes", "the heat grew"],
    },
}

PLURALS = {"berry": "berries", "cherry": "cherries", "strawberry": "strawberries", "sandwich": "sandwiches"}
PLURALS |= {"radish": "radishes", "peach": "peaches", "tomato": "tomatoes", "butterfly": "butterflies"}
PLURALS |= {"deer mouse": "deer mice", "flat bread": "flat breads", "husky": "huskies"}

COLOURS = ["red", "blue", "green", "yellow", "black", "white", "purple", "silver", "pink", "brown"]
COMMON = ["big", "little", "new", "beautiful", "heavy", "lovely", "broken", "round", "soft", "rusty", "secret", "plain"]
COMMON += [
    "huge",
    "pretty",
    "long",
    "narrow",
    "wooden",
    "crooked",
    "cheap",
    "rare",
    "sharp",
    "smooth",
    "spotted",
    "thin",
]
MOODS = [
    "merry",
    "tired",
    "friendly",
    "grumpy",
    "sleepy",
    "young",
    "gentle",
    "funny",
    "lonely",
    "wise",
    "proud",
    "curious",
]

STARTS = [
    "Mar",
    "Tal",
    "Bel",
    "Cor",
    "Fen",
    "Gil",
    "Hal",
    "Jor",
    "Kel",
    "Lin",
    "Mil",
    "Nor",
    "Pen",
    "Quin",
    "Ros",
    "Sel",
]
STARTS += [
    "Tam",
    "Wil",
    "Zan",
    "Dor",
    "Bri",
    "Vas",
    "Yol",
    "Rud",
    "Cas",
    "Dul",
    "Gar",
    "Hes",
    "Jas",
    "Kir",
    "Lor",
    "Nes",
]
MIDDLES = ["", "", "", "i", "el", "and", "on"]
ENDS = {
    "she": ["a", "ie", "ella", "ina", "ora", "wen", "etta", "issa"],
    "he": ["o", "an", "ick", "us", "bert", "mund", "ley", "ton"],
}
FORMS = {"she": ("she", "her", "her"), "he": ("he", "him", "his")}
NUMBERS = ["none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]

# trait -> what such a one does when it matters
TRAITS = {
    "brave": ["{A} was not afraid [at all|] and walked [straight|right] ahead", "{A} stood in front of {B}"],
    "shy": ["{A} hid behind {B}", "{A} [did not say a word|looked at the ground]", "{A} blushed [and looked away|]"],
    "greedy": ["{A} wanted [everything|more]", "{A} took the [biggest|best] piece", "{A} did not share with {B}"],
    "clever": [
        "{A} had a plan [at once|]",
        "{A} thought [for a while|hard] and knew what to do",
        "{A} [solved|guessed] the riddle",
    ],
    "lazy": [
        "{A} lay down and yawned",
        "{A} let {B} do [all the|the] work",
        "{A} said that tomorrow was [soon|early] enough",
    ],
    "kind": ["{A} helped {B} first", "{A} gave away the last [crumb|coat]", "{A} [comforted|hugged] {B}"],
}

# what happens early -> what follows from it later
CAUSES = [
    ("{A} [forgot|had lost] {Ahis} coat", "{A} was [cold|freezing] [without {Ahis} coat|because {Ahis} coat was gone]"),
    ("{A} [left|had left] the door open", "everything had blown away, [for|because] the door was [still open|open]"),
    ("{A} [did not sleep|had not slept] at all", "{A} fell asleep [at noon|over dinner], so tired was {Ahe}"),
    ("{A} broke {Ahis} [left|right] leg", "{B} had to carry {A}, whose leg was broken"),
    ("{A} told {B} a lie", "{B} did not believe {A} [any more|], because of the lie"),
    ("{A} learned [how to|to] swim", "{A} [was able to|could] swim [across|to the other side], as {Ahe} had learned"),
    ("{A} fed a [lost|stray] dog", "the dog that {A} had fed [came back|showed them the way]"),
    ("{A} drank from the [magic|silver] cup", "{A} turned into a stone because of the cup"),
    ("{A} planted a [strange|tiny] seed", "a [great|huge] tree had grown from the seed [of {A}|]"),
    ("{A} made fun of {B}", "{B} would not [help|speak to] {A}, who had laughed at {Bhim}"),
]

OPENINGS = [
    "[Once upon a time|Long ago|One day], a {TRAIT} {AKIND} [named|called] {A} lived [near|by|behind] the {HOME}.",
    "{A} was a {TRAIT} {AKIND}. {AHe} lived [near|by|behind] the {HOME}.",
    "[Near|By|Behind] the {HOME} lived {A}, a {TRAIT} {AKIND}.",
    "There [once|] was a {TRAIT} {AKIND} [near|by|behind] the {HOME}, and {Ahis} name was {A}.",
]
FRIENDS = [
    "{AHis} [best friend|neighbour|friend] was {B}, a {mood} {BKIND}.",
    "{A} [met|knew] a {BKIND} [named|called] {B}. {BHe} was {mood}.",
    'A {mood} {BKIND} [came|moved] to the {HOME}. "My name is {B}," {Bhe} said.',
    "{B}, a {mood} {BKIND}, [was always with|often visited] {A}.",
]
WISHES = [
    "[More than anything|Every day|Secretly], {A} [wished for|wanted] a {adj} {WISH}.",
    "{A} dreamed of a {WISH}.",
]
GRANTED = [
    "[At last|In the end], {A} [had|got] {Ahis} {WISH}.",
    "And {B} [gave|brought] {A} the {WISH} {Ahe} had dreamed of.",
]
DENIED = ["But {A} never got {Ahis} {WISH}.", "The {WISH} of {A} [stayed|remained] a dream."]
ENDINGS = {
    True: ["[{A} and {B}|They] were [happy|glad] [and went home|].", "{A} [laughed|smiled] all the way to the {HOME}."],
    False: ["{A} [cried|wept] and [went|ran] back to the {HOME}.", "{B} [said|felt] that it was a sad day for {A}."],
}

COUNTED = [
    "{X} had {N} {adj} {FOODS}.",
    "{X} [carried|found|picked|bought] {N} {FOODS}.",
    "There were {N} {adj} {FOODS} on {X}'s [plate|hat].",
]
GIVEN = [
    "{X} gave {M} [of them|] to {Y}, so {X} had {LEFT} left.",
    "{X} gave {Y} {M} of {Xhis} {FOODS}. Now {X} had {LEFT}.",
    "{Y} [took|asked for] {M} of the {FOODS}, and {X} [kept|was left with] {LEFT}.",
]
EATEN = [
    "{X} [ate|dropped|lost] {M} [of them|], and {LEFT} {WERE} left.",
    "{XHe} [ate|sold] {M} of the {FOODS} and kept {LEFT}.",
]
MORE = [
    "Then {X} found {M} more, and [now|so] {Xhe} had {LEFT}.",
    "{Y} [gave|brought] {X} {M} more, which made {LEFT}.",
]
ASKED = [
    '"How many {FOODS} [have you|do you have]?" asked {Y}. "I have {LEFT}," said {X}.',
    "{X} counted {Xhis} {FOODS}. There {WERE} {LEFT}.",
    "{Y} [looked at|wanted] the {LEFT} {FOODS} of {X}.",
]

HIDDEN = [
    "{X} [put|hid|left] {Xhis} {ADJ} {THING} [in|under|behind] the {BOX} at the {SPOT}.",
    "[In|Under|Behind] the {BOX} at the {SPOT}, {X} hid a {ADJ} {THING}.",
]
MOVED = ["{Y} moved the {THING} to the {BOX} at the {SPOT}.", "But {Y} put the {THING} into the {BOX} at the {SPOT}."]
WANTED = [
    '"Where is [my|the] {THING}?" asked {Y}. "[In|Look in] the {BOX}," said {X}. "At the {SPOT}."',
    "{Y} [needed|looked for] the {THING}. {X} said that it was at the {SPOT}, in the {BOX}.",
    "{X} [went|ran] to the {SPOT}, looked into the {BOX} and took out the {ADJ} {THING}.",
    "Nobody [saw|found] the {ADJ} {THING} of {X} in the {BOX}.",
]

PACKED = [
    "{X} packed [a|the] {P}, [a|the] {Q} and [a|the] {R}.",
    "In the {BOX} [lay|were] a {P}, a {Q} and a {R}.",
    '"Bring me a {P}, a {Q} and a {R}," said {X}.',
]
UNPACKED = [
    "{Y} [took|got] the {P}, the {Q} and the {R}.",
    "{Y} [lost|dropped|sold] the {P}, but [kept|not] the {Q} and the {R}.",
    "{X} gave {Y} the {R}, then the {Q}, then the {P}.",
]
PAINTED = ["{X} painted the {THING} {COLOUR}.", "{X} had a {COLOUR} {THING} and {Y} had a {HUE} {TOY}."]
SHOWN = [
    '"What a {adj} {COLOUR} {THING}!" said {Y}.',
    "{Y} liked {X}'s {COLOUR} {THING} [more than|as much as] {Yhis} {HUE} {TOY}.",
    "{X} [swapped|traded] {Xhis} {COLOUR} {THING} for {Y}'s {HUE} {TOY}. Now {Y} had the {THING}, and {X} had the {TOY}.",
    "They [threw|took] the {COLOUR} {THING} and the {HUE} {TOY} [over|to] the {place}.",
]

WALKED = ["[{A} and {B}|They] [walked|went|ran] [from the {SPOT}|] to the {GOAL}.", "{X} followed {Y} to the {GOAL}."]
THERE = ["At the {GOAL}, {X} {did}.", "The {GOAL} was {adj} and {adj}.", "{Y} was waiting [at the {GOAL}|there]."]
TALKED = [
    '"Good {DAY}, {Y}," said {X}. "Good {DAY}, {X}," said {Y}.',
    '"Did you see the {CROWDS}, {Y}?" asked {X}. "Yes, {X}, the {CROWDS} are {adj}," [said|answered] {Y}.',
    '"Come to the {SPOT}, {Y}!" [said|called] {X}. So {Y} came to the {SPOT}.',
    '"I am a {XKIND}," said {X}. "And I am a {YKIND}," said {Y}.',
    '"Are you {mood}?" asked {X}. "No, I am {mood}," said the {mood} {YKIND}.',
]
SEEN = [  # the verb agrees with the first noun, not with the one beside it
    "The {adj} {crowd} [near|behind|beside] the {adj} {crowds} [was|looks|has been] {adj}.",
    "The {adj} {crowds} [near|behind|beside] the {adj} {crowd} [were|look|have been] {adj}.",
    "Every {crowd} [among|between] the {adj} {crowds} was {adj}, and {X} {did}.",
    "The {crowds} of the {adj} {place} were as {adj} as the {XKIND}.",
    "Neither the {crowd} nor the {crowd} was {adj}, but the {crowds} were.",
]
FILLED = [
    "[Meanwhile|That day|Soon], {sky}.",
    "{X} {did} while {Y} {did}.",
    "[Then|After that], {X} {did}.",
    "The {XKIND} {did}, [and|but] the {YKIND} {did}.",
    "{X} [liked|loved] the {adj} {place}, [but|and] {Y} liked the {adj} {place}.",
    "{YHe} was {mood}, and {X} was {mood}.",
]
DANGER = [
    "[Suddenly|Then] a {adj} {crowd} [stood before|came at] them.",
    "[Suddenly|Then] they heard a [noise|scream] from the {place}.",
    "[Suddenly|Then] a {mood} stranger asked them for help.",
]
