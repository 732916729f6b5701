"""The one exception that means "the user can fix this"."""


class UserError(ValueError):
    """A mistake in the input, told in one line that names the value and the way out.

    The command line prints the line and exits with code 2; everything else is a bug of ours and
    keeps its traceback.
    """
