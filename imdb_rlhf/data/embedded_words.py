"""Words, strengths and sentence shapes of the embedded reviews; no code that composes or parses.

The generator (`data.embedded`) and the lexicon reward (`rewards.lexicon`) share these rules for the worth of an
opinion, in log-odds of a positive review:

1. A word of grade 1 to 4 is worth 0.4, 0.8, 1.2 or 1.6, with the sign of its polarity (`VALENCE`).
2. An intensifier directly before it multiplies by 0.5, 0.8, 1.25 or 1.5 (`INTENSIFIERS`).
3. A negator earlier in its clause multiplies by -0.5, once, however many there are (`NEGATORS`). A clause ends at
   punctuation and at "and", "but", "yet", "because", "although", "though", "while", "despite" (`CLAUSE_BREAKS`).
4. A conceded word counts half, once: one between "although", "though", "while" or "despite" and the next
   punctuation mark (`CONCESSIVES`), or one before "but" or "yet" in its sentence (`ADVERSATIVES`).
5. A word counts once per text, whatever its polarity there: its first mention decides.
6. Between two punctuation marks only the first n // 2 opinion words count, n being the number of distinct words
   there that are neither opinions nor intensifiers: heaped praise is worth nothing without sentences around it.
7. The sum s over the text becomes the log-odds 6 tanh(s / 6).

All words are lower case but for names. The tables are hand-written; no corpus or published lexicon went into them.
"""

BOUND = 6.0
"""Largest absolute log-odds: a sum s becomes BOUND * tanh(s / BOUND)."""

NEGATION = -0.5
"""Factor of an opinion word in the scope of a negator."""

CONCESSION = 0.5
"""Factor of a conceded opinion word."""

WORDS_PER_OPINION = 2
"""Distinct other words that each opinion word needs between the same two punctuation marks."""

STRENGTHS = (0.4, 0.8, 1.2, 1.6)
"""Worth of an opinion word of grade 1, 2, 3, 4, before its sign."""

POSITIVE = {
    "adj": (
        "decent watchable pleasant likable agreeable competent fine passable",
        "good clever charming funny engaging enjoyable solid lively warm sharp convincing inventive thoughtful "
        "appealing graceful amusing satisfying witty tender believable",
        "excellent impressive gripping delightful powerful touching memorable beautiful terrific absorbing "
        "compelling lovely moving",
        "superb wonderful brilliant magnificent flawless masterful stunning extraordinary unforgettable perfect",
    ),
    "adv": (
        "competently neatly nicely decently",
        "cleverly gracefully convincingly confidently thoughtfully",
        "beautifully impressively elegantly",
        "superbly brilliantly wonderfully magnificently",
    ),
    "noun": ("diversion", "pleasure treat success", "delight joy triumph gem", "masterpiece marvel treasure"),
    "verb": ("liked", "enjoyed appreciated", "admired loved relished", "adored"),
    "base": ("", "enjoy appreciate", "admire love relish", "adore"),
    "does": ("pleases", "charms entertains satisfies amuses", "delights impresses shines", "dazzles astonishes soars"),
    "do": ("please", "charm entertain satisfy amuse", "delight impress shine", "dazzle astonish soar"),
}
"""Praise: part of speech -> words of grade 1 to 4. "verb" and "base" follow "I"; "does" and "do" follow a film."""

NEGATIVE = {
    "adj": (
        "uneven ordinary plain slow thin predictable routine shaky patchy unremarkable",
        "bad dull weak clumsy bland boring tired flat messy shallow muddled stale tedious awkward stiff silly "
        "lifeless wooden unconvincing forgettable",
        "annoying tiresome irritating ugly pointless hollow stupid grating poor painful",
        "dreadful terrible awful horrible atrocious appalling abysmal unbearable dire",
    ),
    "adv": (
        "unevenly unremarkably plainly",
        "badly clumsily weakly lazily stiffly poorly blandly",
        "carelessly painfully tediously",
        "dreadfully atrociously horribly appallingly",
    ),
    "noun": ("letdown", "disappointment chore muddle mess slog", "failure ordeal", "disaster catastrophe travesty"),
    "verb": ("endured", "disliked regretted", "hated resented", "despised loathed"),
    "base": ("", "dislike regret", "hate resent", "despise loathe"),
    "does": ("falters wobbles", "drags disappoints bores stumbles", "irritates annoys fails", "appals collapses"),
    "do": ("falter wobble", "drag disappoint bore stumble", "irritate annoy fail", "appal collapse"),
}
"""Blame, in the same shape as `POSITIVE`."""

VALENCE: dict[str, float] = {
    word: sign * strength
    for sign, table in ((1.0, POSITIVE), (-1.0, NEGATIVE))
    for grades in table.values()
    for words, strength in zip(grades, STRENGTHS, strict=True)
    for word in words.split()
}
"""Every opinion word -> its signed worth."""

INTENSIFIERS: dict[str, float] = {
    **dict.fromkeys(("slightly", "mildly", "faintly"), 0.5),
    **dict.fromkeys(("rather", "fairly", "somewhat"), 0.8),
    **dict.fromkeys(("really", "truly", "particularly"), 1.25),
    **dict.fromkeys(("very", "extremely", "thoroughly", "utterly"), 1.5),
}
"""Intensifier -> the factor of the opinion word directly after it."""

NEGATORS = frozenset(
    {"not", "never", "no", "hardly", "barely", "scarcely", "neither", "nor", "nothing", "without", "cannot"}
    | {"can't", "won't"}
    | {
        f"{verb}n't"
        for verb in ("is", "was", "are", "were", "do", "does", "did", "has", "have", "had", "could", "would")
    }
)
"""Words that negate the opinion words after them, to the end of the clause."""

CONCESSIVES = frozenset({"although", "though", "while", "despite"})
"""Words that open a conceded clause."""

ADVERSATIVES = frozenset({"but", "yet"})
"""Words that concede everything before them in the sentence."""

CLAUSE_BREAKS = CONCESSIVES | ADVERSATIVES | {"and", "because"}
"""Words that end the scope of a negator."""

INTENSIFIERS_BY_GRADE = {
    1: ("very rather fairly really", "very rather fairly really", "very extremely truly rather", "truly really"),
    -1: ("slightly rather somewhat very faintly", "slightly mildly rather somewhat very really", "very rather really",
         "truly utterly"),
}  # fmt: skip
"""Polarity -> the intensifiers that go with an adjective of grade 1, 2, 3, 4."""

INTENSIFIERS_BY_KIND = {"adv": "very rather", "verb": "really truly thoroughly"}
"""Part of speech other than adjectives -> the intensifiers that go with it."""

NEGATED_INTENSIFIERS = "very really particularly"
"""The intensifiers of a negated adjective ("not very good")."""

NEUTRAL: dict[str, tuple[str, ...]] = {
    name: tuple(entry.strip() for entry in entries.split(","))
    for name, entries in {
        "film": "film, movie, picture, feature, production",
        "genre": "comedy, drama, thriller, western, musical, mystery, romance, documentary, satire, crime story, "
        "horror film, war film, family film, road movie, ghost story, period piece, courtroom drama, spy story, "
        "fairy tale, science fiction film, sports drama, heist film, silent film, animated feature, monster movie",
        "part": "acting, plot, script, story, dialogue, direction, camerawork, editing, music, score, pacing, casting, "
        "photography, lighting, soundtrack, ending, setting, humour, premise, tone, atmosphere, choreography, "
        "narration, costume design, sound mixing, screenplay, finale, final act, first act, production design, "
        "supporting cast, lead performance, main character, voice work, villain, narrator, second half, closing scene, "
        "central mystery, cast",
        "parts": "performances, jokes, songs, costumes, sets, characters, action scenes, special effects, "
        "chase scenes, visuals, locations, dance numbers, battle scenes, crowd scenes, subplots, flashbacks, actors, "
        "conversations, stunts, side characters",
        "thing": "script, plot, story, cast, ending, premise, soundtrack, finale, score, setting, villain, screenplay",
        "craft": "acted, written, shot, directed, edited, staged, lit, paced, filmed, performed, choreographed, scored",
        "person": "Nora, Walter, Helen, Marcus, Ingrid, Thomas, Rosa, Victor, Alice, Samuel, Clara, Daniel, Irene, "
        "Oscar, Judith, Leon, Martha, Felix, Diane, Edgar, Sofia, Hugo",
        "surname": "Halloway, Brandt, Okafor, Lindqvist, Moreau, Castell, Prior, Whitcombe, Tanaka, Delgado, Farrow, "
        "Novak, Ashby, Kowalski, Renner, Vance, Marlowe, Quill, Santoro, Byrne",
        "role": "a retired detective, a young widow, a travelling salesman, an army doctor, a piano teacher, "
        "a country priest, a bank clerk, a famous novelist, a lonely widower, an old sailor, "
        "a taxi driver, a runaway heiress, a local reporter, a night nurse, a boxer, a spy, "
        "a circus performer, a small town sheriff, a farmer, a lawyer, an orphan",
        "group": "two brothers, three sisters, a group of students, a married couple, four old friends, "
        "a crew of miners, a family of bakers, two rival cooks",
        "fate": "in search of a lost letter, on the run from the police, at the end of a long career, "
        "after the death of a parent, on a journey across the desert, with a secret from the past, "
        "during the last days of the war, at odds with the neighbours, in debt to a gangster, on the trail of a thief, "
        "caught between two families, trapped in a hotel by snow, accused of murder, about to lose the house, "
        "with one week to find a buyer, called home by a telegram, torn between duty and freedom, new to the city, "
        "hired to guard a painting, stranded on an island",
        "place": "a fishing village, Chicago, the Scottish coast, a mining town, Paris, a boarding school, "
        "the mountains, Rome, a prison, New Orleans, a remote farm, Lisbon, an old hotel, the suburbs, a hospital, "
        "Vienna, the far north, a harbour city, rural Texas, Tokyo, a space station, London",
        "when": "last night, on a rainy Sunday, at a small festival, last winter, on television, during a long flight, "
        "over the weekend, at a matinee, a few days ago, on an old tape, last summer, at the local cinema, "
        "late one evening, in a half empty theatre, on my birthday, years ago, again this week, on opening night",
        "companion": "with my sister, with my father, with a group of friends, with my wife, with my husband, "
        "on my own, with two colleagues, with the children, with my neighbour, with a large audience, with my cousin",
        "relative": "brother, sister, father, mother, uncle, aunt, roommate, teacher, grandmother, neighbour, boss, "
        "cousin",
        "decade": "the thirties, the forties, the fifties, the sixties, the seventies, the eighties, the nineties, "
        "1948, 1962, 1971, 1985, 1994, 2003",
        "minutes": "eighty, eighty five, ninety, ninety five, a hundred, a hundred and ten, a hundred and twenty",
        "ordinal": "second, third, fourth, fifth, sixth, latest, last",
        "language": "French, Spanish, German, Italian, Japanese, Russian, Polish, Swedish",
        "lead": "for me, to my mind, to be fair, of course, in my view, as it happens, from the start, "
        "as far as I can tell, after an hour or so, in this version, by and large, in hindsight, to this day, "
        "surprisingly, frankly, in all honesty, to my surprise",
    }.items()
}
"""Slot name -> neutral words or phrases. None holds an opinion word, an intensifier or a negator."""

# Sentence shapes. A slot named in NEUTRAL takes a neutral phrase; {adj}, {noun} and the other parts of speech take an
# opinion of the sentence's polarity. "~" marks a conceded opinion (opposite polarity), "!" a negated one (opposite
# word); "a:" puts "a" or "an" before the word.

NEUTRAL_OPENERS = (
    "I saw this {film} {when}",
    "I watched this {genre} {companion} {when}",
    "my {relative} chose this {film} {when}",
    "my {relative} told me about this {film} {when}",
    "this {film} is about {role} {fate}",
    "the story follows {role} {fate}",
    "this {genre} is about {group} {fate}",
    "set in {place}, this {genre} follows {role}",
    "{person} {surname} plays {role} {fate}",
    "this {genre} was made in {decade}",
    "this is {a:genre} set in {place}",
    "the {film} opens in {place}",
    "it is not easy to know where to start with this {film}",
    "before this I had seen only one {film} by {person} {surname}",
    "{person} {surname} directs this {genre} about {group}",
    "a friend lent me this {film} {when}",
    "the first scene shows {role} {fate}",
    "this is the {ordinal} {film} by {person} {surname}",
    "here is {a:genre} about {role} {fate}",
    "the {film} tells of {role} {fate}",
    "I had wanted to see this {genre} since {decade}",
    "we went to see this {film} {companion}",
    "there is a long history of the {genre} in {place}",
)
"""First sentences without an opinion."""

OPINION_OPENERS = (
    "the {part} in this {film} is {adj}",
    "the {parts} in this {genre} are {adj}",
    "the first thing to say about this {film} is that the {part} is {adj}",
    "I saw this {film} {when} and I {verb} it",
    "this {genre} from {decade} is {adj}",
    "this is {a:genre} about {role}, and the {part} is {adj}",
    "what you notice first in this {genre} is the {adj} {part}",
    "for {a:genre} set in {place}, this {film} is {adj}",
    "{person} {surname} plays {role} in this {genre}, and the {thing} is {adj}",
    "in this {film} about {role} the {part} is not {!adj}",
    "the {part} of this {film} is never {!adj}",
    "although the {part} in this {film} is {~adj}, the {parts} are {adj}",
    "the {part} in this {film} is {~adj}, but the {parts} {do}",
    "I went to see this {genre} {companion} and it is {a:adj} {film}",
    "when I saw this {film} {companion} I did not {!base} it",
    "the {parts} in this {film} are hardly {!adj}",
    "I have seen this {genre} twice now and the {part} still {does}",
)
"""First sentences whose first opinion word comes after the fourth word."""

FILLERS = (
    "it runs for about {minutes} minutes",
    "most of it takes place in {place}",
    "{person} {surname} plays {role}",
    "{person} {surname} wrote the book on which it is based",
    "the rest of the company includes {person} {surname} and {person} {surname}",
    "there are scenes in {place} and in {place}",
    "it was shot in {place} in {decade}",
    "I watched it {companion}",
    "the {film} begins with {role} {fate}",
    "much of the action concerns {role}",
    "the producer is {person} {surname}",
    "the music is by {person} {surname}",
    "later we meet {role} {fate}",
    "the two of them travel to {place}",
    "it was filmed in black and white",
    "some of the dialogue is in {language}",
    "we learn the rest from {role}",
    "we spend most of the time with {group}",
    "there is a second story about {group}",
    "everything changes when {person} arrives in {place}",
    "{person} and {person} meet in {place}",
    "my {relative} had read the book",
)
"""Later sentences without an opinion."""

BODIES = (
    "the {part} is {adj}",
    "the {parts} are {adj}",
    "the {part} is {adj} and the {parts} are {adj}",
    "I found the {part} {adj}",
    "I found the {parts} {adj}",
    "the {part} {does}",
    "the {parts} {do}",
    "{person} {surname} gives {a:adj} performance as {role}",
    "{person} is {adj} as {role}",
    "it is {adv} {craft}",
    "it is {adv} {craft} and {adv} {craft}",
    "the {part} is not {!adj}",
    "the {part} isn't {!adj}",
    "the {parts} aren't {!adj}",
    "the {part} is neither {!adj} nor {!adj}",
    "this is not {a:!adj} {film}",
    "the {part} is never {!adj}",
    "the {part} never {!does}",
    "the {parts} do not {!do}",
    "I did not {!base} the {part}",
    "I didn't {!base} the {parts}",
    "I {verb} the {part}",
    "I {verb} nearly every minute of it",
    "it has {a:~adj} {thing}, but {a:adj} {thing}",
    "the {part} is {~adj}, but the {part} is {adj}",
    "the {part} is {~adj}, yet the {parts} are {adj}",
    "although the {part} {~does}, the {part} {does}",
    "though the {parts} are {~adj}, I {verb} the {part}",
    "despite the {~adj} {part}, the {part} {does}",
    "while the {part} is not {~!adj}, the {parts} are {adj}",
    "the {part} is {adj}, although the {parts} are {~adj}",
    "I {verb} the {part}, though the {part} {~does}",
    "there is nothing {!adj} about the {part}",
    "there is something {adj} about the {part}",
    "what I remember most is the {adj} {part}",
    "the {part} hardly {!does}",
    "the {parts} are hardly {!adj}",
    "every scene with {person} is {adj}",
    "the scenes in {place} are {adj}",
    "you get {a:adj} {thing} and {a:adj} {thing}",
    "as {a:film} it is {a:noun}",
    "the {part} turns out to be {a:noun}",
    "the way {person} {surname} plays {role} is {adj}",
    "much of the {film} is {adj}",
    "the {part} feels {adj} from start to finish",
    "the {parts} never become {!adj}",
    "the last hour passes without {a:!adj} moment",
    "the {part} did not seem {!adj} to me",
    "my {relative} {verb} the {part}",
    "{person} {surname} brings {a:adj} touch to the {part}",
    "the {parts} look {adj} even now",
    "no part of it is {!adj}",
)
"""Later sentences with an opinion."""

VERDICTS = (
    "overall, this is {a:adj} {film}",
    "in the end it is {a:noun}",
    "all in all, this is {a:adj} {film} with {a:adj} {thing}",
    "I would not call it {a:!adj} {film}",
    "as a whole the {film} {does}",
    "the {film} is {~adj} in places, but {adj} as a whole",
    "on balance I {verb} it",
    "in short, it is {a:noun} of {a:film}",
    "I left the cinema thinking it was {adj}",
    "it is not {a:!noun}, and the {part} is {adj}",
    "my {relative} called it {a:~noun}, but I {verb} it",
    "taken together, the {parts} and the {part} are {adj}",
)
"""Last sentences with an opinion on the whole."""
