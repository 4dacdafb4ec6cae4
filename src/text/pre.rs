//! Pre-tokenizers: how a text is cut into pieces that no merge may cross.
//!
//! A pre-tokenizer is a list of passes; each cuts the pieces of the one before. A pass is a
//! pattern: its matches become pieces, and so does what lies between them. The patterns are
//! those that llama.cpp runs, which are not always those of the model's authors: it takes every
//! letter outside ASCII for both upper and lower case, for example.
//!
//! Written down elsewhere, most patterns end in `\s+(?!\S)|\s+`: of several spaces before a word,
//! the last one goes to the word. Look-ahead needs backtracking, which takes time and stack
//! without bound on hostile text. So here the pattern ends in `\s+`, and [`Pass::Words`] gives the
//! last space back.

use regex::Regex;

use crate::bail;
use crate::error::{Error, Result};

/// A pre-tokenizer and what llama.cpp ties to its name.
pub(super) struct PreTokenizer {
    passes: Vec<(Regex, Spaces)>,
    /// A piece that is a token as a whole is that token, whatever the merges say.
    pub(super) ignore_merges: bool,
    /// Whether begin-of-text is put in front when the file does not say.
    pub(super) add_bos: bool,
    /// Whether the vocabulary has a begin-of-text token when the file names none.
    pub(super) default_bos: bool,
    /// Pieces are UTF-8 with spaces as U+2581, as SentencePiece has it, not encoded bytes.
    pub(super) escape_spaces: bool,
}

enum Pass {
    /// Cut at the matches.
    Find(&'static str),
    /// The same, and a match of several spaces leaves the last one to what follows.
    Words(&'static str),
    /// The same, but spaces that end a line are left together.
    Lines(&'static str),
}

/// What becomes of a match of several spaces before a word.
#[derive(Clone, Copy)]
enum Spaces {
    Matched,
    LeaveLast,
    LeaveLastInLine,
}

struct Rule {
    names: &'static [&'static str],
    passes: &'static [Pass],
    flags: Flags,
}

#[derive(Clone, Copy)]
struct Flags {
    ignore_merges: bool,
    add_bos: bool,
    default_bos: bool,
    escape_spaces: bool,
}

const PLAIN: Flags =
    Flags { ignore_merges: false, add_bos: false, default_bos: true, escape_spaces: false };
const WHOLE: Flags = Flags { ignore_merges: true, ..PLAIN };
const WHOLE_BOS: Flags = Flags { add_bos: true, ..WHOLE };

/// English contractions in either case.
macro_rules! contraction {
    () => {
        "'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]"
    };
}

/// Contractions, then a word with the character before it, then digits.
macro_rules! words {
    ($letters:literal, $digits:literal, $other:literal) => {
        concat!(
            contraction!(),
            r"|[^\r\n\p{L}\p{N}]?",
            $letters,
            "+|",
            $digits,
            "| ?[^",
            $other,
            r"]+[\r\n]*|\s*[\r\n]+|\s+"
        )
    };
}

/// Words that begin a new piece at a capital, with a suffix, then digits.
macro_rules! cased_words {
    ($upper:literal, $lower:literal, $suffix:expr, $digits:literal) => {
        concat!(
            r"[^\r\n\p{L}\p{N}]?",
            $upper,
            "*",
            $lower,
            "+",
            $suffix,
            r"|[^\r\n\p{L}\p{N}]?",
            $upper,
            "+",
            $lower,
            "*",
            $suffix,
            "|",
            $digits,
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+"
        )
    };
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+";
const LLAMA3: &str = words!(r"\p{L}", r"\p{N}{1,3}", r"\s\p{L}\p{N}");
const QWEN2: &str = words!(r"\p{L}", r"\p{N}", r"\s\p{L}\p{N}");
const QWEN35: &str = words!(r"[\p{L}\p{M}]", r"\p{N}", r"\s\p{L}\p{M}\p{N}");
const MINICPM5: &str = words!(r"\p{L}", r"\p{N}+", r"\s\p{L}\p{N}");
const UFAKZEKA: &str = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+";
const SEED_CODER: &str = concat!(
    contraction!(),
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+"
);
const BAILING: &str = concat!(
    "'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])",
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+"
);
const EXAONE_MOE: &str = concat!(
    contraction!(),
    r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+"
);
const TEKKEN: &str = cased_words!(r"[\p{L}&&[^a-z]]", r"[\p{L}&&[^A-Z]]", "", r"\p{N}");
const GPT4O: &str = cased_words!(
    r"[\p{L}&&[^a-z]]",
    r"[\p{L}&&[^A-Z]]",
    concat!("(?:", contraction!(), ")?"),
    r"\p{N}{1,3}"
);
const YOUTU: &str =
    cased_words!(r"[\p{L}\p{M}]", r"[\p{L}\p{M}]", concat!("(?:", contraction!(), ")?"), r"\p{N}");
const YOUTU_SCRIPTS: &str = concat!(
    "[\u{ac00}-\u{d7a3}\u{3131}-\u{318e}]+",
    "|[\u{ff01}\u{2026}\u{201c}\u{201d}\u{2018}\u{2019}\u{2014}\u{ff1a}\u{ff1b}\u{ff0c}",
    "\u{3001}-\u{303f}\u{fe30}-\u{fe4f}]+",
    "|[\u{3105}-\u{312f}]+|[\u{4e00}-\u{9fa5}\u{3040}-\u{309f}\u{30a0}-\u{30ff}]+"
);
const DEEPSEEK3: &str = concat!(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"##,
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+"
);
/// Chinese characters as DeepSeek's first models bound them, and Hangul.
const DEEPSEEK_HAN: &str = "[\u{4e00}-\u{9fa5}\u{800}-\u{4e00}\u{ac00}-\u{d7ff}]+";
/// Letters that have case, in the Unicode of DeepSeek's first models.
const DEEPSEEK_CASED: &str = "\\s?[A-Za-z\
     \u{b5}\u{c0}-\u{d6}\u{d8}-\u{f6}\u{f8}-\u{1ba}\u{1bc}-\u{1bf}\u{1c4}-\u{293}\
     \u{295}-\u{2af}\u{370}-\u{373}\u{376}\u{377}\u{37b}-\u{37d}\u{37f}\u{386}\
     \u{388}-\u{38a}\u{38c}\u{38e}-\u{3a1}\u{3a3}-\u{3f5}\u{3f7}-\u{481}\u{48a}-\u{52f}\
     \u{531}-\u{556}\u{10a0}-\u{10c5}\u{13a0}-\u{13f5}\u{13f8}-\u{13fd}\u{1c90}-\u{1cba}\
     \u{1cbd}-\u{1cbf}\u{1d00}-\u{1d2b}\u{1d6b}-\u{1d77}\u{1d79}-\u{1d9a}\
     \u{1e00}-\u{1f15}\u{1f18}-\u{1f1d}\u{1f20}-\u{1f45}\u{1f48}-\u{1f4d}\
     \u{1f50}-\u{1f57}\u{1f59}\u{1f5b}\u{1f5d}\u{1f5f}-\u{1f7d}\u{1f80}-\u{1fb4}\
     \u{1fb6}-\u{1fbc}\u{1fbe}\u{1fc2}-\u{1fc4}\u{1fc6}-\u{1fcc}\u{1fd0}-\u{1fd3}\
     \u{1fd6}-\u{1fdb}\u{1fe0}-\u{1fec}\u{1ff2}-\u{1ff4}\u{1ff6}-\u{1ffc}\u{2102}\u{2107}\
     \u{210a}-\u{2113}\u{2115}\u{2119}-\u{211d}\u{2124}\u{2126}\u{2128}\u{212a}-\u{212d}\
     \u{212f}-\u{2134}\u{2139}\u{213c}-\u{213f}\u{2145}-\u{2149}\u{214e}\u{2183}\u{2184}\
     \u{2c00}-\u{2c7b}\u{2c7e}-\u{2ce4}\u{2ceb}-\u{2cee}\u{2cf2}\u{2cf3}\u{a640}-\u{a66d}\
     \u{a680}-\u{a69b}\u{a722}-\u{a76f}\u{a771}-\u{a787}\u{a78b}-\u{a78e}\
     \u{ab70}-\u{abbf}\u{fb00}-\u{fb06}\u{fb13}-\u{fb17}\u{ff21}-\u{ff3a}\
     \u{ff41}-\u{ff5a}\u{10400}-\u{1044f}\u{104b0}-\u{104d3}\u{104d8}-\u{104fb}\
     \u{10c80}-\u{10cb2}\u{10cc0}-\u{10cf2}\u{118a0}-\u{118df}\u{1e900}-\u{1e943}]+";
const NO_PUNCTUATION: &str =
    " ?[^(\\s|.,!?\u{2026}\u{3002}\u{ff0c}\u{3001}\u{964}\u{6d4}\u{60c})]+";

use Pass::{Find, Lines, Words};

const RULES: &[Rule] = &[
    Rule {
        names: &[
            "gpt-2",
            "phi-2",
            "jina-es",
            "jina-de",
            "gigachat",
            "jina-v2-es",
            "jina-v2-de",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "jina-v1-en",
            "jina-v2-code",
            "roberta-bpe",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
            "exaone4",
        ],
        passes: &[Words(GPT2)],
        flags: PLAIN,
    },
    Rule {
        names: &[
            "smollm",
            "starcoder",
            "refact",
            "command-r",
            "codeshell",
            "exaone",
            "minerva-7b",
            "mellum2",
        ],
        passes: &[Find(r"\p{N}"), Words(GPT2)],
        flags: PLAIN,
    },
    Rule {
        names: &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ],
        passes: &[Lines(LLAMA3)],
        flags: WHOLE_BOS,
    },
    Rule { names: &["dbrx", "smaug-bpe"], passes: &[Lines(LLAMA3)], flags: PLAIN },
    Rule {
        names: &["chatglm-bpe"],
        passes: &[Lines(LLAMA3)],
        flags: Flags { default_bos: false, ..PLAIN },
    },
    Rule {
        names: &["glm4", "glm5"],
        passes: &[Lines(LLAMA3)],
        flags: Flags { default_bos: false, ..WHOLE },
    },
    Rule {
        names: &[
            "qwen2",
            "deepseek-r1-qwen",
            "kormo",
            "f2llmv2",
            "megrez",
            "stablelm2",
            "hunyuan",
            "solar-open",
            "grok-2",
        ],
        passes: &[Lines(QWEN2)],
        flags: PLAIN,
    },
    Rule { names: &["qwen35"], passes: &[Lines(QWEN35)], flags: PLAIN },
    Rule { names: &["minicpm5"], passes: &[Find(r"\p{N}{1,3}"), Lines(MINICPM5)], flags: WHOLE },
    Rule { names: &["laguna"], passes: &[Find(r"\n+"), Lines(QWEN2)], flags: PLAIN },
    Rule { names: &["ufakzeka"], passes: &[Lines(UFAKZEKA)], flags: PLAIN },
    Rule { names: &["seed-coder"], passes: &[Lines(SEED_CODER)], flags: PLAIN },
    Rule {
        names: &["bailingmoe", "bailingmoe2", "llada-moe"],
        passes: &[Lines(BAILING)],
        flags: PLAIN,
    },
    Rule { names: &["exaone-moe"], passes: &[Lines(EXAONE_MOE)], flags: PLAIN },
    Rule { names: &["tekken"], passes: &[Lines(TEKKEN)], flags: WHOLE_BOS },
    Rule {
        names: &["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"],
        passes: &[Lines(GPT4O)],
        flags: PLAIN,
    },
    Rule { names: &["youtu"], passes: &[Find(YOUTU_SCRIPTS), Lines(YOUTU)], flags: WHOLE },
    Rule {
        names: &["deepseek-v3", "hunyuan-dense", "hy_v4", "joyai-llm"],
        passes: &[
            Find(r"\p{N}{1,3}"),
            Find("[\u{4e00}-\u{9fa5}\u{3040}-\u{309f}\u{30a0}-\u{30ff}]+"),
            Lines(DEEPSEEK3),
        ],
        flags: PLAIN,
    },
    Rule {
        names: &["deepseek-llm"],
        passes: &[
            Find(r"[\r\n]"),
            Find(DEEPSEEK_CASED),
            Find(
                "\\s?[!-/:-~\u{ff01}-\u{ff0f}\u{ff1a}-\u{ff5e}\u{2018}-\u{201f}\u{3000}-\u{3002}]+",
            ),
            Find(r"\s+$"),
            Find(DEEPSEEK_HAN),
            Find(r"\p{N}+"),
        ],
        flags: PLAIN,
    },
    Rule {
        names: &["deepseek-coder"],
        passes: &[
            Find(r"[\r\n]"),
            Find(r"\s?\p{L}+"),
            Find(r"\s?\p{P}+"),
            Find(DEEPSEEK_HAN),
            Find(r"\p{N}"),
        ],
        flags: PLAIN,
    },
    Rule {
        names: &["falcon"],
        passes: &[Find(r"[\p{P}$+<=>^~|`]+"), Words(GPT2), Find("[0-9][0-9][0-9]")],
        flags: PLAIN,
    },
    Rule {
        names: &["default"],
        passes: &[Find(r"[\p{P}$+<=>^~|]+"), Words(GPT2), Find(r"\p{N}+"), Find("[0-9][0-9][0-9]")],
        flags: PLAIN,
    },
    Rule {
        names: &["poro-chat", "bloom", "gpt3-finnish"],
        passes: &[Find(NO_PUNCTUATION)],
        flags: PLAIN,
    },
    Rule { names: &["viking"], passes: &[Find(NO_PUNCTUATION), Find(r"\p{N}")], flags: PLAIN },
    Rule {
        names: &["gemma4"],
        passes: &[Find(r"\n+")],
        flags: Flags { default_bos: false, add_bos: true, escape_spaces: true, ..PLAIN },
    },
];

impl PreTokenizer {
    /// The pre-tokenizer that a file names in `tokenizer.ggml.pre`.
    ///
    /// # Errors
    ///
    /// Names an unknown pre-tokenizer.
    pub(super) fn by_name(name: &str) -> Result<PreTokenizer> {
        let Some(rule) = RULES.iter().find(|rule| rule.names.contains(&name)) else {
            bail!("`tokenizer.ggml.pre` is `{name}`, which is no known pre-tokenizer");
        };
        let compile = |pass: &Pass| {
            let (pattern, spaces) = match pass {
                Find(pattern) => (pattern, Spaces::Matched),
                Words(pattern) => (pattern, Spaces::LeaveLast),
                Lines(pattern) => (pattern, Spaces::LeaveLastInLine),
            };
            let regex = Regex::new(pattern).map_err(|error| Error::new(error.to_string()))?;
            Ok((regex, spaces))
        };
        Ok(PreTokenizer {
            passes: rule.passes.iter().map(compile).collect::<Result<_>>()?,
            ignore_merges: rule.flags.ignore_merges,
            add_bos: rule.flags.add_bos,
            default_bos: rule.flags.default_bos,
            escape_spaces: rule.flags.escape_spaces,
        })
    }

    /// Calls `piece` with each piece of `text`, in order; joined they are the text.
    pub(super) fn split<'t>(&self, text: &'t str, piece: &mut impl FnMut(&'t str)) {
        split_passes(&self.passes, text, piece);
    }
}

/// Every name that [`PreTokenizer::by_name`] knows.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    RULES.iter().flat_map(|rule| rule.names.iter().copied())
}

pub(super) fn first_names() -> impl Iterator<Item = &'static str> {
    RULES.iter().map(|rule| rule.names[0])
}

fn split_passes<'t>(passes: &[(Regex, Spaces)], text: &'t str, piece: &mut dyn FnMut(&'t str)) {
    let Some(((regex, spaces), rest)) = passes.split_first() else {
        if !text.is_empty() {
            piece(text);
        }
        return;
    };
    let mut done = 0;
    while let Some(found) = regex.find_at(text, done) {
        // No pattern matches the empty text; if one ever did, this loop would not end.
        assert!(!found.is_empty(), "pre-tokenizer patterns match at least one character");
        let end = spaces.end(text, found.range());
        if found.start() > done {
            split_passes(rest, &text[done..found.start()], piece);
        }
        split_passes(rest, &text[found.start()..end], piece);
        done = end;
    }
    if done < text.len() {
        split_passes(rest, &text[done..], piece);
    }
}

impl Spaces {
    /// The end of a match, without its last character if that is left to a word.
    fn end(self, text: &str, found: std::ops::Range<usize>) -> usize {
        let matched = &text[found.clone()];
        let Some(last) = matched.chars().next_back() else { return found.end };
        let may_leave = match self {
            Spaces::Matched => false,
            Spaces::LeaveLast => true,
            Spaces::LeaveLastInLine => !matches!(last, '\r' | '\n'),
        };
        let is_run = found.end < text.len()
            && matched.len() > last.len_utf8()
            && matched.chars().all(char::is_whitespace);
        if may_leave && is_run { found.end - last.len_utf8() } else { found.end }
    }
}
