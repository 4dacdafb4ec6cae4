"""The one exception of this package."""


class FormatError(ValueError):
    """A file breaks a rule of the pages: where, what, what was expected, what was found."""

    def __init__(self, where: str, what: str, expected: object, found: object) -> None:
        super().__init__(f"{where}: {what}: expected {expected}, found {found}")
        self.where = where
        self.what = what
        self.expected = expected
        self.found = found
