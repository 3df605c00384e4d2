"""Models from the Hugging Face hub: ``hf:OWNER/REPO[@REVISION][:FILE or quantisation]``.

``huggingface_hub`` does the transfer: its cache, token, progress bars and offline mode
(``HF_HOME``, ``HF_TOKEN``, ``HF_HUB_OFFLINE``, ``HF_ENDPOINT``) are those of every other
program.  This module says which files are wanted, compares what came with the hub's SHA-256,
and turns every failure into a named error.  Nothing is fetched unless a name starts with
``hf:`` or ``rllama pull`` is run.
"""

from __future__ import annotations

import hashlib
import re
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pyrllama.errors import (
    HubAccessError,
    HubChoiceError,
    HubConnectionError,
    HubError,
    HubNotFoundError,
    HubReferenceError,
)
from pyrllama.hub_files import HubFile, Selection, choose

if TYPE_CHECKING:
    from collections.abc import Iterator

    from huggingface_hub import HfApi

PREFIX = "hf:"
DEFAULT_REVISION = "main"
TIMEOUT_SECONDS = 15.0
"""How long the hub may take to answer what a repository holds."""

_REFERENCE = re.compile(
    r"(?P<repo>[\w.-]{1,96}/[\w.-]{1,96})(?:@(?P<revision>[^:]{1,200}))?(?::(?P<wanted>.{1,300}))?",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Reference:
    """A model on the hub; ``wanted`` is a file's path or a quantisation, None the best."""

    repo: str
    revision: str = DEFAULT_REVISION
    wanted: str | None = None


def parse_reference(text: str) -> Reference:
    """Return what ``[hf:]OWNER/REPO[@REVISION][:FILE or quantisation]`` names.

    Raises ``HubReferenceError`` for anything else.
    """
    match = _REFERENCE.fullmatch(text.removeprefix(PREFIX))
    if match is None:
        raise HubReferenceError(
            f"{text!r} names no model on the hub; write OWNER/REPO, and behind it if need be "
            f":FILE or :QUANTISATION, such as TheBloke/Llama-2-7B-GGUF:Q4_0"
        )
    return Reference(match["repo"], match["revision"] or DEFAULT_REVISION, match["wanted"])


def pull(reference: Reference, *, progress: bool = True) -> Path:
    """Fetch a model, or find it in the cache, and return its file or folder there.

    With ``progress`` bars are drawn on standard error, where that is a terminal.  Where the
    hub cannot be reached, what the cache holds of the revision is taken instead.  Raises a
    kind of ``HubError``.
    """
    with _named_errors(reference), _progress_bars(show=progress):
        api = _api()
        try:
            files = _remote_files(api, reference)
        except HubConnectionError as error:
            return _cached(reference, error)
        selection = _choose(reference, files)
        paths = [_fetch(api, reference, file) for file in selection.files]
    return paths[0].parent if selection.is_folder else paths[0]


def cache_folder() -> Path:
    """Return the folder that ``huggingface_hub`` keeps files in."""
    from huggingface_hub import constants  # noqa: PLC0415 - start-up time

    return Path(constants.HF_HUB_CACHE)


def _api() -> HfApi:
    from huggingface_hub import HfApi  # noqa: PLC0415 - start-up time

    return HfApi(library_name="pyrllama")


def _remote_files(api: HfApi, reference: Reference) -> list[HubFile]:
    """Return what the hub says that a repository holds; raises ``HubConnectionError``."""
    from huggingface_hub import errors  # noqa: PLC0415 - start-up time
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # noqa: PLC0415

    try:
        info = api.model_info(
            reference.repo,
            revision=reference.revision,
            files_metadata=True,
            timeout=TIMEOUT_SECONDS,
        )
    except errors.HfHubHTTPError as error:
        if error.response is not None and error.response.status_code >= 500:
            raise _unreachable(reference, error) from error
        raise
    except (HTTPError, OSError) as error:  # OSError: offline mode among others
        raise _unreachable(reference, error) from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, errors.HFValidationError):
            raise
        raise HubError(
            f"{reference.repo}: {api.endpoint} does not answer as the hub does ({error}); check "
            f"HF_ENDPOINT"
        ) from error
    return [
        HubFile(file.rfilename, file.size, file.lfs.sha256 if file.lfs else None)
        for file in info.siblings or []
    ]


def _choose(reference: Reference, files: list[HubFile]) -> Selection:
    try:
        return choose(files, reference.wanted)
    except HubChoiceError as error:
        raise HubChoiceError(f"{reference.repo}: {error}") from None


def _fetch(api: HfApi, reference: Reference, file: HubFile) -> Path:
    """Return where the cache has a file, after fetching and checking it if need be."""
    from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415 - start-up time

    before = try_to_load_from_cache(reference.repo, file.path, revision=reference.revision)
    path = Path(api.hf_hub_download(reference.repo, file.path, revision=reference.revision))
    if str(path) != before:
        _check_digest(path, file)
    return path


def _check_digest(path: Path, file: HubFile) -> None:
    """Remove a file that is not the one that the hub lists; raises ``HubError``."""
    if file.sha256 is None:
        return
    with path.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    if digest == file.sha256:
        return
    blob = path.resolve()
    path.unlink()
    blob.unlink(missing_ok=True)
    raise HubError(
        f"{file.path}: what arrived has SHA-256 {digest}, the hub lists {file.sha256}; it was "
        f"removed: pull again"
    )


def _cached(reference: Reference, error: HubConnectionError) -> Path:
    """Return the model from the cache alone; raises ``error`` if nothing of it is there."""
    from huggingface_hub import scan_cache_dir  # noqa: PLC0415 - start-up time
    from huggingface_hub.errors import CacheNotFound  # noqa: PLC0415

    try:
        repos = scan_cache_dir(cache_folder()).repos
    except CacheNotFound:
        raise error from None
    for repo in repos:
        if (repo.repo_type, repo.repo_id) != ("model", reference.repo):
            continue
        for revision in repo.revisions:
            if reference.revision in {*revision.refs, revision.commit_hash}:
                found = {
                    file.file_path.relative_to(revision.snapshot_path).as_posix(): file
                    for file in revision.files
                }
                files = [HubFile(name, found[name].size_on_disk) for name in sorted(found)]
                selection = _choose(reference, files)
                path = found[selection.files[0].path].file_path
                return path.parent if selection.is_folder else path
    raise error


def _unreachable(reference: Reference, error: BaseException) -> HubConnectionError:
    from huggingface_hub import errors  # noqa: PLC0415 - start-up time

    if isinstance(error, errors.OfflineModeIsEnabled):
        return HubConnectionError(
            f"{reference.repo} is not in the cache at {cache_folder()}, and HF_HUB_OFFLINE forbids "
            f"to fetch it; unset it and pull again"
        )
    return HubConnectionError(
        f"{reference.repo}: the hub cannot be reached ({_first_line(error)}), and the model is not "
        f"in the cache at {cache_folder()}; check the connection and pull again"
    )


@contextmanager
def _progress_bars(*, show: bool) -> Iterator[None]:
    """Hide the bars of ``huggingface_hub`` unless they are wanted."""
    from huggingface_hub.utils.tqdm import (  # noqa: PLC0415 - start-up time
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if show or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


@contextmanager
def _named_errors(reference: Reference) -> Iterator[None]:
    """Turn what ``huggingface_hub`` raises into errors that say how to go on."""
    from huggingface_hub import errors  # noqa: PLC0415 - start-up time
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # noqa: PLC0415

    repo = reference.repo
    try:
        yield
    except errors.GatedRepoError as error:
        raise HubAccessError(
            f"{repo} is gated: accept its conditions at https://huggingface.co/{repo}, then log in "
            f"with `hf auth login` or set HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise HubNotFoundError(
            f"there is no repository {repo}, or it is private; check the spelling, or set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise HubNotFoundError(f"{repo} has no revision {reference.revision!r}") from error
    except errors.HFValidationError as error:
        raise HubReferenceError(f"{repo!r} cannot be a repository: {_first_line(error)}") from error
    except errors.LocalEntryNotFoundError as error:
        raise _unreachable(reference, error.__cause__ or error) from error
    except errors.EntryNotFoundError as error:
        raise HubNotFoundError(
            f"{repo} has lost a file that it lists: {_first_line(error)}"
        ) from error
    except errors.HfHubHTTPError as error:
        raise _refused(repo, error) from error
    except (HTTPError, OSError, ValueError) as error:
        raise HubError(f"{repo}: the download failed: {_first_line(error)}; pull again") from error


def _refused(repo: str, error: Exception) -> HubError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in {401, 403}:
        return HubAccessError(
            f"{repo}: the hub refuses this token (status {status}); log in with `hf auth login` or "
            f"set HF_TOKEN to one that may read the repository"
        )
    return HubError(f"{repo}: the hub answers with an error: {_first_line(error)}")


def _first_line(error: BaseException) -> str:
    """Return what an error says, without the advice on the lines that follow."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
