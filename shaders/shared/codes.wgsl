// Where the codes of a head lie: see formats/kv.md. Values of 8 bits come first, four to a word,
// then values of 4 bits, eight to a word, then the scales of their groups, two to a word.
const FINE = 8u; // values of 8 bits
const FINE_GROUP = 4u; // values that share a scale
const GROUP = 28u; // the same of 4 bits
const FINE_GROUPS = FINE / FINE_GROUP;
const GROUPS = FINE_GROUPS + (HEAD_LEN - FINE) / GROUP;
const CODE_WORDS = FINE / 4u + (HEAD_LEN - FINE) / 8u;
const WORDS = CODE_WORDS + (GROUPS + 1u) / 2u;

fn group_of(i: u32) -> u32 {
    // Where `i` is fine, the second number is not used.
    return select(FINE_GROUPS + (max(i, FINE) - FINE) / GROUP, i / FINE_GROUP, i < FINE);
}
