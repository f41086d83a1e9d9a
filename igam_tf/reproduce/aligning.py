"""cos(J_s, J_t) of the rows that have no teacher: what nothing but the task makes of it."""

from pathlib import Path

from absl import logging

from igam_tf.alignment import alignment
from igam_tf.models import find_model, model_and_images
from igam_tf.objectives import METHODS
from igam_tf.reproduce.collecting import ALIGNMENT, finished
from igam_tf.reproduce.tables import Table
from igam_tf.runs import load_model, write_json


def align(table: Table, output: Path, *, data_dir: str | None = None) -> None:
    """Writes <row>/alignment.json, once, of each finished row that has no teacher of its own.

    J_t is that of the table's first IGAM row, J and the images are as in that row; nothing is
    written before it is finished.

    Args:
        table: whose rows.
        output: folder of their run folders.
        data_dir: tensorflow-datasets folder; default: that of the rows.

    Raises:
        UserError: a damaged run folder, or images that are not there.
    """
    reference = output / table.first_igam.name
    if not finished(reference):
        return
    _, _, settings = find_model(str(reference))
    for row in table.rows:
        folder = output / row.name
        if METHODS[row.method].teacher or not finished(folder) or (folder / ALIGNMENT).exists():
            continue
        logging.info("cos(J_s, J_t) of %s, J_t of %s", row.label, table.first_igam.label)
        load, student, _ = find_model(str(folder))
        model, images, _ = model_and_images(
            lambda load=load, student=student: load(student),
            settings,
            dataset=None,
            split="test",
            data=None,
            data_dir=data_dir,
            data_seed=None,
        )
        found = alignment(
            model,
            load_model(reference / "teacher.keras"),
            images,
            num_examples=settings["eval_examples"],
            input_gradient=settings["input_gradient"],
        )
        write_json(folder / ALIGNMENT, found | {"teacher_of": table.first_igam.label})
