//! Special tokens: which ones end generation, and how they are cut out of a text.
//!
//! Files say little about their special tokens, so llama.cpp knows many by their text. The tables
//! below are its.

use std::collections::BTreeSet;

use aho_corasick::AhoCorasick;

use super::index::TokenIndex;
use super::vocab::{TokenKind, Vocab};
use crate::bail;
use crate::error::{Error, Result};
use crate::limits::SPECIAL_TOKENS_BYTES_MAX;

/// Tokens that end generation, whatever the file says of them.
const END_OF_GENERATION: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<\u{ff5c}end\u{2581}of\u{2581}sentence\u{ff5c}>",
    "[e~[",
];

/// Tokens for filling in the middle, by text, if the file does not name them.
const FIM_PREFIX: &[&str] = &[
    "<|fim_prefix|>",
    "<fim-prefix>",
    "<fim_prefix>",
    "<\u{ff5c}fim\u{2581}begin\u{ff5c}>",
    "<PRE>",
    "\u{2581}<PRE>",
    "<|code_prefix|>",
    "<|prefix|>",
];
const FIM_SUFFIX: &[&str] = &[
    "<|fim_suffix|>",
    "<fim-suffix>",
    "<fim_suffix>",
    "<\u{ff5c}fim\u{2581}hole\u{ff5c}>",
    "<SUF>",
    "\u{2581}<SUF>",
    "<|code_suffix|>",
    "<|suffix|>",
];
const FIM_MIDDLE: &[&str] = &[
    "<|fim_middle|>",
    "<fim-middle>",
    "<fim_middle>",
    "<\u{ff5c}fim\u{2581}end\u{ff5c}>",
    "<MID>",
    "\u{2581}<MID>",
    "<|code_middle|>",
    "<|middle|>",
];
const FIM_PAD: &[&str] = &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"];
const FIM_REPOSITORY: &[&str] =
    &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"];
const FIM_FILE: &[&str] = &["<|file_sep|>"];

/// Tokens of one family of models that are printed although they steer.
const ALWAYS_PRINTED: &[&str] = &["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"];

/// Corrects the kinds of the tokens known by their text; returns those that end generation.
pub(super) fn classify(
    vocab: &Vocab,
    index: &TokenIndex,
    kinds: &mut [TokenKind],
) -> BTreeSet<u32> {
    // The file's id, or else the first of the texts that is a token; that one is a control token.
    let mut known = |given: Option<u32>, texts: &[&str]| {
        given.or_else(|| {
            let id = texts.iter().find_map(|text| index.get(text))?;
            kinds[id as usize] = TokenKind::Control;
            Some(id)
        })
    };
    known(vocab.fim_pre, FIM_PREFIX);
    known(vocab.fim_suf, FIM_SUFFIX);
    known(vocab.fim_mid, FIM_MIDDLE);
    let mut ends: BTreeSet<u32> = [
        known(vocab.fim_pad, FIM_PAD),
        known(vocab.fim_rep, FIM_REPOSITORY),
        known(vocab.fim_sep, FIM_FILE),
    ]
    .into_iter()
    .flatten()
    .collect();
    for id in END_OF_GENERATION.iter().filter_map(|text| index.get(text)) {
        kinds[id as usize] = TokenKind::Control;
        ends.insert(id);
    }
    for id in ALWAYS_PRINTED.iter().filter_map(|text| index.get(text)) {
        kinds[id as usize] = TokenKind::UserDefined;
    }
    ends.extend([vocab.eos, vocab.eot, vocab.eom].into_iter().flatten());
    let mut ordinary = |text: &str, kind: TokenKind| {
        if let Some(id) = index.get(text)
            && ends.remove(&id)
        {
            kinds[id as usize] = kind;
        }
    };
    let has = |texts: &[&str]| texts.iter().all(|text| index.get(text).is_some());
    // Where the model has its own tokens for the end of an answer, `<|end|>` only ends a part.
    let has_call = has(&["<|call|>"]) || has(&["<|calls|>"]);
    if has_call && (has(&["<|flush|>"]) || has(&["<|return|>"])) {
        ordinary("<|end|>", TokenKind::UserDefined);
    }
    // Here `</s>` is the HTML tag that strikes through.
    let is_plamo_end =
        index.get("<|plamo:eos|>").is_some_and(|id| [vocab.eos, vocab.eot].contains(&Some(id)));
    if has(&["<|tool_response>"]) || is_plamo_end {
        ordinary("</s>", TokenKind::Normal);
    }
    ends
}

/// A piece of a text: still to be tokenized, or a special token already.
#[derive(Debug, PartialEq)]
pub(super) enum Fragment<'t> {
    Text(&'t str),
    Token(u32),
}

/// The tokens that are matched in a text before all else.
pub(super) struct SpecialTokens {
    /// Longest first: a longer one is cut out before a shorter one, wherever they stand.
    tokens: Vec<Special>,
    /// Finds all of them; its patterns are numbered as `tokens`.
    finder: Option<AhoCorasick>,
}

struct Special {
    id: u32,
    text: String,
    /// Matched only if the caller asks for it.
    on_request: bool,
    /// Swallows the spaces to its left.
    strip_left: bool,
    /// Swallows the spaces to its right.
    strip_right: bool,
}

impl SpecialTokens {
    /// The special tokens of a vocabulary.
    ///
    /// # Errors
    ///
    /// When their texts are too long for an automaton.
    pub(super) fn new(
        vocab: &Vocab,
        tokens: &[String],
        kinds: &[TokenKind],
    ) -> Result<SpecialTokens> {
        let mut tokens: Vec<Special> = (0..).zip(tokens).zip(kinds).filter_map(special).collect();
        let bytes: usize = tokens.iter().map(|token| token.text.len()).sum();
        if bytes > SPECIAL_TOKENS_BYTES_MAX {
            bail!(
                "the special tokens have {bytes} bytes together, at most \
                 {SPECIAL_TOKENS_BYTES_MAX} expected"
            );
        }
        tokens.sort_by_key(|token| std::cmp::Reverse(token.text.len()));
        set_strips(vocab, &mut tokens);
        let finder = if tokens.is_empty() {
            None
        } else {
            let texts = tokens.iter().map(|token| &token.text);
            Some(AhoCorasick::new(texts).map_err(|error| Error::new(error.to_string()))?)
        };
        Ok(SpecialTokens { tokens, finder })
    }

    /// Cuts the special tokens out of a text; control tokens only if `parse_special`.
    ///
    /// The simple idea: for each special token, the longest first, cut every fragment of text at
    /// its occurrences. Since there are thousands of them, a first run over the text finds those
    /// that occur at all.
    pub(super) fn partition<'t>(&self, text: &'t str, parse_special: bool) -> Vec<Fragment<'t>> {
        let mut fragments = vec![Fragment::Text(text)];
        let Some(finder) = &self.finder else { return fragments };
        let mut occurs = vec![false; self.tokens.len()];
        for found in finder.find_overlapping_iter(text) {
            occurs[found.pattern().as_usize()] = true;
        }
        for (special, occurs) in self.tokens.iter().zip(occurs) {
            if !occurs || (special.on_request && !parse_special) {
                continue;
            }
            let mut cut = Vec::with_capacity(fragments.len() + 2);
            for fragment in fragments {
                match fragment {
                    Fragment::Text(text) => special.cut(text, &mut cut),
                    token => cut.push(token),
                }
            }
            fragments = cut;
        }
        fragments
    }
}

impl Special {
    fn cut<'t>(&self, mut text: &'t str, out: &mut Vec<Fragment<'t>>) {
        while let Some((before, after)) = text.split_once(&self.text) {
            let before = if self.strip_left { before.trim_end_matches(is_space) } else { before };
            if !before.is_empty() {
                out.push(Fragment::Text(before));
            }
            out.push(Fragment::Token(self.id));
            text = if self.strip_right { after.trim_start_matches(is_space) } else { after };
        }
        if !text.is_empty() {
            out.push(Fragment::Text(text));
        }
    }
}

fn special(((id, text), kind): ((u32, &String), &TokenKind)) -> Option<Special> {
    let on_request = match kind {
        TokenKind::Control | TokenKind::Unknown => true,
        TokenKind::UserDefined => false,
        _ => return None,
    };
    // An empty text is a hole in the vocabulary; it would match everywhere.
    let text = text.clone();
    (!text.is_empty()).then_some(Special {
        id,
        text,
        on_request,
        strip_left: false,
        strip_right: false,
    })
}

/// Which tokens swallow spaces is not in the file; llama.cpp knows it by these names.
fn set_strips(vocab: &Vocab, tokens: &mut [Special]) {
    let name = vocab.name.as_deref().unwrap_or_default().to_ascii_lowercase();
    let pre = vocab.pre.as_deref().unwrap_or_default();
    let is_jina =
        ["jina-v2-de", "jina-v2-es", "jina-v2-code"].iter().any(|jina| pre.contains(jina));
    for token in tokens {
        let text = token.text.as_str();
        if is_jina {
            token.strip_left = text == "<mask>";
        } else if name.contains("phi-3") || name.contains("phi3") {
            token.strip_right = !["<unk>", "<s>", "<|endoftext|>"].contains(&text);
        } else if name.contains("modern-bert") {
            token.strip_left = text == "[MASK]";
        }
    }
}

/// C's `isspace` in the C locale.
fn is_space(character: char) -> bool {
    matches!(character, ' ' | '\t'..='\r')
}
