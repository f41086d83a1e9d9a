"""Draws minutes.svg from a table of docs/lab/, as `igam_tf.reproduce` draws its own.

python docs/pictures/minutes.py
"""

import re
from pathlib import Path

from igam_tf.reproduce.writing import over_minutes

HERE = Path(__file__).parent


def content() -> dict:
    """The table of accuracy after so many minutes, in the form of a table of `igam_tf.reproduce`."""
    text = (HERE.parent / "lab" / "2026-11-25-table-1.md").read_text(encoding="utf-8")
    head, *rows = re.search(r"^\| \| 2\.7 .*?(?=\n\n)", text, re.M | re.S)[0].splitlines()
    minutes = [float(cell) for cell in head.split("|")[2:-1]]
    labelled = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows[1:]]
    return {
        "title": "CIFAR-10, 250 validation images, PGD-20 at 8/255; wrn-8-2 on two cores, seed 0",
        "rows": [
            {
                "label": label,
                "part": "",
                "run": {"method": label, "curve": [*_points(minutes, cells)]},
            }
            for label, *cells in labelled
        ],
    }


def _points(minutes: list[float], cells: list[str]):
    for time, cell in zip(minutes, cells, strict=True):
        if cell:
            clean, pgd20 = map(float, re.findall(r"\d+\.\d", cell))
            yield {"minutes": time, "clean": clean, "pgd20": pgd20}


if __name__ == "__main__":
    over_minutes(content()).savefig(HERE / "minutes.svg", metadata={"Date": None})
