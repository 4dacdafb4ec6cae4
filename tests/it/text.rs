//! Tokenizers against llama.cpp's vectors, chat templates against jinja2, sampling, streaming.

use gridmill::text::chat::strftime;
use gridmill::text::{ChatTemplate, Message, Sampler, SamplerConfig, TextStream, Tokenizer, Vocab};
use proptest::prelude::*;
use serde_json::Value;

fn data(path: &str) -> Value {
    let path = format!("{}/tests/data/{path}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn strings(value: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    value.as_array().map(|all| all.iter().map(text).collect()).unwrap_or_default()
}

fn vocab(value: &Value) -> Vocab {
    let text = |key: &str| value[key].as_str().map(str::to_owned);
    let id = |key: &str| value[key].as_u64().map(|id| id as u32);
    let numbers = |key: &str| value[key].as_array().cloned().unwrap_or_default();
    Vocab {
        model: text("model"),
        pre: text("pre"),
        tokens: strings(&value["tokens"]),
        types: numbers("types").iter().map(|n| n.as_i64().unwrap() as i32).collect(),
        scores: numbers("scores").iter().map(|n| n.as_f64().unwrap() as f32).collect(),
        merges: strings(&value["merges"]),
        bos: id("bos"),
        eos: id("eos"),
        unk: id("unk"),
        add_bos: value["add_bos"].as_bool(),
        add_space_prefix: value["add_space_prefix"].as_bool(),
        ..Vocab::default()
    }
}

/// Every text of a cut-down vocabulary has the tokens that llama.cpp gives it, and back.
#[test]
fn vocabularies_match_llama_cpp() {
    let names = [
        "gpt-2",
        "llama-bpe",
        "qwen2",
        "qwen35",
        "llama-spm",
        "phi-3",
        "falcon",
        "command-r",
        "starcoder",
        "deepseek-llm",
        "deepseek-coder",
        "gemma-4",
    ];
    for name in names {
        let file = data(&format!("vocab/{name}.json"));
        let tokenizer = Tokenizer::new(vocab(&file["vocab"])).unwrap();
        assert!(tokenizer.warnings().is_empty(), "{name}: {:?}", tokenizer.warnings());
        let texts = strings(&file["texts"]);
        assert!(texts.len() > 40, "{name} has {} texts", texts.len());
        for (text, expected) in texts.iter().zip(file["ids"].as_array().unwrap()) {
            let expected: Vec<u32> =
                expected.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
            let found = tokenizer.encode(text, false).unwrap();
            assert_eq!(found, expected, "{name}: {text:?}");
            let bytes: Vec<u8> =
                found.iter().flat_map(|&id| tokenizer.piece(id, true)).copied().collect();
            let printed = String::from_utf8(bytes).unwrap();
            let is_same = printed == *text || printed.strip_prefix(' ') == Some(text);
            assert!(is_same, "{name}: {text:?} prints as {printed:?}");
        }
    }
}

/// A byte-level vocabulary: `a`, `b`, `ab`, `c` without a merge, and some special tokens.
fn small() -> Vocab {
    let tokens = ["a", "b", "ab", "c", "<|im_end|>", "<user>", "<user>x", "<unk>", "\u{120}"];
    Vocab {
        model: Some("gpt2".to_owned()),
        pre: Some("gpt-2".to_owned()),
        tokens: tokens.map(str::to_owned).to_vec(),
        types: vec![1, 1, 1, 1, 1, 4, 4, 2, 1],
        merges: vec!["a b".to_owned()],
        eos: Some(3),
        ..Vocab::default()
    }
}

#[test]
fn special_tokens_are_cut_out() {
    let tokenizer = Tokenizer::new(small()).unwrap();
    let encode = |text, special| tokenizer.encode(text, special).unwrap();
    assert_eq!(encode("ab<user>ab", false), [2, 5, 2]);
    assert_eq!(encode("a<user>xb", false), [0, 6, 1], "the longest is matched first");
    assert_eq!(encode("a<|im_end|>", true), [0, 4]);
    assert_eq!(encode("a<unk>b", true), [0, 7, 1]);
    assert!(encode("", true).is_empty());
    // Bytes without a token vanish, as in llama.cpp, and keep their neighbours apart.
    assert_eq!(encode("a-b", false), [0, 1]);
    assert!(encode("<|im_end|>", false).is_empty());
    assert_eq!(tokenizer.ends_of_generation().collect::<Vec<_>>(), [3, 4]);
    assert_eq!(tokenizer.piece(4, false), b"", "its text makes it a control token");
    assert_eq!(tokenizer.piece(4, true), b"<|im_end|>");
    assert_eq!(tokenizer.piece(5, false), b"<user>");
    assert_eq!(tokenizer.piece(8, false), b" ");
    assert_eq!(tokenizer.piece(99, true), b"");
}

#[test]
fn spaces_after_a_special_token_may_vanish() {
    let mut vocab = small();
    vocab.name = Some("Phi-3 mini".to_owned());
    let tokenizer = Tokenizer::new(vocab).unwrap();
    assert_eq!(tokenizer.encode("a <user> \n ab", false).unwrap(), [0, 8, 5, 2]);
}

#[test]
fn bad_vocabularies_are_refused() {
    fn check(change: impl FnOnce(&mut Vocab), expected: &str) {
        let mut vocab = small();
        change(&mut vocab);
        let found = Tokenizer::new(vocab).err().map(|error| error.to_string());
        let found = found.unwrap_or_else(|| panic!("no error, expected {expected:?}"));
        assert!(found.contains(expected), "expected {expected:?}, found {found:?}");
    }
    check(|v| v.model = None, "no tokenizer: the metadata has no `tokenizer.ggml.model`");
    check(|v| v.model = Some("none".to_owned()), "no tokenizer");
    check(|v| v.model = Some("bert".to_owned()), "`bert`, expected");
    check(|v| v.pre = Some("never".to_owned()), "`never`, which is no known pre-tokenizer");
    check(|v| v.tokens.clear(), "`tokenizer.ggml.tokens` is missing or empty");
    check(|v| v.types.truncate(2), "token_type` has 2 elements");
    check(|v| v.scores = vec![0.0], "scores` has 1 elements");
    check(|v| v.eos = Some(9), "eos_token_id` is 9, but there are 9 tokens");
    check(|v| v.pad = Some(u32::MAX), "padding_token_id` is 4294967295");
    check(|v| v.merges.clear(), "merges` is missing or empty");
    check(|v| v.merges.push("ab".to_owned()), "merge 1 is `ab`, expected two texts");
    check(|v| v.tokens[0] = "x".repeat(1 << 15), "token 0 has 32768 bytes");
}

#[test]
fn doubtful_vocabularies_warn_or_pass() {
    let mut vocab = small();
    vocab.merges.push("a z".to_owned());
    let tokenizer = Tokenizer::new(vocab).unwrap();
    assert_eq!(
        tokenizer.warnings(),
        ["1 of 2 merges name texts that are no tokens and are left out"]
    );
    let mut vocab = small();
    vocab.pre = None;
    assert!(Tokenizer::new(vocab).unwrap().warnings()[0].contains("no `tokenizer.ggml.pre`"));
    let mut vocab = small();
    vocab.tokens[3] = "ab".to_owned();
    let tokenizer = Tokenizer::new(vocab).unwrap();
    assert_eq!(tokenizer.encode("ab", false).unwrap(), [3], "of two the last one counts");
}

#[test]
fn every_pre_tokenizer_compiles() {
    let mut count = 0;
    for name in gridmill::text::tokenizer::pre_tokenizers() {
        let mut vocab = small();
        vocab.pre = Some(name.to_owned());
        let tokenizer = Tokenizer::new(vocab).unwrap();
        assert_eq!(tokenizer.encode("ab", false).unwrap(), [2], "{name}");
        count += 1;
    }
    assert!(count > 60);
}

#[test]
fn chat_templates_match_jinja2() {
    let file = data("chat/templates.json");
    for template in file["templates"].as_array().unwrap() {
        let name = template["name"].as_str().unwrap();
        let compiled = ChatTemplate::new(template["source"].as_str().unwrap(), "<s>", "</s>");
        let compiled = compiled.unwrap();
        let expected = template["expected"].as_array().unwrap();
        for (row, expected) in file["conversations"].as_array().unwrap().iter().zip(expected) {
            let messages = row[0].as_array().unwrap().iter().map(|turn| {
                Message::new(turn["role"].as_str().unwrap(), turn["content"].as_str().unwrap())
            });
            let messages: Vec<Message> = messages.collect();
            let found = compiled.render(&messages, row[1].as_bool().unwrap());
            match expected["raises"].as_str() {
                Some(message) => {
                    let found = found.unwrap_err().to_string();
                    assert!(found.ends_with(message), "{name}: {found}");
                }
                None => assert_eq!(found.unwrap(), expected.as_str().unwrap(), "{name}"),
            }
        }
    }
}

#[test]
fn bad_templates_are_refused() {
    let render = |source: &str| {
        ChatTemplate::new(source, "", "").and_then(|t| t.render(&[Message::new("user", "x")], true))
    };
    let error = |source: &str| render(source).unwrap_err().to_string();
    let raised = error("{{ raise_exception('no ' ~ messages[0].role) }}");
    assert_eq!(raised, "the chat template refuses the conversation: no user");
    let syntax = error("a\n{% if %}");
    assert!(syntax.contains("line 2") && syntax.contains("syntax error"), "{syntax}");
    let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
    assert!(error(endless).contains("too long"));
    let bomb = "{% set n = namespace(s='x') %}{% for i in range(60) %}\
                {% set n.s = n.s ~ n.s %}{% endfor %}";
    assert!(error(bomb).contains("too long"), "{}", error(bomb));
    assert!(error("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}").contains("recursion"));
    assert_eq!(render("{% generation %}y{% endgeneration %}").unwrap(), "y");
    assert_eq!(
        render("{{ {'b': [1, '<'], 'a': none}|tojson }}").unwrap(),
        r#"{"b": [1, "<"], "a": null}"#
    );
}

#[test]
fn dates_are_formatted() {
    assert_eq!(
        strftime("%d %b %Y, %A %H:%M:%S %%", 1_709_210_096),
        "29 Feb 2024, Thursday 12:34:56 %"
    );
    assert_eq!(strftime("%F %I %p %q", 0), "1970-01-01 12 AM %q");
}

fn chain(change: impl FnOnce(&mut SamplerConfig)) -> Sampler {
    let mut config = SamplerConfig {
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        ..SamplerConfig::default()
    };
    change(&mut config);
    Sampler::new(config).unwrap()
}

/// The chain keeps what the definitions say, for four tokens of probability 0.1 to 0.4.
#[test]
fn sampling_keeps_the_likely() {
    fn check(change: impl FnOnce(&mut SamplerConfig), expected: &[(u32, f32)]) {
        let mut logits = [0.1_f32, 0.2, 0.3, 0.4].map(f32::ln);
        let mut found: Vec<(u32, f32)> =
            chain(change).candidates(&mut logits).iter().map(|c| (c.id, c.probability)).collect();
        found.sort_by_key(|(id, _)| std::cmp::Reverse(*id));
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.0 == expected.0 && (found.1 - expected.1).abs() < 1e-6, "{found:?}");
        }
    }
    let all = [(3, 0.4), (2, 0.3), (1, 0.2), (0, 0.1)];
    check(|_| (), &all);
    check(|c| c.top_k = 1, &[(3, 1.0)]);
    check(|c| c.top_k = 3, &[(3, 4.0 / 9.0), (2, 3.0 / 9.0), (1, 2.0 / 9.0)]);
    check(|c| c.top_k = 9, &all);
    check(|c| c.top_p = 0.0, &[(3, 1.0)]);
    check(|c| c.top_p = 0.7, &[(3, 4.0 / 7.0), (2, 3.0 / 7.0)]);
    check(|c| c.top_p = 0.8, &[(3, 4.0 / 9.0), (2, 3.0 / 9.0), (1, 2.0 / 9.0)]);
    check(|c| c.min_p = 0.24, &all);
    check(|c| c.min_p = 0.26, &[(3, 4.0 / 9.0), (2, 3.0 / 9.0), (1, 2.0 / 9.0)]);
    check(|c| c.min_p = 0.51, &[(3, 4.0 / 7.0), (2, 3.0 / 7.0)]);
    check(|c| c.min_p = 1.05, &[(3, 1.0)]);
    check(|c| c.temperature = 0.0, &[(3, 1.0)]);
    // At temperature one half, probabilities are squared: 1, 4, 9 and 16 of 30.
    check(|c| c.temperature = 0.5, &[(3, 16.0 / 30.0), (2, 0.3), (1, 4.0 / 30.0), (0, 1.0 / 30.0)]);
}

#[test]
fn penalties_change_the_logits_of_recent_tokens() {
    let mut sampler = chain(|c| {
        (c.repeat_penalty, c.presence_penalty, c.frequency_penalty) = (2.0, 0.5, 0.25);
        c.repeat_last_n = 3;
    });
    for token in [2, 0, 1, 1] {
        sampler.accept(token);
    }
    let mut logits = [4.0, -4.0, 4.0];
    sampler.sample(&mut logits);
    assert_eq!(logits, [4.0 / 2.0 - 0.75, -4.0 * 2.0 - 1.0, 4.0], "token 2 is forgotten");
}

#[test]
fn draws_follow_seed_and_probabilities() {
    let draw = |seed| {
        let mut sampler = chain(|c| c.seed = seed);
        (0..4000)
            .map(|_| sampler.sample(&mut [0.1_f32, 0.2, 0.3, 0.4].map(f32::ln)))
            .collect::<Vec<_>>()
    };
    assert_eq!(draw(7), draw(7));
    assert_ne!(draw(7), draw(8));
    for (id, share) in [(0, 0.1), (1, 0.2), (2, 0.3), (3, 0.4)] {
        let found = draw(7).iter().filter(|&&drawn| drawn == id).count() as f64 / 4000.0;
        // Four standard deviations of 4000 draws.
        assert!((found - share).abs() < 4.0 * (share * (1.0 - share) / 4000.0_f64).sqrt());
    }
}

#[test]
fn odd_logits_do_no_harm() {
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    for temperature in [0.0, 0.8] {
        let mut sampler =
            Sampler::new(SamplerConfig { temperature, ..Default::default() }).unwrap();
        assert_eq!(sampler.sample(&mut [nan, -inf, 1.0]), 2);
        assert_eq!(sampler.sample(&mut [nan, inf, 1.0]), 1);
        assert_eq!(sampler.sample(&mut [nan, -inf]), 0);
    }
    let mut greedy =
        Sampler::new(SamplerConfig { temperature: 0.0, ..Default::default() }).unwrap();
    assert_eq!(greedy.sample(&mut [1.0, 3.0, 3.0]), 1, "the first maximum");
    let bad = SamplerConfig { top_p: nan, ..SamplerConfig::default() };
    assert!(Sampler::new(bad).unwrap_err().to_string().contains("top-p is NaN"));
}

fn stream(stops: &[&str], pieces: &[&[u8]]) -> String {
    let stops = stops.iter().map(|stop| (*stop).to_owned()).collect();
    let mut stream = TextStream::new(stops).unwrap();
    let mut out: String = pieces.iter().map(|piece| stream.push(piece)).collect();
    out.push_str(&stream.finish());
    out
}

#[test]
fn streams_hold_back_what_is_not_sure() {
    let mut text = TextStream::new(vec!["STOP".to_owned()]).unwrap();
    assert_eq!(text.push(b"a\xf0\x9f"), "a");
    assert_eq!(text.push(b"\x9a\x80S"), "\u{1f680}");
    assert_eq!(text.push(b"TO"), "");
    assert_eq!(text.push(b"x ST"), "STOx ");
    assert_eq!(text.stopped(), None);
    assert_eq!(text.push(b"OPy"), "");
    assert_eq!(text.stopped(), Some("STOP"));
    assert_eq!(text.push(b"z") + &text.finish(), "");
    assert_eq!(stream(&[], &[b"a\xff", b"b\xf0\x9f"]), "a\u{fffd}b\u{fffd}");
    assert!(TextStream::new(vec![String::new()]).is_err());
}

proptest! {
    #[test]
    fn streams_do_not_depend_on_the_cuts(
        bytes in proptest::collection::vec(prop_oneof![Just(b'a'), Just(b'b'), any::<u8>()], 0..40),
        cuts in proptest::collection::vec(0_usize..40, 0..8),
    ) {
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&[u8]> = cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]).collect();
        prop_assert_eq!(stream(&[], &pieces), String::from_utf8_lossy(&bytes));
        let stops = ["aba", "b\u{fffd}", "bb"];
        prop_assert_eq!(stream(&stops, &pieces), stream(&stops, &[&bytes]));
    }
}
