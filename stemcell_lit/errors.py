"""The errors that end a command with a sentence, never a traceback."""


class UserError(Exception):
    """Something the user gave cannot be used.

    The message names the file or key, what was found, what was expected and what to do. The command line prints it
    and ends with exit status 2. Each argument is a line of its own: what a user gave inside one can begin no other.
    """

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


class JobsFailed(Exception):
    """Jobs of a sweep failed, each named with the end of its log already: exit status 1."""
