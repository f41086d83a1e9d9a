"""One table in every form."""

import doctest
import xml.etree.ElementTree

from igam_tf.common import tables
from igam_tf.common.tables import Table

HOSTILE = r"|J_t| & 5% <b> #1 $x$ {a} ~^ \n"


def test_examples():
    assert doctest.testmod(tables).failed == 0


def test_texts_that_mean_something_to_the_form_are_escaped():
    table = Table(("row", "%"), [(HOSTILE, "1.5")])
    assert r"| \|J_t\| & 5% " in table.markdown().splitlines()[2]
    (row,) = [line for line in table.latex().splitlines() if "1.5" in line]
    assert row == (
        r"\textbar{}J\_t\textbar{} \& 5\% \textless{}b\textgreater{} \#1 \$x\$ \{a\} "
        r"\textasciitilde{}\textasciicircum{} \textbackslash{}n & 1.5 \\"
    )
    root = xml.etree.ElementTree.fromstring(table.html("rows"))
    assert [cell.text for cell in root.iter("td")] == [HOSTILE, "1.5"]


def test_a_row_of_one_text_spans_the_tabular():
    lines = Table(("row", "a", "b"), [("part_1",), ("x", "1", "2")]).latex().splitlines()
    assert lines == [
        r"\begin{tabular}{lrr}", r"\hline", r"row & a & b \\", r"\hline",
        r"\multicolumn{3}{l}{part\_1} \\", r"x & 1 & 2 \\", r"\hline", r"\end{tabular}",
    ]  # fmt: skip
