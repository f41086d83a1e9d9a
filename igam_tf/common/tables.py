"""A table of texts that can be written as plain text, Markdown, LaTeX and HTML."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_TEX = str.maketrans({
    **{c: "\\" + c for c in "&%$#_{}"}, "\\": r"\textbackslash{}", "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
})  # fmt: skip


def interval_text(ends: Sequence[float], form: str = ".1f") -> str:
    """An interval as text.

    Example:
        >>> interval_text([12.34, 56.78])
        '12.3 to 56.8'
    """
    return " to ".join(format(end, form) for end in ends)


def with_interval(value: float, ends: Sequence[float], form: str = ".1f") -> str:
    """A value and its interval as text.

    Example:
        >>> with_interval(34.56, [12.34, 56.78])
        '34.6 (12.3 to 56.8)'
    """
    return f"{value:{form}} ({interval_text(ends, form)})"


@dataclass(frozen=True)
class Table:
    """Rows of texts below a header; the first column is aligned left, the others right.

    Example:
        >>> table = Table(("attack", "%"), [("pgd_20", "7.5"), ("fgsm", "12.0")])
        >>> print(table.text())
        attack     %
        pgd_20   7.5
        fgsm    12.0
        >>> print(table.markdown())
        | attack | % |
        | --- | --- |
        | pgd_20 | 7.5 |
        | fgsm | 12.0 |
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def text(self) -> str:
        """As plain text, in columns two spaces apart."""
        lines = [self.head, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(
                cell.rjust(width) if i else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )

    def markdown(self) -> str:
        """As a Markdown table; pipes in a text are escaped."""
        lines = [[cell.replace("|", "\\|") for cell in line] for line in (self.head, *self.rows)]
        lines.insert(1, ["---"] * len(self.head))
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def latex(self) -> str:
        """As a tabular; a row of one text spans all columns, as a heading of the rows below it."""
        n = len(self.head)
        head, *rows = ([cell.translate(_TEX) for cell in line] for line in (self.head, *self.rows))
        rows = [row if len(row) > 1 else [rf"\multicolumn{{{n}}}{{l}}{{{row[0]}}}"] for row in rows]
        first, *lines = (" & ".join(row) + r" \\" for row in (head, *rows))
        begin = rf"\begin{{tabular}}{{l{'r' * (n - 1)}}}"
        return "\n".join([begin, r"\hline", first, r"\hline", *lines, r"\hline", r"\end{tabular}"])

    def html(self, kind: str) -> str:
        """As a table element of the class `kind`."""
        lines = [(self.head, "th"), *((row, "td") for row in self.rows)]
        cells = ("".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in line) for line, tag in lines)
        return f'<table class="{kind}">{"".join(f"<tr>{row}</tr>" for row in cells)}</table>'
