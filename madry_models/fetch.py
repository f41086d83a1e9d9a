"""Downloads the checkpoints that the MadryLab challenges published.

python -m madry_models.fetch --model=mnist --name=adv_trained --dest=models/mnist

If a digest of the archive is published, it is checked. `<dest>/<name>` is complete or absent.
"""

import hashlib
import http.client
import os
import shutil
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from igam_tf.common.archives import archive_errors, open_zip
from igam_tf.common.errors import UserError, flags_alone
from igam_tf.common.files import hexdigest
from igam_tf.common.locks import take_lock

TIMEOUT = 15.0  # seconds without a byte
NAMES = ("natural", "adv_trained", "secret")


@dataclass(frozen=True)
class Source:
    """The address of an archive, and its published digests."""

    url: str
    git_blob_sha1: str | None = None
    sha256: str | None = None


_MNIST = "https://github.com/MadryLab/mnist_challenge_models/raw/master"
_CIFAR10 = "https://www.dropbox.com/s"
SOURCES = {
    ("mnist", "natural"): Source(
        f"{_MNIST}/natural.zip", "464dce662b07446b47bcef3f93245afebdb4e197"
    ),
    ("mnist", "adv_trained"): Source(
        f"{_MNIST}/adv_trained.zip", "5522769558a570818f3e79bf465dd7f094f5783a"
    ),
    ("mnist", "secret"): Source(
        f"{_MNIST}/secret.zip",
        "d8c1cbea2b5ddd98fbe8b870b00865c60d51f316",
        "14eea09c72092db5c2eb5e34cd105974f42569281d2f34826316e356d057f96d",
    ),
    ("cifar10", "natural"): Source(f"{_CIFAR10}/cgzd5odqoojvxzk/natural.zip?dl=1"),
    ("cifar10", "adv_trained"): Source(f"{_CIFAR10}/g4b6ntrp8zrudbz/adv_trained.zip?dl=1"),
    ("cifar10", "secret"): Source(
        f"{_CIFAR10}/ywc0hg8lr5ba8zd/secret.zip?dl=1",
        sha256="555be6e892372599380c9da5d5f9802f9cbd098be8a47d24d96937a002305fd4",
    ),
}


def fetch(model: str, name: str, *, dest: str | Path | None = None) -> Path:
    """Downloads, checks and unpacks one published checkpoint; does nothing if it already exists.

    Args:
        model: "mnist" or "cifar10".
        name: "natural", "adv_trained" or "secret".
        dest: folder to put it in; by default models/<model> below the current one.

    Returns:
        The checkpoint's folder, `<dest>/<name>`.

    Raises:
        UserError: a name is unknown, there is no network, the digest is wrong, or the archive is
            not one or unsafe.
    """
    if (model, name) not in SOURCES:
        known = ", ".join("/".join(key) for key in SOURCES)
        raise UserError(f"unknown checkpoint {model}/{name}: expected one of {known}.")
    target = Path(dest or Path("models") / model).expanduser() / name
    if _is_there(target):
        return target
    lock_path = target.with_name(f".{name}.lock")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = take_lock(lock_path, wait=True)
    except OSError as error:
        raise UserError(
            f"expected a folder to write to in {target.parent}; {error.strerror}"
        ) from None
    with lock:
        try:
            if not _is_there(target):  # another process can have fetched it meanwhile
                _fetch(SOURCES[model, name], target)
        finally:
            lock_path.unlink(missing_ok=True)
    return target


def _is_there(target: Path) -> bool:
    if found := any(target.glob("*.index")):
        print(f"{target} is already there.")
    return found


def _fetch(source: Source, target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} is in the way: expected a checkpoint or nothing; remove it.")
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a killed process
    try:
        partial.mkdir(parents=True)
        archive = partial / "archive.zip"
        print(f"downloading {source.url}")
        _download(source.url, archive)
        print(_check_digest(archive, source))
        with archive_errors(), open_zip(archive) as bundle:
            bundle.extractall(partial / "unpacked")
        os.replace(_checkpoint_folder(partial / "unpacked"), target)
    except (UserError, OSError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it is also an open connection
        reason = str(error).strip(".<>") or type(error).__name__
        raise UserError(
            f"cannot fetch {source.url}: {reason}; put its files into {target} by hand, or name a "
            "folder that has them (--teacher_checkpoint)."
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"unpacked to {target}")


def _download(url: str, path: Path) -> None:
    with urllib.request.urlopen(url, timeout=TIMEOUT) as response, path.open("wb") as out:
        length = int(response.headers.get("Content-Length") or 0)
        with tqdm(total=length or None, unit="B", unit_scale=True, disable=None) as bar:
            while block := response.read(1 << 20):
                bar.update(out.write(block))
        if out.tell() < length:
            raise UserError(f"the connection broke after {out.tell()} of {length} bytes")
    if not zipfile.is_zipfile(path):
        with path.open("rb") as downloaded:
            head = downloaded.read(60)
        raise UserError(f"expected a zip archive; received data that begin with {head!r}")


def _check_digest(path: Path, source: Source) -> str:
    """Returns a line about the archive's digest; raises a UserError if it is not the published one."""
    header = b"blob %d\0" % path.stat().st_size  # git hashes this header before the bytes of a file
    sha1 = hexdigest(path, hashlib.sha1(header))
    sha256 = hexdigest(path, hashlib.sha256())
    pairs = (("git blob SHA-1", source.git_blob_sha1, sha1), ("SHA-256", source.sha256, sha256))
    published = [pair for pair in pairs if pair[1]]
    for kind, expected, received in published:
        if received != expected:
            raise UserError(f"expected {kind} {expected}; received {received}")
    if not published:
        return f"no digest is published for this file, so it is unverified; its SHA-256: {sha256}"
    return f"{' and '.join(kind for kind, _, _ in published)} as published"


def _checkpoint_folder(folder: Path) -> Path:
    """The only folder with a checkpoint; its path differs between archives."""
    found = {p.parent for p in folder.rglob("*.index") if not p.name.startswith("._")}
    if len(found) != 1:
        raise UserError(f"expected one checkpoint in the archive; received {len(found)}")
    return found.pop()


def _main(argv: list[str]) -> None:
    from absl import flags

    flags_alone(argv)
    fetch(flags.FLAGS.model, flags.FLAGS.name, dest=flags.FLAGS.dest)


def program() -> None:
    """The command line."""
    # Flags are defined here, because other programs import this module.
    from absl import flags

    from igam_tf.common.program import run_entry_point

    flags.DEFINE_enum(
        "model",
        None,
        ("mnist", "cifar10"),
        "The challenge that published the model.",
        required=True,
    )
    flags.DEFINE_enum("name", "adv_trained", NAMES, "The name of the model in this challenge.")
    flags.DEFINE_string(
        "dest", None, "Folder in which to create the folder <name>; by default models/<model>."
    )
    run_entry_point(_main)


if __name__ == "__main__":
    program()
