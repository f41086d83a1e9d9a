"""The one exception for a user's mistake, and how an entry point shows it."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """Bad input: one sentence with what was expected and what came. Shown without a traceback."""


def run_entry_point(main: Callable[[list[str]], int | None]) -> None:
    """Runs `main` under absl, flags parsed; a `UserError` ends it with status 1, in one line.

    absl itself answers a wrong flag with one line and status 1.
    """
    from absl import app

    def guarded(argv: list[str]) -> int | None:
        try:
            return main(argv)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1

    app.run(guarded)
