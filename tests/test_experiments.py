"""Settings: who wins, what is refused, and flagfiles that agree with the table."""

import ast
import dataclasses
import itertools
import math
import re
import shutil
import string
from pathlib import Path

import pytest
from absl import flags

from igam_tf import train
from igam_tf.common import flagfiles
from igam_tf.common.errors import UserError
from igam_tf.datasets import SPECS, DatasetSpec
from igam_tf.experiments.config import Config
from igam_tf.experiments.recipes import FIELDS, recipe, transfers
from igam_tf.experiments.resolve import ORDER, explained, resolve
from igam_tf.method.new_trainer import arguments_of
from igam_tf.method.objectives import METHODS
from igam_tf.method.settings import Settings
from igam_tf.training.open_run import default_workdir

ROOT = Path(__file__).parents[1]
RELEASE = {name: value for name, (value, _) in recipe("fidelity/release").items()}

# The transfers as §5 and Appendix A of the paper publish them, read off a second time.
LARGE, SMALL = (16, 32, 64, 128, 256), (8, 16, 32, 64)
PAPER = {  # epochs of fine-tuning, lambda_adv, lambda_diff, f_disc's channels, k
    ("mnist", "cifar10", "grey_crop"): (10, 1, 100, LARGE, 10),
    ("tiny_imagenet", "cifar10", "transpose_conv"): (6, 1, 10, SMALL, 5),
    ("tiny_imagenet", "cifar10", "random_pad"): (6, 1, 10, SMALL, 5),
    ("tiny_imagenet", "cifar10", "pad"): (6, 2, 20, SMALL, 5),
    ("tiny_imagenet", "cifar10", "resize"): (6, 5, 10, SMALL, 5),
    ("mnist", "cifar100", "grey_crop"): (10, 0.1, 200, LARGE, 5),
    ("cifar10", "cifar100", "identity"): (6, 2, 10, LARGE, 10),
    ("cifar10", "tiny_imagenet", "resize"): (5, 0.1, 200, SMALL, 5),
    ("cifar10", "tiny_imagenet", "crop"): (5, 2, 50, SMALL, 5),
    ("cifar100", "tiny_imagenet", "resize"): (5, 0.1, 200, SMALL, 5),
    ("cifar100", "tiny_imagenet", "crop"): (5, 0.5, 200, SMALL, 5),
}
EPOCH = {"cifar10": 391, "cifar100": 391, "tiny_imagenet": 782}  # ceil(50 000 or 100 000 / 128)


def chosen_by(key: tuple[str, str, str]) -> dict[str, str]:
    return dict(zip(("source", "target", "transform"), key, strict=True))


def test_paper_is_the_default_and_lambda_diff_is_brought_to_its_unit():
    config = resolve({})
    assert (config.fidelity, config.preset, config.student) == ("paper", "paper", "wrn-32-10")
    assert config.lambda_adv == 1.0
    # 100, summed over 32 images of J in 0..255, on a mean of J in 0..1
    assert config.lambda_diff == pytest.approx(100 * 32 / 65025)
    assert config.disc_every == 10
    assert config.disc_channels == (16, 32, 64, 128, 256)


def test_release_is_the_release():
    config = resolve({"fidelity": "release"})
    assert {name: getattr(config, name) for name in RELEASE} == RELEASE
    assert config.lambda_diff == 100.0


@pytest.mark.parametrize(
    ("chosen", "eps"),
    [
        ({}, 8 / 255),
        ({"preset": "cpu"}, 8 / 255),
        ({"eps": "4/255"}, 4 / 255),
        ({"target": "mnist"}, 0.3),
    ],
)
def test_best_weighs_the_l1_norm_by_eps(chosen, eps):
    config = resolve({"fidelity": "best", "method": "gradient_penalty"} | chosen)
    assert config.diff_norm == "l1"
    assert config.lambda_diff == pytest.approx(eps)
    assert default_workdir(config).endswith(f"-gradient_penalty-{config.preset}-best")


def test_best_has_smaller_batches_and_as_many_more_steps_for_every_method():
    best = {"preset": "cpu", "fidelity": "best"}
    own, fast = resolve(best), resolve(best | {"method": "fast"})
    assert (own.batch_size, own.activation, own.label_smoothing) == (64, "silu", 0.1)
    assert (fast.batch_size, fast.activation, fast.label_smoothing) == (32, "leaky_relu", 0.0)
    assert fast.train_steps == 4 * resolve({"preset": "cpu", "method": "fast"}).train_steps
    assert resolve(best | {"method": "n_fgsm"}).learning_rate == 2 * fast.learning_rate
    assert resolve(best | {"method": "pgd"}).label_smoothing == 0.1
    trades = resolve(best | {"method": "trades"})
    assert (trades.pgd_steps, trades.train_steps) == (3, 2500)
    for source, steps in {"mnist": 24_000, "tiny_imagenet": 8000}.items():
        finetune = resolve(best | {"source": source, "method": "finetune"})
        assert finetune.finetune_steps == steps


def test_the_user_wins_over_every_preset():
    chosen = {"fidelity": "release", "preset": "smoke", "lambda_diff": 7.0, "batch_size": 5}
    config = resolve(chosen | {"seed": None})
    assert config.lambda_diff == 7.0
    assert config.batch_size == 5
    assert config.seed == Config().seed
    assert config.train_steps == 8


def test_a_pair_without_a_row_takes_documented_defaults(monkeypatch):
    own = dataclasses.replace(SPECS["mnist"], name="own")
    monkeypatch.setitem(SPECS, "own", own)
    config, found = resolve({"target": "own"}), explained({"target": "own"})
    expected = {
        "transform": "auto", "lambda_adv": 1.0, "lambda_diff": Config().lambda_diff, "disc_every": 5,
        "disc_channels": (16, 32, 64, 128, 256), "train_steps": 200 * 469, "finetune_steps": 6 * 469,
        "num_validation": 1000, "eval_examples": 1000,
    }  # fmt: skip
    for name, value in expected.items():
        assert found[name][0] == getattr(config, name) == value
    assert found["disc_every"][1].startswith("flags/transfers/others.flags:")
    assert found["train_steps"][1].startswith("computed: of flags/transfers/others.flags:")


@pytest.mark.parametrize(("side", "count"), [(2, 1), (8, 3), (9, 4), (28, 5), (300, 5)])
def test_no_convolution_of_the_discriminator_sees_one_pixel(side, count, monkeypatch):
    """Each of stride 2 halves the side, rounded up, and begins with two pixels at least."""
    for name, n in (("small", side), ("large", 400)):
        spec = DatasetSpec(name, (n, n + 1, 3), 2, train_images=100, test_images=100)
        monkeypatch.setitem(SPECS, name, spec)
    for source, target in (("small", "large"), ("large", "small")):
        found = explained({"source": source, "target": target})
        assert found["disc_channels"][0] == (16, 32, 64, 128, 256)[:count]


def test_igam_start_beyond_the_end():
    with pytest.raises(UserError, match=r"within the 10 training steps; received 11"):
        resolve({"train_steps": 10, "igam_start": 11})
    told = r"4 training steps; received 500 \(flags/presets/cpu.flags:\d+\): give --igam_start too"
    with pytest.raises(UserError, match=told):
        resolve({"train_steps": 4, "preset": "cpu"})


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("train_steps", 0, "of at least 1"),
        ("finetune_steps", -1, "of at least 0"),
        ("match_every", 0, "of at least 1"),
        ("seed", 2**32, "within 0..4294967295"),
        ("momentum", 1.5, "within 0..1"),
        ("lambda_diff", -0.1, "of at least 0"),
        ("lambda_adv", math.nan, "of at least 0"),
        ("learning_rate", math.inf, "of at least 0"),
        ("ard_temperature", 0.0, "of at least 1e-06"),
        ("disc_channels", (4, 0), "of at least 1"),
    ],
)
def test_numbers_out_of_their_range(name, value, wanted):
    received = "4,0" if name == "disc_channels" else str(value)
    with pytest.raises(UserError) as raised:
        resolve({name: value})
    assert str(raised.value) == f"expected --{name} {wanted}; received {received}"


def test_every_number_has_a_range():
    """Which its default is in; below or beside it there is a refusal."""
    numbers = [name for name, field in FIELDS.items() if field.type in (int, float)]
    assert len(numbers) > 30
    for name in numbers:
        refusal = f"expected --{name} (of at least|within) .*; received -1$"
        with pytest.raises(UserError, match=refusal):
            resolve({name: -1})


def test_finite_differences_need_the_gradient_of_the_loss():
    with pytest.raises(UserError, match=r"input_gradient=xent .*received --input_gradient=softmax"):
        resolve({"fidelity": "release", "second_order": "finite_difference"})


@pytest.mark.parametrize("fidelity", ["paper", "release", "best"])
def test_the_cpu_preset_is_consistent(fidelity):
    config = resolve({"preset": "cpu", "fidelity": fidelity})
    assert config.student == "wrn-8-2"
    assert config.second_order == ("exact" if fidelity == "release" else "finite_difference")


def test_methods_change_their_rows():
    assert resolve({"method": "finetune"}).finetune_steps == 100 * 391  # the paper's 100 epochs
    assert resolve({"method": "cosine"}).lambda_diff == 1.0  # a cosine has no unit
    plain = resolve({"teacher_gradient": "plain"})
    assert (plain.teacher, plain.teacher_steps) == ("train", 25_000)
    for source, steps in {"mnist": 1500, "tiny_imagenet": 500}.items():
        cpu = {"source": source, "preset": "cpu"}
        assert resolve(cpu).finetune_steps == steps
        assert resolve(cpu | {"method": "finetune"}).finetune_steps == 4 * steps
    assert resolve({"method": "pgd", "preset": "cpu"}).train_steps == 500
    small = {"method": "pgd", "preset": "cpu", "source": "tiny_imagenet"}
    assert resolve(small).train_steps == 294  # 1000 of IGAM in the place of 1700
    assert resolve({"method": "pgd", "preset": "cpu", "train_steps": 3}).train_steps == 3


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"method": "jarn", "teacher_gradient": "zero"}, r"matches J_t \(igam, l2, cosine\).*jarn"),
        ({"teacher_gradient": "plain", "teacher": "load"}, r"--teacher=train .*--teacher=load"),
    ],
)
def test_controls_that_contradict_the_method(chosen, message):
    with pytest.raises(UserError, match=message):
        resolve(chosen)


def test_objective_takes_its_settings_from_the_config():
    objective = resolve({"fidelity": "release", "lambda_adv": 3.0})
    assert isinstance(objective, Settings)
    assert objective.lambda_adv == 3.0
    assert objective.diff_reduction == "sum"


def test_the_later_file_wins_and_explained_says_which():
    chosen = {"method": "jarn", "preset": "cpu", "batch_size": 64, "seed": None}
    found = explained(chosen)
    # The preset's 0.02 belongs to IGAM's L_adv; JARN's weight is its own.
    assert found["lambda_adv"] == (1.0, "flags/methods/jarn.flags:3")
    assert found["batch_size"] == (64, "flag")
    assert found["seed"] == (0, "default")
    for name, file in (("student", "presets/cpu"), ("disc_channels", "transfers/mnist_to_cifar10")):
        assert found[name] == recipe(file)[name]


def test_a_place_is_the_line_that_says_it():
    for chosen in ({}, {"preset": "cpu", "fidelity": "best"}, {"source": "tiny_imagenet"}):
        for name, (_, place) in explained(chosen).items():
            if place.startswith("flags/"):
                path, number = place.rsplit(":", 1)
                line = (ROOT / path).read_text(encoding="utf-8").splitlines()[int(number) - 1]
                assert line.startswith(f"--{name}=")


def test_a_recipe_that_is_given_by_hand_keeps_its_place():
    """Else a row's 200 epochs would win over the size that a flag names."""
    row = recipe("transfers/tiny_imagenet_to_cifar10_pad")
    chosen = {name: value for name, (value, _) in row.items()}
    places = {name: place for name, (_, place) in row.items()}
    named = {name: chosen[name] for name in ("source", "target", "transform")}
    for more in ({"preset": "cpu"}, {"fidelity": "release"}, {"lambda_diff": 3.0}):
        by_hand = {name: place for name, place in places.items() if name not in more}
        assert resolve(chosen | more, by_hand) == resolve(named | more)
    elsewhere = {name: place.replace("flags/", "own/") for name, place in places.items()}
    assert resolve(chosen | {"preset": "cpu"}, elsewhere).train_steps == row["train_steps"][0]


# --- the rows of the paper -------------------------------------------------------------------------


def test_every_row_of_the_paper_is_there():
    assert transfers().keys() >= PAPER.keys()


@pytest.mark.parametrize("key", PAPER, ids="-".join)
def test_a_row_is_the_papers(key):
    epochs, lambda_adv, lambda_diff, channels, k = PAPER[key]
    config = resolve(chosen_by(key))
    assert config.transform == key[2]
    assert config.finetune_steps == epochs * EPOCH[key[1]]
    assert config.train_steps == 200 * EPOCH[key[1]]
    assert config.lambda_adv == lambda_adv
    assert config.lambda_diff == pytest.approx(lambda_diff * 32 / 65025)
    assert (config.disc_channels, config.disc_every) == (channels, k)
    assert (config.student, config.igam_start, config.pixel_noise) == ("wrn-32-10", 0, 0)
    release = resolve(chosen_by(key) | {"fidelity": "release"})
    assert {name: getattr(release, name) for name in RELEASE} == RELEASE
    assert (release.lambda_adv, release.lambda_diff) == (lambda_adv, lambda_diff)
    assert release.disc_channels == channels
    assert release.pixel_noise == (8 if key[:2] == ("cifar10", "cifar100") else 0)  # R10


@pytest.mark.parametrize("key", PAPER, ids="-".join)
def test_the_teacher_is_the_sources(key):
    config = resolve(chosen_by(key))
    published = {"mnist", "cifar10"}  # sources with a checkpoint of MadryLab's
    assert config.teacher == ("load" if key[0] in published else "train")
    assert config.teacher_checkpoint == "adv_trained"
    recipe = (config.teacher_steps, config.teacher_batch_size, config.teacher_attack_steps)
    assert recipe == ((100_000, 50, 40) if key[0] == "mnist" else (80_000, 128, 7))
    assert config.teacher_learning_rate == (1e-4 if key[0] == "mnist" else 0.1)
    if key[0] != "mnist":
        assert (SPECS[key[0]].eps, SPECS[key[0]].step_size) == (8 / 255, 2 / 255)


@pytest.mark.parametrize("preset", ["paper", "cpu"])
@pytest.mark.parametrize("source", ["mnist", "cifar100", "tiny_imagenet"])
def test_a_named_checkpoint_is_loaded(source, preset):
    chosen = {"source": source, "target": "cifar10", "preset": preset}
    chosen["teacher_checkpoint"] = "a.keras"
    assert resolve(chosen).teacher == "load"
    for trained in ({"teacher": "train"}, {"teacher_gradient": "plain"}):
        with pytest.raises(UserError, match=r"without --teacher=train .*received .*=a\.keras"):
            resolve(chosen | trained)


def test_builtin_images_have_a_teacher_that_is_trained_unless_one_is_named():
    assert resolve({"data": "builtin"}).teacher == "train"
    assert resolve({"data": "builtin", "preset": "cpu"}).teacher_steps == 5500
    assert resolve({"data": "builtin", "teacher_checkpoint": "a"}).teacher == "load"
    assert resolve({"data": "builtin", "teacher": "load"}).teacher == "load"


@pytest.mark.parametrize(
    ("pair", "default"),
    [
        (("mnist", "cifar10"), "grey_crop"),
        (("tiny_imagenet", "cifar10"), "resize"),
        (("cifar10", "cifar100"), "identity"),
        (("cifar100", "tiny_imagenet"), "resize"),
    ],
)
def test_a_pair_has_a_default_transform(pair, default):
    config = resolve({"source": pair[0], "target": pair[1]})
    assert config == resolve(chosen_by((*pair, default)))


def test_a_transform_that_is_no_row_of_the_pair():
    with pytest.raises(UserError, match=r"--transform=resize gives \[28, 28, 3\]$"):
        resolve({"source": "mnist", "target": "cifar10", "transform": "resize"})


# --- the files in flags/ ---------------------------------------------------------------------------


def every_file() -> set[str]:
    return {name.removesuffix(".flags") for name in flagfiles.names(flagfiles.FOLDER)}


@pytest.mark.parametrize("name", sorted(every_file()))
def test_a_recipe_says_what_it_is_for_and_sets_settings(name):
    text = (ROOT / "flags" / f"{name}.flags").read_text(encoding="utf-8")
    assert text.startswith("# ")
    values = {key: value for key, (value, _) in recipe(name).items()}
    assert values
    Config(**values)
    folder, _, own = name.rpartition("/")
    names_itself = {
        "presets": "preset", "fidelity": "fidelity", "methods": "method",
        "controls": "teacher_gradient",
    }  # fmt: skip
    if folder in names_itself:
        assert values[names_itself[folder]] == own


def test_the_readme_of_the_recipes_has_the_order_of_the_files():
    text = (ROOT / "flags" / "README.md").read_text(encoding="utf-8")
    rows = [line.split(" | ")[1] for line in text.splitlines() if line.startswith("| ")][1:]
    assert rows == [", ".join(f"`{name}`" for name in names) for names in ORDER.values()]


def test_every_recipe_is_named_by_a_choice_or_included():
    """A file under a wrong name would change nothing, and nobody would see it."""
    choices = {
        name: FIELDS[name].metadata["choices"]
        for name in ("preset", "fidelity", "method", "teacher_gradient")
    }
    choices |= {name: (*SPECS, "others") for name in ("source", "target")}
    choices["transfer"] = (*transfers().values(), "others")
    named = set()
    for pattern in itertools.chain(*ORDER.values()):
        fields = [field for _, field, _, _ in string.Formatter().parse(pattern) if field]
        for values in itertools.product(*(choices[field] for field in fields)):
            named.add(pattern.format(**dict(zip(fields, values, strict=True))))
    included, whole = set(), set()
    for name in every_file():
        text = (ROOT / "flags" / f"{name}.flags").read_text(encoding="utf-8")
        included |= set(re.findall(r"^--flagfile=(.+)\.flags$", text, re.MULTILINE))
        whole |= {name} if "/" not in name else set()  # for --flagfile, a run of its own
    assert every_file() == (named & every_file()) | included | whole


def test_a_new_recipe_is_a_file(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "flags", tmp_path / "flags")
    monkeypatch.setattr(flagfiles, "FOLDER", tmp_path / "flags")
    row = "--source=mnist\n--target=mnist\n--transform=identity\n--lambda_adv=3\n"
    (tmp_path / "flags" / "transfers" / "own.flags").write_text("# Own.\n" + row)
    for cached in (recipe, transfers):
        cached.cache_clear()
    try:
        found = explained({"target": "mnist", "preset": "cpu"})
        assert found["transform"] == ("identity", "flags/transfers/own.flags:4")
        assert found["lambda_adv"][1] == "flags/cpu/paper.flags:5"
        assert explained({"target": "mnist"})["lambda_adv"][0] == 3
        budget = "# Own.\n--learning_rate=0.05\n--train_steps=3400\n"
        (tmp_path / "flags" / "cpu" / "methods" / "igam.flags").write_text(budget)
        recipe.cache_clear()
        flagfiles.read.cache_clear()
        found = explained({"preset": "cpu", "fidelity": "best"})  # half the preset's batch
        assert (found["learning_rate"][0], found["train_steps"][0]) == (0.05, 6800)
    finally:
        for cached in (recipe, transfers):
            cached.cache_clear()


@pytest.mark.parametrize("line", ["--lambda_adv=much", "--lambda=1", "--jit=auto", "--teacher"])
def test_a_recipe_that_cannot_be_read_is_one_sentence(line, tmp_path, monkeypatch):
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets" / "wrong.flags").write_text(f"# Wrong.\n{line}\n")
    monkeypatch.setattr(flagfiles, "FOLDER", tmp_path)
    with pytest.raises(UserError, match=f"presets/wrong.flags:2; received {line}"):
        recipe("presets/wrong")


# --- flags, settings and who reads them ------------------------------------------------------------


@pytest.fixture
def parse():
    """Settings of a command line; leaves no flag behind."""
    before = set(flags.FLAGS)
    train.define_flags()

    def run(*arguments: str) -> Config:
        flags.FLAGS.unparse_flags()
        for name in FIELDS:
            flags.FLAGS[name].value = None
        flags.FLAGS(["train", *arguments])
        return train.config_from_flags()

    yield run
    for name in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, name)
    flags.FLAGS.unparse_flags()


def test_every_flag_reaches_its_setting(parse):
    for name, field in FIELDS.items():
        before, choices = getattr(resolve({}), name), field.metadata["choices"]
        if name in ("source", "target", "transform", "image_size") or name.endswith("_classes"):
            continue
        if choices:
            value = text = next(c for c in choices if c != before)
        elif field.type is bool:
            text = str(value := not before).lower()
        elif field.type is int:
            text = str(value := before + 1)
        elif field.type is float:
            text = str(value := before / 2 or 0.5)
        elif name in ("eps", "step_size"):
            value = text = "4/255"
        elif name in ("preprocess", "teacher_preprocess"):
            value = text = "-1..1"
        else:
            value, text = ((3, 4), "3,4") if name == "disc_channels" else ("other", "other")
        assert getattr(parse(f"--{name}={text}"), name) == value != before
    parsed = parse("--source_classes=4", "--target_classes=3")
    assert (parsed.source_classes, parsed.target_classes) == (4, 3)
    config = parse("--source=cifar100", "--target=tiny_imagenet", "--transform=crop")
    assert (config.source, config.target, config.transform) == (
        "cifar100", "tiny_imagenet", "crop",
    )  # fmt: skip


def test_every_setting_is_read_somewhere():
    """As an attribute of something that is called a config or settings, or by a method's trainer."""
    read = {name for method in METHODS for name in arguments_of(method).values()}
    for path in (ROOT / "igam_tf").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                of = getattr(node.value, "id", getattr(node.value, "attr", None))
                if of in ("c", "config", "base", "s", "settings"):
                    read.add(node.attr)
    assert FIELDS.keys() <= read
