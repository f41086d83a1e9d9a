"""cos(J_s, J_t) of the rows that were trained without a teacher, to compare them with the others."""

from functools import partial
from pathlib import Path

from absl import logging

from igam_tf.common.files import read_json, write_json
from igam_tf.evaluation.alignment import alignment
from igam_tf.evaluation.loading import model_and_images
from igam_tf.method.objectives import METHODS
from igam_tf.pytorch.named import allow
from igam_tf.reproduce.collecting import ALIGNMENT, finished
from igam_tf.reproduce.tables import Table
from igam_tf.storage.run_folder import load_model


def align(table: Table, output: Path, *, data_dir: str | None = None) -> None:
    """Writes a missing <row>/alignment.json for each finished row without a teacher of its own.

    Teacher, images and `input_gradient` are those of the table's first IGAM row; nothing is written
    before that row is finished.

    Args:
        table: the table of the rows.
        output: folder of the rows' run folders.
        data_dir: folder of tensorflow-datasets; None means that of the rows.

    Raises:
        UserError: a run folder is damaged, or the images are not found.
    """
    reference = output / table.first_igam.name
    missing = [
        row
        for row in table.rows
        if not METHODS[row.method].teacher
        and finished(output / row.name)
        and not (output / row.name / ALIGNMENT).exists()
    ]
    if not missing or not finished(reference):
        return
    settings = read_json(reference / "config.json")
    allow(settings["teacher_checkpoint"])
    teacher, images, _ = model_and_images(
        partial(load_model, reference / "teacher.keras"),
        settings,
        dataset=None,
        split="test",
        data=None,
        data_dir=data_dir,
        data_seed=None,
    )
    for row in missing:
        logging.info("cos(J_s, J_t) of %s, J_t of %s", row.label, table.first_igam.label)
        found = alignment(
            load_model(output / row.name / "student.keras"),
            teacher,
            images,
            num_examples=settings["eval_examples"],
            input_gradient=settings["input_gradient"],
        )
        found["teacher_of"] = table.first_igam.label
        write_json(output / row.name / ALIGNMENT, found)
