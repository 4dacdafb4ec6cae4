//! The error type: what went wrong, where, what was expected, what was found.

use std::fmt;

/// A failure that its reader can act on.
///
/// The message names the thing, what was expected and what was found, without a full stop;
/// advice stands apart, in [`Error::hint`].
#[derive(Debug)]
pub struct Error {
    message: String,
    hint: Option<String>,
}

/// The result of everything that can fail on bad input.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error with a message: lower case, no full stop.
    pub fn new(message: impl Into<String>) -> Error {
        Error { message: message.into(), hint: None }
    }

    /// The same error, with its place in front: `model.gguf: tensor ...`.
    #[must_use]
    pub fn at(mut self, place: impl fmt::Display) -> Error {
        self.message = format!("{place}: {}", self.message);
        self
    }

    /// The same error with advice, printed on a line of its own.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Error {
        self.hint = Some(hint.into());
        self
    }

    /// Advice on what to do about it.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Error {
        Error::new(error.to_string())
    }
}

/// Puts the place in front of a failure as it passes.
pub trait At<T> {
    /// On failure, the error with `place` in front.
    fn at(self, place: impl fmt::Display) -> Result<T>;
}

impl<T, E: Into<Error>> At<T> for std::result::Result<T, E> {
    fn at(self, place: impl fmt::Display) -> Result<T> {
        self.map_err(|error| error.into().at(place))
    }
}

/// `Err` with a formatted message: `bail!("expected {a}, found {b}")`.
#[macro_export]
macro_rules! bail {
    ($($message:tt)*) => { return Err($crate::error::Error::new(format!($($message)*))) };
}
