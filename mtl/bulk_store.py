"""Output that survives a kill at any moment: parts that are put in place whole, joined when all are there.

A part is a Parquet file of fixed input rows. It is written under another name, flushed to the disk, and renamed, so a
part that bears its name is complete; what a killed process was writing is written again. A manifest beside them says
of which input, model and settings they are.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
from filelock import FileLock, Timeout

MANIFEST = "_run.json"
_METADATA = b"mtl"


@contextlib.contextmanager
def only_writer(target: Path) -> Iterator[None]:
    """Lets one process at a time write an output: two would take each other's parts for their own, and remove them.

    The lock goes with the process that holds it, however that ends.

    Raises:
        FileExistsError: If another process is writing it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    file = target.with_name(target.name + ".lock")
    lock = FileLock(file, blocking=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise FileExistsError(
            f"Another process is writing {target}. Wait for it, or give another --output."
        ) from error
    try:
        yield
    finally:
        file.unlink(missing_ok=True)  # While it is held: who waits for a file that is gone takes a new one.
        lock.release()


class PartStore:
    """The parts of an output.

    Args:
        target: The output: a Parquet file, or with `is_folder` the folder of the parts.
        run: What the output depends on, JSON-ready: another value of it is another output.
        is_folder: Whether parts stay parts.
    """

    def __init__(self, target: Path, run: Mapping[str, Any], *, is_folder: bool = False) -> None:
        self.target = target
        self.folder = target if is_folder else target.with_name(target.name + ".parts")
        self._run = json.loads(json.dumps(run))
        self._is_folder = is_folder

    def begin(self, *, overwrite: bool = False) -> bool:
        """Makes the folder, or goes on with it; returns whether there is nothing left to do.

        Args:
            overwrite: Whether an output, or parts, of something else are removed.

        Raises:
            FileExistsError: If there are such, and they are not to be overwritten; the message says what differs.
        """
        self._check_kind()
        if not self._is_folder and self.target.exists():
            written = self._run_of_target()
            if written == self._run:
                shutil.rmtree(self.folder, ignore_errors=True)  # Of a process that was killed at the very end.
                return True
            self._check_may_go(self.target, written, overwrite)  # It goes when the new one is whole.
        manifest = self._read_manifest()
        if manifest is not None and manifest["run"] != self._run:
            if self.done():  # Otherwise nothing is lost with it.
                self._check_may_go(self.folder, manifest["run"], overwrite)
            shutil.rmtree(self.folder)
        elif self._is_folder and manifest is not None and manifest["is_complete"]:
            return True
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob("*.tmp"):
            leftover.unlink()
        self._write_manifest(is_complete=False)
        return False

    def done(self) -> set[int]:
        """Returns the numbers of the parts that are there."""
        return {int(file.stem.removeprefix("part-")) for file in self.folder.glob("part-*.parquet")}

    def count_rows(self) -> int:
        """Returns how many rows the parts that are there have."""
        return sum(pyarrow.parquet.read_metadata(self.part(number)).num_rows for number in self.done())

    def part(self, number: int) -> Path:
        """Returns the file of a part."""
        return self.folder / f"part-{number:06d}.parquet"

    def write(self, number: int, table: pa.Table) -> None:
        """Writes a part, whole or not at all."""
        file = self.part(number)
        draft = file.with_suffix(f".{os.getpid()}.tmp")
        pyarrow.parquet.write_table(table, draft, compression="zstd")
        _put_in_place(draft, file)

    def finish(self) -> Path:
        """Joins the parts into the output, or says of their folder that it is complete; returns the output."""
        if self._is_folder:
            self._write_manifest(is_complete=True)
            return self.target
        files = [self.part(number) for number in sorted(self.done())]
        schema = pa.unify_schemas([pyarrow.parquet.read_schema(file).remove_metadata() for file in files])
        schema = schema.with_metadata({_METADATA: json.dumps(self._run).encode()})
        draft = self.folder / "joined.tmp"
        with pyarrow.parquet.ParquetWriter(draft, schema, compression="zstd") as writer:
            for file in files:
                table = pyarrow.parquet.read_table(file, partitioning=None)
                writer.write_table(table.cast(schema))
        _put_in_place(draft, self.target)
        shutil.rmtree(self.folder)
        return self.target

    def _check_kind(self) -> None:
        if self._is_folder and self.target.is_file():
            raise FileExistsError(f"The output {self.target} is a file, and parts go into a folder. Give another.")
        if not self._is_folder and self.target.is_dir():
            raise FileExistsError(
                f"The output {self.target} is a folder. Give the name of a file, or --parts to write parts into it."
            )

    def _check_may_go(self, path: Path, run: Mapping[str, Any] | None, overwrite: bool) -> None:
        if not overwrite:
            what = "was not written by this command" if run is None else f"differs in: {_differences(run, self._run)}"
            raise FileExistsError(
                f"The output {path} is there, and {what}. Give another --output, or --overwrite to replace it."
            )

    def _run_of_target(self) -> Any:
        try:
            metadata = pyarrow.parquet.read_schema(self.target).metadata or {}
        except (pa.ArrowException, OSError):  # Another file than a Parquet one, or a folder.
            return None
        return json.loads(metadata[_METADATA]) if _METADATA in metadata else None

    def _read_manifest(self) -> dict[str, Any] | None:
        """Returns what the folder of the parts is of, and whether it is complete; None if there is nothing in it."""
        if not self.folder.is_dir() or not any(self.folder.iterdir()):
            return None
        manifest = self.folder / MANIFEST
        if not manifest.is_file():
            raise FileExistsError(
                f"The folder {self.folder} has files that this command did not write. Give another --output."
            )
        found: dict[str, Any] = json.loads(manifest.read_text(encoding="utf-8"))
        return found

    def _write_manifest(self, *, is_complete: bool) -> None:
        draft = self.folder / f"{MANIFEST}.tmp"
        draft.write_text(json.dumps({"run": self._run, "is_complete": is_complete}, indent=1) + "\n", encoding="utf-8")
        _put_in_place(draft, self.folder / MANIFEST)


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    return ", ".join(name for name in {**before, **now} if before.get(name) != now.get(name))


def _put_in_place(draft: Path, file: Path) -> None:
    """Renames a file once its content is on the disk: after a power cut, too, the name stands for all of it."""
    with draft.open("rb+") as content:
        os.fsync(content.fileno())
    os.replace(draft, file)
