//! Printing: tables, notes and progress bars.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::file::download::Event;

/// Work shorter than this shows no bar.
const PATIENCE: Duration = Duration::from_secs(2);

/// Writes data to stdout.
pub(super) fn data(text: impl Display) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    write!(out, "{text}")?;
    Ok(out.flush()?)
}

/// Writes a line of data to stdout.
pub(super) fn line(text: impl Display) -> anyhow::Result<()> {
    data(format_args!("{text}\n"))
}

/// Writes JSON to stdout.
pub(super) fn json(value: &serde_json::Value) -> anyhow::Result<()> {
    line(serde_json::to_string_pretty(value)?)
}

/// Writes a line to stderr; that it may be closed is no failure.
pub(super) fn note(text: impl Display) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Whether whoever read our output has left.
pub(super) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
    kind == Some(io::ErrorKind::BrokenPipe)
}

/// A bar on stderr for work over two seconds, where stderr is a terminal.
pub(super) struct Progress {
    started: Instant,
    bar: ProgressBar,
    is_shown: bool,
    what: &'static str,
}

impl Progress {
    /// A bar of `total` steps.
    pub(super) fn new(what: &'static str, total: u64) -> Progress {
        let bar = ProgressBar::hidden();
        bar.set_length(total);
        Progress { started: Instant::now(), bar, is_shown: false, what }
    }

    /// `done` more steps.
    pub(super) fn add(&mut self, done: u64) {
        self.bar.inc(done);
        if !self.is_shown && self.started.elapsed() > PATIENCE && io::stderr().is_terminal() {
            self.is_shown = true;
            self.bar.set_draw_target(indicatif::ProgressDrawTarget::stderr());
            let style = "{prefix} {wide_bar:.cyan/dim} {percent:>3}% {msg} {eta} left";
            let style = ProgressStyle::with_template(style).expect("a constant template");
            self.bar.set_style(style.progress_chars("━━─"));
            self.bar.set_prefix(self.what);
        }
    }

    /// Whether all steps are done.
    fn is_done(&self) -> bool {
        self.bar.length().is_some_and(|length| self.bar.position() >= length)
    }

    /// A word beside the bar.
    pub(super) fn say(&self, text: String) {
        self.bar.set_message(text);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// One bar after another, each for work of another name or done once more.
#[derive(Default)]
pub(super) struct Stages {
    current: Option<Progress>,
}

impl Stages {
    /// One more of `steps` steps of some work.
    pub(super) fn step(&mut self, what: &'static str, steps: usize) {
        // The old one goes before the new one is drawn.
        self.current.take_if(|bar| bar.what != what);
        let new = || Progress::new(what, steps as u64);
        self.current.get_or_insert_with(new).add(1);
        self.current.take_if(|bar| bar.is_done());
    }
}

/// `98.4 MB`.
pub(super) fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

/// Lines of cells, aligned: text to the left, the columns in `right` to the right.
pub(super) fn table(rows: &[Vec<String>], right: &[usize]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |i: usize| rows.iter().filter_map(|row| row.get(i)).map(|c| c.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|i| width(i).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (i, cell) in row.iter().enumerate() {
            let gap = if i == 0 { "" } else { "  " };
            let width = widths[i];
            line += &match right.contains(&i) {
                true => format!("{gap}{cell:>width$}"),
                false => format!("{gap}{cell:<width$}"),
            };
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

/// Shows what a download tells.
pub(super) fn events() -> impl FnMut(Event) {
    let mut bar: Option<(Progress, u64)> = None;
    move |event| match event {
        Event::Status(text) => {
            bar = None;
            note(text);
        }
        Event::Progress { done, total } => {
            let new = || (Progress::new("fetching", total), 0);
            let (bar, before) = bar.get_or_insert_with(new);
            bar.add(done.saturating_sub(*before));
            *before = done;
        }
    }
}
