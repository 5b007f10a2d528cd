"""What a run says where the disk that its folder is on is full or broken."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from fedmr_merge.errors import OutputError, RunError
from fedmr_merge.runs.folder import RunFolder
from fedmr_merge.runs.names import find_checkpoints

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_BROKEN = (errno.EIO, errno.EROFS, errno.ESTALE)


@contextlib.contextmanager
def explained_full_disk(folder: RunFolder) -> Iterator[None]:
    """Within the block, a full disk is an error that says what is saved, and that the same command resumes."""
    try:
        yield
    except (OSError, OutputError) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(cause, OSError) or cause.errno not in (*_FULL, *_BROKEN):
            raise
        places = find_checkpoints(folder.checkpoints)
        saved = f"rounds 1 to {places[-1].round} are saved" if places else "no round is saved yet"
        is_full = cause.errno in _FULL
        reason = "the disk is full" if is_full else f"{cause.filename or 'a file'}: {cause.strerror}"
        remedy = "free some space" if is_full else "check the disk"
        raise RunError(
            f"{folder.path}: {reason}; {saved}",
            hint=f"{remedy} and type the same command again: it resumes the run",
            path=folder.path,
        ) from error
