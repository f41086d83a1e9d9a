"""The stages of a run: (0) robust teacher, (1) its new logits, (2) student, (3) evaluation.

Each stage leaves one product in the run folder; a product that is there is not made again.
"""

import dataclasses
import functools
import re
from contextlib import nullcontext
from pathlib import Path

import keras
import tensorflow as tf
from absl import logging
from tensorboard.plugins.hparams import api as hparams

from igam_tf import datasets
from igam_tf.attacks import attack_names
from igam_tf.evaluation.alignment import alignment
from igam_tf.evaluation.evaluate import model_report, table
from igam_tf.experiments.config import Config
from igam_tf.experiments.resolve import transform
from igam_tf.method.adversarial import PGDTraining
from igam_tf.method.discriminator import Discriminator
from igam_tf.method.igam import IGAM
from igam_tf.method.objectives import METHODS
from igam_tf.method.optimizers import JoinSchedules, Momentum, schedule
from igam_tf.method.teacher import FineTune, Teacher
from igam_tf.method.trainer import ClassifierTrainer
from igam_tf.system.run_folder import RunFolder, load_model, read_json, save_model, write_json
from igam_tf.training.loop import train
from igam_tf.training.monitor import ROBUST, Monitor, OverfittingWatch
from madry_models import MnistCNN, WideResNet
from madry_models.errors import UserError
from madry_models.network import Network


def student_size(name: str) -> tuple[int, int]:
    """(depth, width) of "wrn-<depth>-<width>".

    Raises:
        UserError: another name, or a depth that is not 6n + 2.
    """
    match = re.fullmatch(r"wrn-(\d+)-(\d+)", name)
    if not match or (int(match[1]) - 2) % 6 or int(match[1]) < 8 or int(match[2]) < 1:
        raise UserError(
            f"expected --student=wrn-<depth>-<width> with depth 6n + 2, such as wrn-32-10; "
            f"received {name!r}"
        )
    return int(match[1]), int(match[2])


def load_source_network(path: str, spec: datasets.DatasetSpec) -> Network:
    """A teacher that is there already: a MadryLab checkpoint folder, or a `.keras` file of a `Network`.

    Raises:
        UserError: neither of them, or a network of other images.
    """
    if not path.endswith(".keras"):
        from madry_models.tf1_checkpoint import from_tf1_checkpoint

        return from_tf1_checkpoint(path)
    network = load_model(Path(path))
    shape = getattr(network, "image_shape", None)
    if not isinstance(network, Network) or shape not in (None, spec.image_shape):
        raise UserError(
            f"expected a network of {spec.name} images {spec.image_shape} in "
            f"--teacher_checkpoint={path}; it is a {type(network).__name__}"
        )
    return network


class Run:
    """One run in its folder, under the current `tf.distribute` strategy.

    Args:
        config: all settings.
        folder: the run folder, already this process's own.
        teacher_checkpoint: folder of a MadryLab checkpoint; None with `--teacher=train` or where
            the method has no teacher.
    """

    def __init__(self, config: Config, folder: RunFolder, teacher_checkpoint: str | None = None):
        self.config, self.folder, self.teacher_checkpoint = config, folder, teacher_checkpoint
        several = tf.distribute.get_strategy().num_replicas_in_sync > 1
        self.synchronized = several and config.sync_batch_norm
        self.method = METHODS[config.method]
        self._target = None

    # --- data ---------------------------------------------------------------------------------

    def load(self, name: str, split: str) -> datasets.Split:
        """A split of a data set of this run."""
        c = self.config
        num = c.train_examples if split == "train" else 0
        return datasets.load(
            name,
            split,
            source=c.data,
            data_dir=c.data_dir or None,
            seed=c.data_seed,
            num=num or None,
        )

    @property
    def target(self) -> tuple[datasets.Split, datasets.Split]:
        """(training, validation) images of the target task, read once."""
        if self._target is None:
            everything = self.load(self.config.target, "train")
            self._target = datasets.hold_out(
                everything, self.config.num_validation, self.config.seed
            )
        return self._target

    # --- stages 0 and 1 -------------------------------------------------------------------------

    def source_network(self) -> Network:
        """Stage 0: the network of the source task, robust but for `--teacher_gradient=plain`."""
        c, spec = self.config, datasets.SPECS[self.config.source]
        if self.teacher_checkpoint:
            return load_source_network(self.teacher_checkpoint, spec)
        path = self.folder / "teacher_source.keras"
        if path.exists():
            return load_model(path)
        network = self.new_source_network(spec)
        # The recipes of the two challenges: MNIST's, and CIFAR-10's for all else (§5.1.2).
        if spec.name == "mnist":
            optimizer, decay = keras.optimizers.Adam(c.teacher_learning_rate), 0.0
            augment = datasets.Augment(pad=0, flip=False)
        else:
            rate = schedule("step", c.teacher_learning_rate, c.teacher_steps)
            optimizer, decay = Momentum(rate, momentum=c.momentum), c.weight_decay
            augment = datasets.Augment()
        if c.teacher_gradient == "plain":
            trainer = ClassifierTrainer(network, weight_decay=decay)
        else:
            trainer = PGDTraining(
                network,
                eps=spec.eps * spec.pixel_max,
                step_size=spec.step_size * spec.pixel_max,
                steps=c.teacher_attack_steps,
                seed=c.seed,
                weight_decay=decay,
            )
        self._fit(
            trainer,
            [optimizer],
            self.load(c.source, "train"),
            stage="teacher_source",
            steps=c.teacher_steps,
            batch_size=c.teacher_batch_size,
            augment=augment,
        )
        self._save(network, path)
        return network

    def new_source_network(self, spec: datasets.DatasetSpec) -> Network:
        """Stage 0's network before it is trained."""
        if spec.name == "mnist":
            network = MnistCNN(spec.num_classes)
        else:
            depth, width = student_size(self.config.student)
            network = WideResNet(
                depth, width, num_classes=spec.num_classes, synchronized=self.synchronized
            )
        network.build((None, *spec.image_shape))
        return network

    def teacher(self) -> Teacher:
        """Stage 1: the frozen teacher with logits trained on natural target images (eq. 5-6)."""
        path = self.folder / "teacher.keras"
        if path.exists():
            return load_model(path)
        c, spec = self.config, datasets.SPECS[self.config.target]
        teacher = Teacher(self.source_network(), transform(c), num_classes=spec.num_classes)
        teacher.build((None, *spec.image_shape))
        optimizer = keras.optimizers.Adam(c.finetune_learning_rate)
        with teacher.offsets_of(optimizer, c.seed):
            self._fit(
                FineTune(teacher, weight_decay=c.finetune_weight_decay),
                [optimizer],
                self.target[0],
                stage="teacher",
                steps=c.finetune_steps,
                batch_size=c.batch_size,
                augment=datasets.Augment(),
                monitor=self._monitor(teacher) if c.method == "finetune" else None,
            )
        self._save(teacher, path)
        return teacher

    # --- stage 2 ----------------------------------------------------------------------------------

    def student(self) -> Network:
        """The student, trained by `--method`; with finetune the teacher of stage 1 itself."""
        path = self.folder / "student.keras"
        if path.exists():
            return load_model(path)
        c = self.config
        teacher = self.teacher() if self.method.teacher else None
        if c.method == "finetune":
            self._save(teacher, path)
            return teacher
        student = self.new_student(c.precision)
        trainer, optimizers = self.trainer(student, teacher), self.optimizers()
        igam = trainer if self.method.matched_to == "teacher" else None
        monitor = self._monitor(student, igam)
        if monitor and self.method.adversarial:
            monitor = OverfittingWatch(monitor, ROBUST, self.folder / "metrics.jsonl")
        with teacher.offsets_of(optimizers[0], c.seed) if teacher else nullcontext():
            self._fit(
                trainer,
                optimizers,
                self.target[0],
                stage="student",
                steps=c.train_steps,
                batch_size=c.batch_size,
                augment=datasets.Augment(noise=c.pixel_noise),
                monitor=monitor,
            )
        # Attacks need every bit of the gradient: what is kept and scored computes in float32.
        exact = self.new_student("float32")
        exact.set_weights(student.get_weights())
        self._save(exact, path)
        return exact

    def new_student(self, precision: str) -> Network:
        """The student before it is trained, its layers in the given `--precision`."""
        c, spec = self.config, datasets.SPECS[self.config.target]
        depth, width = student_size(c.student)
        student = WideResNet(
            depth,
            width,
            num_classes=spec.num_classes,
            input_layer=c.student_input,
            synchronized=self.synchronized,
            dtype=precision,
        )
        student.build((None, *spec.image_shape))
        return student

    # --- stage 3 ----------------------------------------------------------------------------------

    def evaluate(self) -> dict:
        """Scores the student, and the fine-tuned teacher as a classifier, on test images.

        With a teacher, the student's report has a key `alignment`, see `igam_tf.evaluation.alignment`.
        """
        path = self.folder / "results.json"
        if path.exists():
            return read_json(path)
        c = self.config
        test = self.load(c.target, "test")
        models = {c.method: self.student()}
        if self.method.teacher and c.method != "finetune":
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
            print(f"\n{name}, {self.folder.path}\n{table(reports[name])}")
        if "teacher" in models:
            reports[c.method]["alignment"] = found = alignment(
                models[c.method],
                models["teacher"],
                test,
                num_examples=c.eval_examples,
                input_gradient=c.input_gradient,
            )
            print(
                f"\ncos(J_s, J_t) on these images: {found['cosine']:.3f} "
                f"({found['cosine_ci95'][0]:.3f} - {found['cosine_ci95'][1]:.3f}), median "
                f"|J_s| / |J_t| {found['norm_ratio_median']:.3f}"
            )
        write_json(path, reports)
        return reports

    def _save(self, model: keras.Model, path: Path) -> None:
        if self.folder.chief:
            save_model(model, path)

    # --- parts ------------------------------------------------------------------------------------

    def optimizers(self) -> list[Momentum]:
        """The student's, and the discriminator's, whose schedule counts its own steps."""
        c = self.config
        igam_steps = c.train_steps - c.igam_start
        rate = schedule(c.lr_schedule, c.learning_rate, c.train_steps)
        if self.method.matched_to and c.igam_learning_rate:
            plain = schedule(c.lr_schedule, c.learning_rate, c.igam_start)
            matching = schedule(c.lr_schedule, c.igam_learning_rate, igam_steps)
            rate = JoinSchedules(plain, matching, c.igam_start)
        rates = [rate]
        if self.method.discriminator:
            turns = -(-igam_steps // (c.match_every * c.disc_every))
            rates.append(schedule(c.lr_schedule, c.disc_learning_rate, turns))
        return [Momentum(rate, momentum=c.momentum) for rate in rates]

    def _monitor(self, network: Network, igam: IGAM | None = None) -> Monitor | None:
        """Validation while `network` is trained; None without validation images."""
        split = self.target[1]
        return Monitor(network, split, igam=igam) if len(split.labels) else None

    def trainer(self, student: Network, teacher: Teacher | None) -> ClassifierTrainer:
        """What trains the student by `--method`, not compiled."""
        c, method, spec = self.config, self.method, datasets.SPECS[self.config.target]
        if method.adversarial:
            eps, one = spec.eps * spec.pixel_max, method.one_step
            return PGDTraining(
                student,
                eps=eps,
                step_size=one * eps if one else spec.step_size * spec.pixel_max,
                steps=1 if one else c.pgd_steps,
                seed=c.seed,
                objective=functools.partial(method.adversarial, teacher=teacher, s=c),
                attack_loss=method.attack_loss,
                terms=method.terms,
                weight_decay=c.weight_decay,
            )
        if not method.matched_to:
            return ClassifierTrainer(student, weight_decay=c.weight_decay)
        if teacher and c.precision != "float32":
            teacher.set_precision(c.precision)
        shape = (None, *spec.image_shape)
        disc = adaptor = None
        if method.adaptor:
            adaptor = keras.layers.Conv2D(shape[-1], 1, activation="tanh")
            adaptor.build(shape)
        if method.discriminator:
            if c.disc_view == "teacher" and teacher:
                shape = teacher.transform.teacher_view(tf.zeros((1, *shape[1:]))).shape
            disc = Discriminator(
                c.disc_channels,
                outputs=c.disc_outputs,
                norm=c.disc_norm,
                synchronized=self.synchronized,
            )
            disc.build(shape)
        return IGAM(
            student,
            teacher,
            disc,
            adaptor=adaptor,
            settings=c,
            weight_decay=c.weight_decay,
        )

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
    ) -> None:
        c, replicas = self.config, tf.distribute.get_strategy().num_replicas_in_sync
        last = len(split.labels) % batch_size or batch_size
        if last < replicas > 1 and not c.sync_batch_norm:
            raise UserError(
                f"expected an image for each of {replicas} devices in every batch, with statistics of "
                f"its own (--nosync_batch_norm); an epoch's last batch has {last} of "
                f"{len(split.labels)} images"
            )
        trainer.compile(*optimizers)
        if not optimizers[0].built:
            optimizers[0].build(trainer.trained_variables)
        if stage == "student" and self.folder.chief:
            writer = tf.summary.create_file_writer(str(self.folder / "tensorboard" / stage))
            with writer.as_default():
                hparams.hparams({k: _plain(v) for k, v in dataclasses.asdict(c).items()})
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
            folder=self.folder,
            stage=stage,
            steps=steps,
            log_every=c.log_every,
            checkpoint_every=c.checkpoint_every,
            validate_every=c.validate_every,
            validate=monitor,
        )


def _plain(value):
    return ",".join(map(str, value)) if isinstance(value, tuple) else value
