"""Files and folders that appear whole or not at all.

A file is written under a hidden name beside its own, flushed to the disk, and renamed, which replaces what was there.
A folder is written into a hidden sibling, flushed and renamed likewise. On Linux an old folder and the new one are
exchanged in one step of the file system, so a crash leaves one or the other. Elsewhere the old one is first renamed to
`.NAME.old`: a crash between the two renames leaves it there.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import shutil
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from secateur.errors import FileError

_AT_FDCWD, _RENAME_NOREPLACE, _RENAME_EXCHANGE = -100, 1, 2


@contextlib.contextmanager
def new_folder(target: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield an empty folder to write into; when the block ends well it becomes `target`, otherwise it is removed.

    Args:
        target: an absolute path. Missing parents are made, and removed again if the block fails.
        overwrite: exchange it for what is there.
    Raises:
        FileError: the system refused something: a full disk, no permission, a target that appeared meanwhile.
    """
    made: list[Path] = []
    partial = target.with_name(f".{target.name}.{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:
        made = _make_parents(target.parent)
        _remove_stale(target)
        partial.mkdir()
        yield partial
        for file in partial.iterdir():
            flush(file)
        flush(partial)
        _put_in_place(partial, target, overwrite=overwrite)
        made = []
        flush(target.parent)
    except OSError as error:
        raise FileError(describe(error, target)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        for folder in reversed(made):
            with contextlib.suppress(OSError):
                folder.rmdir()


@contextlib.contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """Yield a path to write a file to; when the block ends well it is renamed to `target`, otherwise removed.

    Args:
        target: what is there is replaced; missing parents are made, and stay.
    Raises:
        FileError: the system refused something; what was there is untouched.
    """
    partial = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        flush(partial)
        partial.replace(target)
    except OSError as error:
        raise FileError(describe(error, target)) from error
    finally:
        partial.unlink(missing_ok=True)


def describe(error: OSError, target: Path) -> str:
    """Say what the system refused, where, and what to do."""
    advice = {
        errno.ENOSPC: "Free some space or choose another disk",
        errno.EDQUOT: "Free some of your quota or choose another disk",
        errno.EACCES: "Choose a place that you may write to",
        errno.EPERM: "Choose a place that you may write to",
        errno.EROFS: "Choose a place that can be written to",
        errno.EEXIST: "Choose another name, or overwrite it (overwrite=True, --force)",
        errno.ENOTEMPTY: "Choose another name, or overwrite it (overwrite=True, --force)",
    }.get(error.errno or 0, "Check the disk and the path")
    return f"'{target}' could not be written: {error.strerror or error}. What was there is unchanged. {advice}."


def flush(path: Path) -> None:
    """Force a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _make_parents(folder: Path) -> list[Path]:
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
    return missing[::-1]


def _remove_stale(target: Path) -> None:
    """Remove what killed processes of this machine left of the same folder."""
    start = f".{target.name}.{socket.gethostname()}-"
    for path in target.parent.iterdir():
        if path.name.startswith(start) and path.name.endswith(".partial"):
            pid = path.name.removeprefix(start).partition("-")[0]
            if pid.isdigit() and int(pid) != os.getpid() and not _is_alive(int(pid)):
                shutil.rmtree(path, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _put_in_place(partial: Path, target: Path, *, overwrite: bool) -> None:
    if not (overwrite and os.path.lexists(target)):
        if not _rename_flagged(partial, target, _RENAME_NOREPLACE):
            if os.path.lexists(target):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            partial.rename(target)
        return
    if _rename_flagged(partial, target, _RENAME_EXCHANGE):
        return  # what was there is now `partial`, which the caller removes
    old = target.with_name(f".{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    target.rename(old)
    try:
        partial.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _rename_flagged(source: Path, target: Path, flag: int) -> bool:
    """Linux's renameat2. False where the system or the file system has none; other failures raise OSError."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flag) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code))


def is_regular(path: Path) -> bool:
    """True for a plain file; links, pipes and devices are not."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False
