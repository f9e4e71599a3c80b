"""General English words that tell what kind of thing a name names.

Closed lists of everyday English, taken from no corpus; what a corpus itself shows (which words it
capitalises away from sentence starts, who speaks, what follows a name) is counted in mentions.py.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache
from typing import Any

PERSON, ORGANIZATION, GEO, EVENT, OBJECT = "person", "organization", "geo", "event", "object"
TYPES = (PERSON, ORGANIZATION, GEO, EVENT, OBJECT)  # GraphRAG's types; the order settles ties


def word_set(text: str) -> frozenset[str]:
    """Return the words of `text`."""
    return frozenset(text.split())


# Forms of address, written without their full stop; never a part of a canonical title.
HONORIFICS = word_set(
    "mr mrs ms miss mx dr doctor prof professor sir dame lord lady madam master captain capt "
    "colonel col major general gen lieutenant lt sergeant sgt corporal private admiral commander "
    "commodore constable inspector detective superintendent sheriff judge justice magistrate "
    "president chancellor senator representative councillor councilor alderman mayor mayoress "
    "governor minister ambassador bishop archbishop pastor reverend rev father brother sister "
    "mother deacon rabbi imam canon vicar king queen prince princess duke duchess baron baroness "
    "count countess uncle aunt auntie aunty grandpa grandma granny coach chef nurse skipper chief "
    "officer warden dean provost skip cousin nan nana gran grandad granddad comrade"
)

# Address words that are names where nothing follows them ("Mum rang").
FAMILY_NAMES = word_set(
    "mum mom mam mummy mommy mama mamma ma dad daddy papa pa pop gran grandma granny grandpa "
    "grandad granddad nan nana nanna grandmother grandfather mother father auntie oma opa"
)

# Closed classes and other words that start no name, whatever their case.
FUNCTION_WORDS = word_set(
    "a an the this that these those some any no every each either neither both all such what "
    "which who whom whose when where why how if whether because although though while whilst "
    "until unless since as than and or but nor so yet for at by in of on to up off out over under "
    "with without within into onto upon from through during before after above below between "
    "among against about across along around behind beneath beside besides beyond down inside "
    "outside near past toward towards via per despite except like i me my mine myself we us our "
    "ours ourselves you your yours yourself yourselves he him his himself she her hers herself it "
    "its itself they them their theirs themselves one ones someone somebody something anyone "
    "anybody anything everyone everybody everything nobody nothing none is am are was were be "
    "been being do does did done have has had having will would shall should may might must can "
    "could ought not never ever always often sometimes then there here now today tomorrow "
    "yesterday tonight once twice again also too very just only even still already soon later "
    "maybe perhaps however therefore meanwhile otherwise instead indeed yes yeah yep no nope ok "
    "okay oh ah well hello hi hey thanks thank please sorry right good dear another other others "
    "more most many much few fewer less least several enough last next first second third please "
    "let lets let's two three four five six seven eight nine ten eleven twelve twenty thirty "
    "forty fifty hundred thousand half am pm hmm hm um uh er mm ha haha wow aha gosh goodness "
    "alas amen cheers bye goodbye hiya heya yay ugh phew yikes eek yup nah woo hooray hurrah aw "
    "aww ooh whoa woah argh meh huh mhm tsk psst eww lol lmao rofl omg btw ps pps nb fyi tbh imo "
    "idk asap rsvp thx pls"
)
_INTERJECTION = re.compile(r"(?i)(?:(ha|he|xo)\1+h?|x+|\w*([^\W\d_])\2\2\w*)")
# Function words that may yet begin a name where a capitalised word follows ("the Second Plover").
NUMBER_WORDS = word_set(
    "first second third fourth fifth one two three four five six seven eight nine ten eleven "
    "twelve twenty hundred thousand"
)

MONTHS = word_set(
    "january february march april may june july august september october november december jan "
    "feb mar apr jun jul aug sep sept oct nov dec"
)
CALENDAR = MONTHS | word_set(
    "monday tuesday wednesday thursday friday saturday sunday mon tue tues wed thu thur thurs fri "
    "sat sun mondays tuesdays wednesdays thursdays fridays saturdays sundays spring summer autumn "
    "winter christmas easter christ god bc ad"
)

# Words that head a name ("Harbour Council", "Bank of the North") and say its kind.
_HEADS = {
    ORGANIZATION: word_set(
        "academy agency airline airlines airways alliance archive archives army assembly "
        "associates association authority bakery bakers band bank bar baths bistro board books "
        "bookshop bookstore boatyard brewery brigade broadcasting brothers builders bureau "
        "cabinet cafe café cannery capital carriers chandlers chandlery charity choir choral "
        "chronicle church cinema circle city club clinic co coalition collective college "
        "commission committee communications community company congress consortium constabulary "
        "cooperative co-operative coop co-op corp corporation council court creamery crew dairy "
        "dairies department distillery dispatch echo ensemble enterprises estates exchange "
        "factory federation ferries finance firm fisheries force foods forge foundation foundry "
        "freight fund galleries gazette glassworks glasshouse government group guardian guild "
        "haulage herald holdings hospice hospital hotel hydro inc industries infirmary initiative "
        "inn institute institution insurance ironworks journal kitchen laboratories laboratory "
        "lab labs laundry league library lifeboat line lines logistics ltd limited llc llp mail "
        "media mercury mill mills ministry mission mutual museum network networks news nursery "
        "observer office observatory orchestra orphanage outfitters pantry parliament partners "
        "partnership party plc police post potteries pottery practice press products project "
        "publishing quarterly quartet quintet radio railway railways records registry residents "
        "restaurant review savings school schools secretariat senate service services shipping "
        "shipyard shop society solicitors sons stores studio studios surgery syndicate systems "
        "tannery tavern team technologies telegraph theatre theater times tribune trio trust "
        "trustees union united university vineyard vineyards weekly workers works workshop yard "
        "rangers rovers athletic wanderers fc hotspur town tearoom tearooms electrics plumbing "
        "roofing glazing locksmiths cycles motors outdoors pharmacy opticians dental gym salon "
        "barbers grill diner pizzeria supermarket bakehouse catering removals cleaners florist "
        "hostel guesthouse"
    )
    - word_set("city town mill capital exchange post journal community"),
    GEO: word_set(
        "abbey alley arcade archipelago avenue bank bay beach beacon bend borough bridge brook "
        "canal canyon cape castle cathedral causeway cave cemetery chapel cliff cliffs close "
        "coast common copse corner cottage county court cove creek crescent crossing dale dam "
        "delta desert district docks dock down downs drive dunes end estate falls farm fell fells "
        "fen fens field fields fjord flats ford forest fork garden gardens gate glacier glade "
        "glen gorge green grove gulf hall harbor harbour haven head headland heath heights hill "
        "hills hollow house island islands isle isles islet junction knoll lagoon lake lakes "
        "landing lane lea ledge lighthouse loch lodge lough manor marina market marsh marshes "
        "mead meadow meadows mere mews moor moors mount mountain mountains mouth narrows ness "
        "oasis ocean orchard park parish pass passage path peak peninsula pier pit place plain "
        "plains plateau plaza point pond pool port priory promenade province quarry quay quays "
        "ranch range rapids reach reef region republic reserve reservoir ridge rise river road "
        "rock rocks row sands sea shire shoal shoals shore sound spit spring springs square "
        "stairs station steps steppe strait straits strand street summit tarn terminal terrace "
        "tor tower town track trail tunnel vale valley view viaduct village villa wall ward "
        "warren water waters waterfall way weir well wells wharf wood woods woodland north south "
        "east west kingdom empire state territory quarter airport city"
    ),
    EVENT: word_set(
        "accident anniversary auction awards ball battle blackout carnival celebration centenary "
        "census ceremony championship championships collapse competition concert conference "
        "contest convention crash crisis cup day derby disaster drought earthquake election "
        "elections epidemic eruption evacuation exhibition expedition expo fair famine feast "
        "festival fete fête fire flood floods funeral gala games gathering hearing inquest "
        "inquiry jamboree jubilee lecture lockout march marathon massacre match meeting mutiny "
        "olympics outbreak pageant parade plague premiere protest race rally rebellion referendum "
        "regatta reunion revolt revolution riot riots rising season show siege storm strike "
        "summit supper symposium tournament tour trial treaty uprising vigil vote war walk "
        "walkout wedding wreck eve week"
    )
    - word_set("summit walk"),
    OBJECT: word_set(
        "act agreement album almanac anthem atlas award bell bill book boat bowl brief bulletin "
        "bus catalogue charter clock code cookbook crown diary dictionary engine episode fiddle "
        "ferry film fresco handbook key lamp law ledger letter letters machine manual map medal "
        "memorial monument mosaic mural novel opera ordinance organ painting pact papers plan "
        "play podcast poem policy prize programme program quilt recipe report requiem scheme "
        "scroll series ship song sonata sonnet statue statute suite symphony tapestry telescope "
        "tractor train trophy van vase violin waltz window shield scholarship bursary grant "
        "fellowship newsletter hour bread cake cheese pie stew soup beer ale gin jam"
    ),
}
HEADS: dict[str, str] = {
    word: kind for kind in (OBJECT, EVENT, GEO, ORGANIZATION) for word in sorted(_HEADS[kind])
}

# Words that say a name's kind where they begin it ("Hotel Astoria", "Lake Vell").
FIRST_HEADS: dict[str, str] = {
    **dict.fromkeys(
        word_set("lake mount cape port fort isle upper lower nether villa camp rue via plaza"), GEO
    ),
    **dict.fromkeys(
        word_set(
            "hotel hostel café cafe casa pension pensione trattoria osteria ristorante pizzeria "
            "taqueria cantina bistro brasserie restaurant restaurante bodega gasthaus auberge "
            "maison chez radio clinic club"
        ),
        ORGANIZATION,
    ),
}

# Common nouns before or after a name that say its kind ("the village of X", "X, a solicitor").
KIN = word_set(
    "mother father mum mom dad parent parents son sons daughter daughters brother brothers sister "
    "sisters aunt uncle cousin cousins niece nephew grandmother grandfather grandma grandpa gran "
    "grandad granddad nan grandson granddaughter grandchild wife husband widow widower partner "
    "fiance fiancé fiancee fiancée girlfriend boyfriend twin stepfather stepmother stepson "
    "stepdaughter sister-in-law brother-in-law mother-in-law father-in-law son-in-law "
    "daughter-in-law godmother godfather great-aunt great-uncle great-grandmother "
    "great-grandfather half-brother half-sister"
)
_ROLES = word_set(
    "friend friends colleague neighbour neighbor boss chairman chairwoman chair treasurer "
    "secretary director chief boy girl man woman lady guy kid pupil student apprentice trainee "
    "graduate guest host presenter founder leader head owner captain pilot cook chef clerk monk "
    "nun judge guard guide coach thief witness heir heiress poet architect mechanic journalist "
    "critic nurse bishop priest mayor deputy lad postman champion star veteran volunteer tenant "
    "surgeon musician pianist dentist therapist accountant consultant assistant attendant "
    "merchant sergeant constable apothecary soprano tenor bass goalkeeper midwife vet smith "
    "blacksmith carpenter"
)
_NOT_ROLES = word_set(
    "water river paper letter weather number matter order summer winter corner flower power tower "
    "computer finger shoulder motor door floor colour color harbor tractor factor honor error "
    "laughter daughter slaughter brother sister mother father october november december september "
    "member master dinner supper layer answer centre center theater timber copper silver chapter "
    "border counter cover feather ladder leather monster murder offer pepper plaster poster "
    "powder register river rubber shelter shower sugar sweater temper thunder timer trailer "
    "transfer trouser whisper wonder freezer boiler kosher mirror minor major terror tremor "
    "sector interior reactor elevator generator refrigerator calculator ladder freighter steamer "
    "trawler cruiser tanker liner cutter schooner hammer ledger never ever other another rather "
    "either whether together over under after better later former proper clever other list mist "
    "twist fist wrist paper wafer amber ember cider fibre beer career deer anchor "
    "parlor labor quarter newspaper container drawer starter locker folder poster printer heater "
    "cooler danger anger hunger finger butter batter litter glitter utter halter "
    "alter border"
)
_ROLE_ENDINGS = ("er", "or", "ist", "man", "woman", "ian", "eer", "eur", "smith", "wright", "ant")
_NOUN_KINDS = {
    GEO: word_set(
        "village town city hamlet island river lake hill mountain valley bay street road suburb "
        "district county region country port harbour coast beach forest quarter neighbourhood "
        "parish province capital settlement"
    ),
    ORGANIZATION: word_set(
        "company firm bank union charity newspaper club band agency council publisher school "
        "college party group team guild society start-up startup supplier alliance brewery "
        "shipyard cooperative manufacturer"
    ),
    OBJECT: word_set(
        "ship ferry boat trawler yacht schooner barge steamer cutter vessel tug book novel poem "
        "song album film play painting mural statue horse mare dog cat bell engine locomotive "
        "programme podcast app software magazine memoir starter loaf recipe"
    ),
    EVENT: word_set("festival storm strike flood battle hurricane fair exhibition race"),
}
NOUN_KINDS: dict[str, str] = {
    word: kind for kind, words in sorted(_NOUN_KINDS.items()) for word in sorted(words)
}

# Lemmas of verbs whose subject is nearly always a person.
PERSON_VERBS = word_set(
    "say tell ask think know believe feel laugh smile cry weep shout whisper nod shrug sigh reply "
    "answer recall remember explain admit argue joke insist add murmur mutter grin frown marry "
    "sing sleep wake walk drink eat love hate hope wish want write read teach learn speak talk "
    "cook knit swear wonder promise apologise apologize complain giggle snore kiss hug retire die "
    "phone ring text email call visit live study"
)

PLACE_PREPOSITIONS = word_set(
    "in at from near towards toward outside across around beyond into through above below between "
    "past throughout within"
)
VESSEL_WORDS = word_set("aboard sail sailed sailing skipper skippered launched launch moored")

# Directions and plain nouns that make a place of what follows "of" ("north of X").
NAME_JOINERS = word_set("of de del della di da van von der den la le du des y al el bin ibn av")


@cache
def is_interjection(word: str) -> bool:
    """Tell whether `word` is laughter, kisses or drawn out ("Haha", "xx", "Nooo")."""
    shouted = word.isupper() and len(word) < 5  # "III", "AAA"
    return _INTERJECTION.fullmatch(word) is not None and not shouted


@cache
def is_role(word: str) -> bool:
    """Tell whether the common noun `word` names what a person does ("engineer", "solicitor")."""
    if word in KIN or word in _ROLES:
        return True
    return len(word) > 4 and word.endswith(_ROLE_ENDINGS) and word not in _NOT_ROLES


@cache
def lemma(word: str) -> str:
    """Return the dictionary form of a lower-case English word."""
    import simplemma

    return str(simplemma.lemmatize(word, lang="en"))


@cache
def is_common(word: str) -> bool:
    """Tell whether `word`, in lower case, is an everyday English word and not only a name."""
    import simplemma

    lower = word.lower()
    if lower in FUNCTION_WORDS or lower in CALENDAR:
        return True
    lexicon = tagger_lexicon()
    if lemma(lower)[:1].isupper():
        return False  # the dictionary writes it with a capital only ("Peter")
    if lower in lexicon:
        return not lexicon[lower].startswith("NNP")
    if lower in HEADS or lower in NOUN_KINDS or lower in HONORIFICS or lower in KIN:
        return True
    # More names of the dictionary's, which the tagger has as proper nouns ("Josiah").
    proper = lexicon.get(lower.capitalize(), "").startswith("NNP")
    return bool(simplemma.is_known(lower, lang="en")) and (not proper or lemma(lower) != lower)


def tagger_lexicon() -> dict[str, str]:
    """Return the lexicon of TextBlob's bundled tagger: word -> Penn Treebank tag."""
    from textblob.en import lexicon

    return lexicon  # type: ignore[no-any-return]


def tag(tokens: list[str]) -> list[str]:
    """Return the Penn Treebank tags of one sentence's tokens."""
    from textblob.en import parser

    tagged: list[list[Any]] = parser.find_tags(tokens)
    return [item[1] for item in tagged]


@lru_cache(maxsize=1)
def _irregular_participles() -> dict[str, str]:
    """Lemma -> past participle for verbs whose participle does not end in -ed ("take": "taken")."""
    found: dict[str, str] = {}
    for word, kind in sorted(tagger_lexicon().items()):
        if kind == "VBN" and word.islower() and word.isalpha() and not word.endswith("ed"):
            base = lemma(word)
            if base != word:
                found.setdefault(base, word)
    return found


def participle(past: str) -> str:
    """Return the past participle of the verb whose simple past is `past` ("wrote": "written")."""
    return past if past.endswith("ed") else _irregular_participles().get(lemma(past), past)
