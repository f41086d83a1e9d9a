"""Flagfiles: one flag per line, # comments, and `--flagfile=<another>` to include another file.

A file is named by its path, or by its path within the package's folder of flagfiles.
"""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from igam_tf.common.errors import UserError, did_you_mean

# Within the package if it is installed, else flags/ of the checkout.
FOLDER = Path(__file__).parents[1] / "flagfiles"
if not FOLDER.is_dir():
    FOLDER = Path(__file__).parents[2] / "flags"

Line = tuple[str, str]  # (flag, "<file>:<number of the line>")


def names(folder: Path, pattern: str = "**/*") -> list[str]:
    """The paths of the flagfiles within a folder, sorted by subfolder."""
    found = (path.relative_to(folder) for path in folder.glob(f"{pattern}.flags"))
    return [path.as_posix() for path in sorted(found, key=lambda p: (p.parent.parts, p.name))]


def find(name: str, folder: Path | None, *, here: Path = Path()) -> Path:
    """The path of a named flagfile, in `here` or in the folder.

    Raises:
        UserError: there is none.
    """
    for path in (here / name, *([folder / name] if folder else [])):
        if path.is_file():
            return path
    question = did_you_mean(name, names(folder)) if folder else ""
    meant = f": {question}--help lists those of the package" if question else ""
    raise UserError(f"expected --flagfile=<file>, a file that is there; received {name}{meant}")


@lru_cache
def read(path: Path, folder: Path | None) -> tuple[Line, ...]:
    """The flags of a file, with those of included files in the places of the includes.

    Raises:
        UserError: a file is absent, cannot be read or includes itself, or a line is not a flag.
    """
    return tuple(_lines(path, folder, ()))


def _lines(path: Path, folder: Path | None, within: tuple[Path, ...]) -> Iterator[Line]:
    if path in within:
        raise UserError(f"expected a flagfile that does not include itself; received {path}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"expected --flagfile=<file>, a text that can be read; received {path} ({error})"
        ) from error
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        if name := _included(line):
            yield from _lines(find(name, folder, here=path.parent), folder, (*within, path))
        elif line.startswith("-"):
            yield line, f"{shown(path)}:{number}"
        elif line and not line.startswith(("#", "//")):
            raise UserError(
                f"expected --<flag>=<value> or a # comment in {shown(path)}:{number}; received {line}"
            )


def _included(argument: str) -> str:
    start, _, name = argument.partition("=")
    return name if start in ("--flagfile", "-flagfile") else ""


def shown(path: Path) -> str:
    """A file's name in messages: flags/<path within it> for one of the package, else the full path."""
    path, folder = path.resolve(), FOLDER.resolve()
    return f"flags/{path.relative_to(folder).as_posix()}" if folder in path.parents else str(path)


def expanded(argv: list[str], folder: Path | None) -> tuple[list[str], dict[str, str]]:
    """(the command line with its flagfiles replaced by their flags, flag -> file and line of these).

    Raises:
        UserError: as `read`.
    """
    found, places = argv[:1], dict[str, str]()
    rest = iter(argv[1:])
    for argument in rest:
        if argument == "--":
            return [*found, argument, *rest], places
        if argument in ("--flagfile", "-flagfile"):
            argument = f"{argument}={next(rest, '')}"
        name = _included(argument)
        lines = read(find(name, folder), folder) if name else ((argument, ""),)
        found += [flag for flag, _ in lines]
        places |= {flag.lstrip("-").partition("=")[0]: place for flag, place in lines}
    return found, places
