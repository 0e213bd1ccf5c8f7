"""What a person can do wrong, as exceptions whose text is the one line they read."""


class BadInput(ValueError):
    """Bad input: the message says what is wrong and what to do."""


class MissingFile(BadInput, FileNotFoundError):
    """A file that should be there is not."""

    def __str__(self) -> str:
        return str(self.args[0])
