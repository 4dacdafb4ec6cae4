//! `gridmill chat`: a conversation in the terminal.

use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use rustyline::error::ReadlineError;
use serde_json::json;

use super::flags::{RunFlags, SamplerFlags};
use super::print;
use crate::file::Source;
use crate::run::Session;
use crate::run::generate::{Ending, Outcome, Request, generate};
use crate::run::tokenizer::{chat_template, tokenizer};
use crate::text::{ChatTemplate, Message, Sampler, Tokenizer};

const HELP: &str = "/help        this text
/reset       forget the conversation
/save FILE   write the conversation as JSON
/stats       tokens and speed so far
/exit        leave, as Ctrl-D does
Ctrl-C stops an answer, arrow keys bring back what you typed";

/// Set by Ctrl-C while an answer is running.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

#[derive(clap::Args)]
pub(super) struct Args {
    /// A GGUF file, or the first shard of one
    model: PathBuf,
    #[command(flatten)]
    chat: ChatFlags,
}

#[derive(clap::Args)]
pub(super) struct ChatFlags {
    /// What the model is told before the conversation
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Tokens of an answer at most
    #[arg(short, long, value_name = "N")]
    n: Option<usize>,
    #[command(flatten)]
    run: RunFlags,
    #[command(flatten)]
    sampler: SamplerFlags,
}

pub(super) fn chat(args: Args) -> anyhow::Result<()> {
    let source = Source::open(&args.model)?;
    converse(&source, &args.chat)
}

/// Talks until the user leaves.
pub(super) fn converse(source: &Source, flags: &ChatFlags) -> anyhow::Result<()> {
    let mut chat = Chat::open(source, flags)?;
    ctrlc::set_handler(|| INTERRUPTED.store(true, Ordering::Relaxed))?;
    if std::io::stdin().is_terminal() {
        print::note("/help lists what else you can do");
    }
    let mut editor = rustyline::DefaultEditor::new()?;
    loop {
        let typed = match editor.readline("> ") {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => {
                print::note("/exit or Ctrl-D leaves");
                continue;
            }
            Err(ReadlineError::Eof) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let typed = typed.trim();
        if typed.is_empty() {
            continue;
        }
        let _ = editor.add_history_entry(typed);
        match typed.split_once(' ').unwrap_or((typed, "")) {
            ("/exit" | "/quit", _) => return Ok(()),
            ("/help", _) => print::note(HELP),
            ("/reset", _) => chat.reset(),
            ("/stats", _) => print::note(chat.stats()),
            ("/save", path) => match chat.save(path.trim()) {
                Ok(()) => print::note(format_args!("saved to {}", path.trim())),
                Err(error) => print::note(format_args!("error: {error:#}")),
            },
            (command, _) if command.starts_with('/') => {
                print::note(format_args!("no command `{command}`; /help lists them"));
            }
            _ => match chat.ask(typed) {
                Err(error) if !print::is_broken_pipe(&error) => {
                    print::note(format_args!("error: {error:#}"));
                }
                result => result?,
            },
        }
    }
}

struct Chat {
    tokenizer: Tokenizer,
    template: ChatTemplate,
    session: Session,
    sampler: Sampler,
    system: Option<String>,
    messages: Vec<Message>,
    /// What the cache holds.
    cached: Vec<u32>,
    tokens_max: Option<usize>,
    last: Option<Outcome>,
}

impl Chat {
    fn open(source: &Source, flags: &ChatFlags) -> anyhow::Result<Chat> {
        let tokenizer = tokenizer(source)?;
        super::warn(&tokenizer);
        let mut chat = Chat {
            template: chat_template(source, &tokenizer)?,
            tokenizer,
            session: flags.run.open(source)?,
            sampler: Sampler::new(flags.sampler.config())?,
            system: flags.system.clone(),
            messages: Vec::new(),
            cached: Vec::new(),
            tokens_max: flags.n,
            last: None,
        };
        chat.reset();
        Ok(chat)
    }

    fn reset(&mut self) {
        let system = self.system.iter().map(|text| Message::new("system", text));
        self.messages = system.collect();
        self.last = None;
    }

    /// One turn: what the cache already holds of the conversation is not read again.
    fn ask(&mut self, text: &str) -> anyhow::Result<()> {
        self.messages.push(Message::new("user", text));
        let prompt = self.prompt()?;
        let pairs = prompt.iter().zip(&self.cached);
        let same = pairs.take_while(|(a, b)| a == b).count().min(prompt.len() - 1);
        self.session.truncate(0, same);
        self.cached.clone_from(&prompt);

        INTERRUPTED.store(false, Ordering::Relaxed);
        let request = Request { tokens_max: self.tokens_max, ..Request::default() };
        let mut answer = String::new();
        let mut failure = None;
        let mut show = |text: &str| {
            answer += text;
            failure = failure.take().or(print::data(text).err());
            let stop = failure.is_some() || INTERRUPTED.load(Ordering::Relaxed);
            if stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let outcome = generate(
            &mut self.session,
            &self.tokenizer,
            &mut self.sampler,
            &prompt[same..],
            &request,
            &mut show,
        )?;
        if let Some(error) = failure {
            return Err(error);
        }
        print::line("")?;
        self.cached.extend(&outcome.tokens);
        self.cached.truncate(self.session.len(0));
        self.messages.push(Message::new("assistant", answer.trim()));
        print::note(summary(&outcome));
        self.last = Some(outcome);
        Ok(())
    }

    /// The conversation as tokens; the oldest turns are forgotten where it does not fit.
    fn prompt(&mut self) -> anyhow::Result<Vec<u32>> {
        let mut forgotten = 0;
        loop {
            let text = self.template.render(&self.messages, true)?;
            let mut tokens = self.tokenizer.encode(&text, true)?;
            if let Some(bos) = self.tokenizer.bos().filter(|_| self.tokenizer.add_bos())
                && tokens.first() != Some(&bos)
            {
                tokens.insert(0, bos);
            }
            // A quarter of the context is left for the answer.
            if tokens.len() <= self.session.context() / 4 * 3 {
                if forgotten > 0 {
                    print::note(format_args!(
                        "the context is full: {forgotten} messages forgotten"
                    ));
                }
                return Ok(tokens);
            }
            let first = usize::from(self.system.is_some());
            if self.messages.len() <= first + 1 {
                self.messages.pop();
                let (found, context) = (tokens.len(), self.session.context());
                anyhow::bail!("this message has {found} tokens, the context {context}");
            }
            let turn = first..(first + 2).min(self.messages.len() - 1);
            forgotten += turn.len();
            self.messages.drain(turn);
        }
    }

    fn stats(&self) -> String {
        let (used, context) = (self.session.len(0), self.session.context());
        let last = self.last.as_ref().map(summary).unwrap_or_default();
        format!("{used} of {context} tokens of context in use\n{last}")
    }

    fn save(&self, path: &str) -> anyhow::Result<()> {
        anyhow::ensure!(!path.is_empty(), "expected a file: /save FILE");
        let message = |m: &Message| json!({ "role": m.role, "content": m.content });
        let messages: Vec<_> = self.messages.iter().map(message).collect();
        let text = serde_json::to_string_pretty(&messages)?;
        std::fs::write(path, text + "\n").with_context(|| path.to_string())
    }
}

fn summary(outcome: &Outcome) -> String {
    let why = match outcome.ending {
        Ending::Interrupted => ", stopped",
        Ending::Length => ", cut at the length asked for",
        Ending::ContextFull => ", cut: the context is full",
        Ending::EndOfGeneration | Ending::StopText => "",
    };
    let (tokens, rate) = (outcome.tokens.len(), outcome.generate_tps());
    format!("[{tokens} tokens, {rate:.1} per second{why}]")
}
