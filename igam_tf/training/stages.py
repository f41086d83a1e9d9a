"""The stages of a run: (0) robust teacher, (1) its new logits, (2) student, (3) evaluation.

Each stage writes one file to the run folder, and is not run again once that file exists.
"""

import dataclasses
import filecmp
import functools
import time
from contextlib import nullcontext
from pathlib import Path

import keras
import tensorflow as tf
from absl import logging

from igam_tf import datasets
from igam_tf.attacks import attack_names
from igam_tf.common.errors import UserError
from igam_tf.common.files import copy_file, read_json, write_json, write_text
from igam_tf.common.tables import with_interval
from igam_tf.evaluation.alignment import alignment
from igam_tf.evaluation.evaluate import model_report, table
from igam_tf.evaluation.results import checked, read_results
from igam_tf.experiments.config import Config
from igam_tf.experiments.resolve import described_transform, source_spec, target_spec
from igam_tf.method.architectures import import_classes
from igam_tf.method.igam import IGAM
from igam_tf.method.new_trainer import trainer
from igam_tf.method.objectives import METHODS
from igam_tf.method.second_order import IMAGES
from igam_tf.method.teacher import Teacher
from igam_tf.method.trainer import ClassifierTrainer
from igam_tf.storage.run_folder import RunFolder, load_model, save_model
from igam_tf.training.building import (
    load_source_network,
    new_optimizers,
    new_source_network,
    new_student,
    new_trainer,
)
from igam_tf.training.loop import train
from igam_tf.training.monitor import CLEAN, ROBUST, Monitor, OverfittingWatch
from igam_tf.training.teachers import (
    STAGE,
    TeacherSettings,
    minutes,
    shared_folder,
    teacher_settings,
    teacher_trainer,
)
from madry_models.network import Network


class Run:
    """One run in its folder, under the current `tf.distribute` strategy.

    Args:
        config: all settings.
        folder: the run folder, already locked by this process.
        teachers: folder of the teachers that runs share; None means `teachers` beside the run
            folder.
        teacher_checkpoint: folder of a MadryLab checkpoint; None with `--teacher=train` or a method
            without a teacher.
        target: the target's data set; None means `target_spec`.
    """

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        teacher_checkpoint: str | None = None,
        teachers: str | None = None,
        target: datasets.DatasetSpec | None = None,
    ):
        self.config, self.folder, self.teacher_checkpoint = config, folder, teacher_checkpoint
        self.teachers = Path(teachers or folder.path.absolute().parent / "teachers")
        self.teachers = self.teachers.expanduser().absolute()
        several = tf.distribute.get_strategy().num_replicas_in_sync > 1
        self.synchronized = several and config.sync_batch_norm
        self.own_statistics = several and not config.sync_batch_norm
        self.method = METHODS[config.method]
        self.target_spec = target or target_spec(config)
        self._target = None

    # --- data ---------------------------------------------------------------------------------

    def load(self, spec: datasets.DatasetSpec, split: str) -> datasets.Split:
        """A split of a data set of this run.

        Raises:
            UserError: as `datasets.load`, or the run began with other images. Their folder is not a
                setting of the run, because it differs between machines.
        """
        c = self.config
        num = c.train_examples if split == "train" else 0
        found = datasets.load(
            spec,
            split,
            source=c.data,
            data_dir=c.data_dir or None,
            seed=c.data_seed,
            num=num or None,
        )
        path, shape = self.folder / "images.json", "x".join(map(str, spec.image_shape))
        known = read_json(path) if path.exists() else {}
        name, now = f"{spec.title}, {split}, {shape}", found.fingerprint()
        if known.get(name, now) != now:
            raise UserError(
                f"expected the images that the run in {self.folder.path} began with; {name} has "
                "changed since: restore the earlier images, or name another --workdir"
            )
        if name not in known and self.folder.chief:
            write_json(path, known | {name: now})
        return found

    @functools.cached_property
    def source_spec(self) -> datasets.DatasetSpec:
        """The source's data set."""
        return source_spec(self.config)

    @property
    def target(self) -> tuple[datasets.Split, datasets.Split]:
        """(training, validation) images of the target task, read once."""
        if self._target is None:
            everything = self.load(self.target_spec, "train")
            self._target = datasets.hold_out(
                everything, self.config.num_validation, self.config.seed
            )
        return self._target

    def check_sizes(self) -> None:
        """Checks that there are enough images of the chosen classes for validation and evaluation.

        Raises:
            UserError: there are too few.
        """
        c = self.config
        if not c.target_classes or (self.folder / "results.json").exists():
            return
        test = self.load(self.target_spec, "test")
        _ = self.target
        if c.eval_examples > len(test.labels):
            raise UserError(
                f"expected --eval_examples of at most {len(test.labels)}, the test images of "
                f"{test.spec.title}; received {c.eval_examples}"
            )

    # --- stages 0 and 1 -------------------------------------------------------------------------

    def source_network(self) -> Network:
        """Stage 0: the network of the source task, robust unless --teacher_gradient=plain."""
        c, spec = self.config, self.source_spec
        if self.teacher_checkpoint:
            return load_source_network(
                self.teacher_checkpoint, spec, c.teacher_preprocess, c.teacher_network
            )
        path = self.folder / f"{STAGE}.keras"
        if path.exists():
            return load_model(path)
        split = self.load(spec, "train")
        settings = teacher_settings(c, split, own_statistics=self.own_statistics)
        with shared_folder(self.teachers, settings, chief=self.folder.chief) as shared:
            network = self._trained_source(shared, settings, split)
            if self.folder.chief:
                about = {
                    "folder": shared.path.name,
                    "settings": dataclasses.asdict(settings),
                    "data": spec.title,
                    "train_images": len(split.labels),
                    "minutes": minutes(shared.path),
                }
                write_json(self.folder / f"{STAGE}.json", about)
                copy_file(shared / path.name, path)
        return network

    def _trained_source(
        self, folder: RunFolder, settings: TeacherSettings, split: datasets.Split
    ) -> Network:
        path = folder / f"{STAGE}.keras"
        if path.exists():
            logging.info("teacher: %s", path)
            return load_model(path)
        network = new_source_network(self.config, self.source_spec, synchronized=self.synchronized)
        trainer, optimizer = teacher_trainer(network, settings, split.spec.pixel_max)
        self._fit(
            trainer,
            [optimizer],
            split,
            stage=STAGE,
            steps=settings.steps,
            batch_size=settings.batch_size,
            augment=split.spec.augment,
            folder=folder,
        )
        self._save(network, path)
        return network

    def source_report(self) -> None:
        """Adds to the record of a teacher trained here its accuracy on its own task.

        The first run measures it for all runs that share the teacher. A run that was moved away
        from the shared teachers measures its own copy.
        """
        path = self.folder / f"{STAGE}.json"
        record = read_json(path) if path.exists() else None
        if not record or "report" in record:
            return
        settings, own = TeacherSettings(**record["settings"]), self.folder / f"{STAGE}.keras"
        shared = self.teachers / settings.folder
        if (shared / own.name).exists() and filecmp.cmp(shared / own.name, own, shallow=False):
            with RunFolder(shared, settings, wait=True) as folder:
                results = folder / "results.json"
                if not results.exists():
                    write_json(results, {"teacher": self._source_figures()})
                record["report"] = read_results(shared)["teacher"]
        else:
            record["report"] = self._source_figures()
        write_json(path, record)

    def _source_figures(self) -> dict:
        c = self.config
        test = self.load(self.source_spec, "test")
        return model_report(
            load_model(self.folder / f"{STAGE}.keras"),
            test,
            attacks=attack_names(c.teacher_eval_attacks),
            num_examples=min(c.teacher_eval_examples or c.eval_examples, len(test.labels)),
            seed=c.seed,
        )

    def teacher(self) -> Teacher:
        """Stage 1: the frozen teacher with logits trained on natural target images (eq. 5-6)."""
        path = self.folder / "teacher.keras"
        if path.exists():
            return load_model(path)
        c, spec = self.config, self.target_spec
        network = self.source_network()
        words, between = described_transform(c, getattr(network, "pixel_max", None))
        logging.info("map to the teacher's input, --transform=%s: %s", c.transform, words)
        if self.folder.chief:
            write_text(self.folder / "transform.txt", f"{words}\n")
        teacher = Teacher(network, between, num_classes=spec.num_classes)
        teacher.build((None, *spec.image_shape))
        train = self.target[0]
        teacher.check_range(datasets.in_pixel_range(train.images[:100], spec.pixel_max))
        optimizer = keras.optimizers.Adam(c.finetune_learning_rate)
        with teacher.offsets_of(optimizer, c.seed):
            self._fit(
                trainer("finetune", teacher, weight_decay=c.finetune_weight_decay),
                [optimizer],
                self.target[0],
                stage="teacher",
                steps=c.finetune_steps,
                batch_size=c.batch_size,
                augment=spec.augment,
                monitor=self._monitor(teacher) if self.method.trains_teacher else None,
            )
        self._save(teacher, path)
        return teacher

    # --- stage 2 ----------------------------------------------------------------------------------

    def student(self) -> Network:
        """The student, trained by `--method`; for finetune it is the teacher of stage 1."""
        path = self.folder / "student.keras"
        if path.exists():
            import_classes(self.config.student)
            return load_model(path)
        c = self.config
        teacher = self.teacher() if self.method.teacher else None
        if self.method.trains_teacher:
            self._save(teacher, path)
            return teacher
        student = new_student(c, self.target_spec, c.precision, synchronized=self.synchronized)
        trainer = new_trainer(c, self.target_spec, student, teacher, synchronized=self.synchronized)
        optimizers = new_optimizers(c)
        igam = trainer if self.method.matches_teacher else None
        monitor = self._monitor(student, igam)
        if monitor and self.method.adversarial:
            monitor = OverfittingWatch(monitor, ROBUST, self.folder / "metrics.jsonl")
        split = self.target[0]
        if self.method.matched_to:
            first = split.take(slice(IMAGES), split.name)
            x = datasets.in_pixel_range(first.images, split.spec.pixel_max)
            trainer.check_derivatives(x, first.labels)
        if igam and c.teacher == "load" and c.teacher_gradient != "zero":
            self._log_cost(igam, split)
        with teacher.offsets_of(optimizers[0], c.seed) if teacher else nullcontext():
            self._fit(
                trainer,
                optimizers,
                split,
                stage="student",
                steps=c.train_steps,
                batch_size=c.batch_size,
                augment=dataclasses.replace(self.target_spec.augment, noise=c.pixel_noise),
                monitor=monitor,
            )
        # Attacks need exact gradients: the student is saved and evaluated in float32.
        exact = new_student(c, self.target_spec, "float32", synchronized=self.synchronized)
        exact.set_weights(student.get_weights())
        self._save(exact, path)
        return exact

    # --- stage 3 ----------------------------------------------------------------------------------

    def evaluate(self) -> dict:
        """Evaluates student and fine-tuned teacher, as classifiers, on test images; prints both.

        With a teacher, the student's report has a key `alignment`, see `igam_tf.evaluation.alignment`.
        """
        path = self.folder / "results.json"
        reports = read_results(self.folder.path) if path.exists() else self._scores()
        source = self.folder / f"{STAGE}.json"
        record = read_json(source) if source.exists() else {}
        if "report" in record:
            checked({"teacher": record["report"]}, source)
            print(f"\nteacher of {record['data']}\n{table(record['report'])}")
        for name, report in reports.items():
            print(f"\n{name}, {self.folder.path}\n{table(report)}")
            if found := report.get("alignment"):
                print(
                    "\ncos(J_s, J_t) on these images: "
                    f"{with_interval(found['cosine'], found['cosine_ci95'], '.3f')}, median "
                    f"|J_s| / |J_t| {found['norm_ratio_median']:.3f}; J_t explains "
                    f"{100 * found['explained']:.1f} % of |J_s|^2"
                )
        return reports

    def _scores(self) -> dict:
        """Measures what `evaluate` prints, and writes it."""
        c = self.config
        test = self.load(self.target_spec, "test")
        models = {c.method: self.student()}
        self.source_report()
        if self.method.teacher and not self.method.trains_teacher:
            models["teacher"] = self.teacher()
        reports = {}
        for name, model in models.items():
            reports[name] = model_report(
                model,
                test,
                attacks=attack_names(c.eval_attacks),
                num_examples=c.eval_examples,
                seed=c.seed,
            )
        if "teacher" in models:
            reports[c.method]["alignment"] = alignment(
                models[c.method],
                models["teacher"],
                test,
                num_examples=c.eval_examples,
                input_gradient=c.input_gradient,
            )
        write_json(self.folder / "data.json", self._data(test))
        write_json(self.folder / "results.json", reports)
        with self._tensorboard().as_default(step=c.train_steps):
            for attack, row in reports[c.method]["results"].items():
                tf.summary.scalar(f"test/{attack}_percent", row["accuracy"])
        return reports

    def _data(self, test: datasets.Split) -> dict[str, str | int]:
        """Which images of the target this run used, and how many."""
        c, spec = self.config, test.spec
        train, validation = self.target
        return {
            "data": spec.title,
            "stored_as": datasets.stored_as(spec, source=test.source, data_dir=c.data_dir or None),
            "train_images": len(train.labels),
            "validation_images": len(validation.labels),
            "test_images": len(test.labels),
            "published_train_images": spec.train_images,
        }

    def _tensorboard(self) -> tf.summary.SummaryWriter:
        return tf.summary.create_file_writer(str(self.folder / "tensorboard" / "student"))

    def _log_settings(self) -> None:
        """Every setting of the run, for TensorBoard's comparison of runs."""
        from tensorboard.plugins.hparams import api as hparams

        settings = {k: _plain(v) for k, v in dataclasses.asdict(self.config).items()}
        metrics = (CLEAN, ROBUST, "test/worst_case_percent")
        with self._tensorboard().as_default():
            hparams.hparams_config(
                hparams=[hparams.HParam(name) for name in settings],
                metrics=[hparams.Metric(name) for name in metrics],
            )
            hparams.hparams(settings)

    def _save(self, model: keras.Model, path: Path) -> None:
        if self.folder.chief:
            save_model(model, path)

    # --- parts ------------------------------------------------------------------------------------

    def _monitor(self, network: Network, igam: IGAM | None = None) -> Monitor | None:
        """The validation during the training of `network`; None without validation images."""
        split = self.target[1]
        return Monitor(network, split, igam=igam) if len(split.labels) else None

    def _log_cost(self, igam: IGAM, split: datasets.Split) -> None:
        """Measures J_t of one batch, and says what J_t of the whole stage costs."""
        if tf.distribute.get_strategy().num_replicas_in_sync > 1:
            return
        c, batch = self.config, split.take(slice(self.config.batch_size), split.name)
        x = tf.constant(datasets.in_pixel_range(batch.images, split.spec.pixel_max))
        j_t = tf.function(igam.target_gradient, autograph=False)
        j_t(x, batch.labels)  # which traces it
        begin = time.monotonic()
        j_t(x, batch.labels).numpy()
        seconds = time.monotonic() - begin
        steps = len(range(c.igam_start, c.train_steps, c.match_every))
        logging.info(
            "J_t of %d images (%.1f epochs) costs about %.1f minutes of this stage: %.3g s for %d",
            steps * c.batch_size, steps * c.batch_size / len(split.labels), steps * seconds / 60,
            seconds, len(x),
        )  # fmt: skip

    def _fit(
        self,
        trainer: ClassifierTrainer,
        optimizers: list[keras.optimizers.Optimizer],
        split: datasets.Split,
        *,
        stage: str,
        steps: int,
        batch_size: int,
        augment: datasets.Augment,
        monitor: Monitor | None = None,
        folder: RunFolder | None = None,
    ) -> None:
        c, replicas = self.config, tf.distribute.get_strategy().num_replicas_in_sync
        last = len(split.labels) % batch_size or batch_size
        if last < replicas > 1 and not c.sync_batch_norm:
            raise UserError(
                f"expected an image for each of {replicas} devices in every batch, because each "
                "computes its own statistics (--nosync_batch_norm); an epoch's last batch has "
                f"{last} of {len(split.labels)} images"
            )
        trainer.compile(*optimizers)
        if not optimizers[0].built:
            optimizers[0].build(trainer.trained_variables)
        if stage == "student" and self.folder.chief:
            self._log_settings()
        logging.info(
            "stage %s: %d steps of %d images of %s (%s, %d images)",
            stage, steps, batch_size, split.spec.name, split.source, len(split.labels),
        )  # fmt: skip

        def batches(done: int) -> tf.data.Dataset:
            return datasets.train_batches(
                split,
                batch_size=batch_size,
                seed=c.seed,
                augment=augment,
                start_step=done,
                num_steps=steps - done,
            )

        train(
            trainer,
            batches,
            folder=folder or self.folder,
            stage=stage,
            steps=steps,
            log_every=c.log_every,
            checkpoint_every=c.checkpoint_every,
            validate_every=c.validate_every,
            validate=monitor,
        )


def _plain(value):
    return ",".join(map(str, value)) if isinstance(value, tuple) else value
