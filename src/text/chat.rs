//! Chat templates: a conversation as the text that the model was trained on.
//!
//! Templates are Jinja, written for Python's `transformers`. Rendering follows it: blocks are
//! trimmed, `raise_exception` and `strftime_now` exist, `tojson` spaces as Python does, methods
//! of Python's strings and dictionaries work, and `tools` and `documents` are none.

use std::error::Error as _;
use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};
use minijinja::{AutoEscape, Environment, ErrorKind, State, context};
use minijinja_contrib::pycompat::unknown_method_callback;
use regex::Regex;
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

use crate::bail;
use crate::error::{Error, Result};
use crate::limits::{RENDERED_BYTES_MAX, TEMPLATE_BYTES_MAX, TEMPLATE_FUEL};

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Who speaks: `system`, `user` or `assistant`.
    pub role: String,
    /// What is said.
    pub content: String,
}

/// A compiled chat template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
}

/// The error inside a template that calls `raise_exception`.
#[derive(Debug)]
struct Raised(String);

const NAME: &str = "chat template";

/// Nested calls and blocks. Far more than any template has, and far from the stack's end.
const RECURSION_MAX: usize = 100;

impl Message {
    /// A turn by `role`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Message {
        Message { role: role.into(), content: content.into() }
    }

    fn to_value(&self) -> Value {
        Value::from_pairs([("role", self.role.as_str()), ("content", self.content.as_str())])
    }
}

impl ChatTemplate {
    /// Compiles a template. `bos` and `eos` are the texts of the tokens, empty if there are none.
    ///
    /// # Errors
    ///
    /// When the source is too long or no valid Jinja, with the line.
    pub fn new(source: &str, bos: &str, eos: &str) -> Result<ChatTemplate> {
        if source.len() > TEMPLATE_BYTES_MAX {
            bail!(
                "the chat template has {} bytes, at most {TEMPLATE_BYTES_MAX} expected",
                source.len()
            );
        }
        let mut environment = Environment::new();
        environment.set_syntax(
            SyntaxConfig::builder()
                .trim_blocks(true)
                .lstrip_blocks(true)
                .build()
                .map_err(|error| describe(&error))?,
        );
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.set_fuel(Some(TEMPLATE_FUEL));
        environment.set_recursion_limit(RECURSION_MAX);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", to_json);
        environment
            .add_template_owned(NAME, without_generation_blocks(source)?)
            .map_err(|error| describe(&error))?;
        Ok(ChatTemplate { environment, bos: bos.to_owned(), eos: eos.to_owned() })
    }

    /// The conversation as text; with `add_generation_prompt`, up to where the model answers.
    ///
    /// # Errors
    ///
    /// When the template raises, with its message; when it fails, with the line; when it runs
    /// too long or its result is too large.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let template = self.environment.get_template(NAME).map_err(|error| describe(&error))?;
        let context = context! {
            messages => messages.iter().map(Message::to_value).collect::<Vec<Value>>(),
            add_generation_prompt,
            bos_token => self.bos.as_str(),
            eos_token => self.eos.as_str(),
            tools => (),
            documents => (),
        };
        let text = template.render(context).map_err(|error| describe(&error))?;
        if text.len() > RENDERED_BYTES_MAX {
            bail!(
                "the chat template made {} bytes, at most {RENDERED_BYTES_MAX} expected",
                text.len()
            );
        }
        Ok(text)
    }
}

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

/// `{% generation %}` marks answers for training; here it is a block that is always taken.
fn without_generation_blocks(source: &str) -> Result<String> {
    let compile = |word: &str| {
        Regex::new(&format!(r"(\{{%[-+]?\s*){word}(\s*[-+]?%\}})"))
            .map_err(|error| Error::new(error.to_string()))
    };
    let source = compile("generation")?.replace_all(source, "${1}if true${2}");
    Ok(compile("endgeneration")?.replace_all(&source, "${1}endif${2}").into_owned())
}

fn describe(error: &minijinja::Error) -> Error {
    let mut source = error.source();
    while let Some(inner) = source {
        if let Some(Raised(message)) = inner.downcast_ref() {
            return Error::new(format!("the chat template refuses the conversation: {message}"));
        }
        source = inner.source();
    }
    let line = error.line().map_or(String::new(), |line| format!(" line {line}"));
    match error.kind() {
        ErrorKind::OutOfFuel => Error::new("the chat template runs too long or makes too much"),
        kind => {
            let detail = error.detail().map_or(String::new(), |detail| format!(": {detail}"));
            Error::new(format!("chat template{line}: {kind}{detail}"))
        }
    }
}

fn raise_exception(message: String) -> Result<Value, minijinja::Error> {
    let error = minijinja::Error::new(ErrorKind::InvalidOperation, message.clone());
    Err(error.with_source(Raised(message)))
}

/// Python's `json.dumps` with `ensure_ascii=False`: a space after each comma and colon.
fn to_json(value: &Value, options: Kwargs) -> Result<Value, minijinja::Error> {
    let indent: Option<usize> = options.get("indent")?;
    // What Python sorts or escapes on request is the caller's data, which has neither here.
    let _: Option<bool> = options.get("ensure_ascii")?;
    let _: Option<bool> = options.get("sort_keys")?;
    let _: Option<Value> = options.get("separators")?;
    options.assert_all_used()?;
    let mut out = Vec::new();
    let done = match indent {
        Some(width) => {
            let spaces = " ".repeat(width.min(16));
            let formatter = PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut Serializer::with_formatter(&mut out, formatter))
        }
        None => value.serialize(&mut Serializer::with_formatter(&mut out, PythonFormatter)),
    };
    done.map_err(|error| {
        minijinja::Error::new(ErrorKind::BadSerialization, "tojson failed").with_source(error)
    })?;
    Ok(Value::from_safe_string(String::from_utf8_lossy(&out).into_owned()))
}

struct PythonFormatter;

impl Formatter for PythonFormatter {
    fn begin_array_value<W>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()>
    where
        W: ?Sized + std::io::Write,
    {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()>
    where
        W: ?Sized + std::io::Write,
    {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W>(&mut self, writer: &mut W) -> std::io::Result<()>
    where
        W: ?Sized + std::io::Write,
    {
        writer.write_all(b": ")
    }
}

/// The time of day and the date in UTC, by Python's `strftime`.
fn strftime_now(_: &State, format: String) -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    strftime(&format, since.as_secs())
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] =
    ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// Formats a time, in seconds since 1970 in UTC. An unknown directive stays as it is written.
pub fn strftime(format: &str, seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil_date(days);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    let hour12 = (hour + 11) % 12 + 1;
    let month_name = MONTHS[month as usize - 1];
    let weekday = WEEKDAYS[(days % 7) as usize];
    let mut out = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            out.push(character);
            continue;
        }
        let directive = characters.next();
        let text = match directive {
            Some('Y') => format!("{year:04}"),
            Some('y') => format!("{:02}", year % 100),
            Some('m') => format!("{month:02}"),
            Some('d') => format!("{day:02}"),
            Some('B') => month_name.to_owned(),
            Some('b') => month_name[..3].to_owned(),
            Some('A') => weekday.to_owned(),
            Some('a') => weekday[..3].to_owned(),
            Some('H') => format!("{hour:02}"),
            Some('I') => format!("{hour12:02}"),
            Some('M') => format!("{minute:02}"),
            Some('S') => format!("{:02}", second % 60),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            Some('F') => format!("{year:04}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{:02}", second % 60),
            Some('Z') => "UTC".to_owned(),
            Some('z') => "+0000".to_owned(),
            Some('%') => "%".to_owned(),
            Some(other) => format!("%{other}"),
            None => "%".to_owned(),
        };
        out.push_str(&text);
    }
    out
}

/// Year, month and day of a number of days since 1970, by the 400 years' cycle of the calendar.
fn civil_date(days: u64) -> (u64, u64, u64) {
    // Counted from 1 March 0000, the leap day is the last day of its year.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}
