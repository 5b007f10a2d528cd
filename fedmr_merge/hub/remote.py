"""Which account may push to which repository, and what is there already: all that is asked before a push begins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fedmr_merge.errors import HubError
from fedmr_merge.hub.listing import HubFile, git_blob_digest

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile

    from fedmr_merge.hub.client import Hub

_TOKENS = "https://huggingface.co/settings/tokens"
_WRITE_HINT = f"create a token with write permission at {_TOKENS}, then `hf auth login`, or set HF_TOKEN"
_READERS = ("read", "no_access")
_MAX_CARD_BYTES = 4 << 20


@dataclass(frozen=True)
class Remote:
    """A repository as it is before a push."""

    exists: bool
    private: bool = False
    head: str | None = None  #: the commit that the push builds on
    branch_exists: bool = False  #: whether the branch to push to is there
    tags: Mapping[str, str] = field(default_factory=dict)  #: tag → commit
    files: Mapping[str, HubFile] = field(default_factory=dict)  #: at `head`


def check_account(hub: Hub, repo_id: str, *, pull_request: bool) -> str:
    """Return the name of the token's owner.

    Raises HubError when there is no token, when it is not valid, when it may only read, or when its owner may not write
    to the repository's namespace. A pull request needs a token that may write, but not a membership in the namespace.
    """
    if hub.token is None:
        raise HubError(f"{repo_id}: no token was given, and a push needs one", hint=_WRITE_HINT)
    answer = hub.ask(repo_id, hub.api.whoami)
    name = str(answer["name"])
    token = _mapping(_mapping(answer.get("auth")).get("accessToken"))
    namespace = repo_id.split("/")[0]
    if token.get("role") == "read" or not _may_write(token, namespace, repo_id, pull_request):
        raise HubError(f"{repo_id}: the token of {name} may only read", hint=_WRITE_HINT)
    orgs = {str(org.get("name")): org.get("roleInOrg") for org in answer.get("orgs") or () if isinstance(org, dict)}
    if pull_request or namespace == name:
        return name
    spelled = next((known for known in (name, *orgs) if known.lower() == namespace.lower()), None)
    if namespace not in orgs and spelled is not None:
        right = f"{spelled}/{repo_id.split('/')[1]}"
        raise HubError(f"{repo_id}: the Hub spells this namespace {spelled}", hint=f"push to {right}")
    if namespace not in orgs:
        hint = f"push to {name}/{repo_id.split('/')[1]}, or propose it with --create-pr"
        raise HubError(f"{repo_id}: {name} is not a member of {namespace}", hint=hint)
    if orgs[namespace] in _READERS:
        raise HubError(f"{repo_id}: {name} may only read in {namespace}", hint=f"ask an admin of {namespace}")
    return name


def _may_write(token: Mapping[str, Any], namespace: str, repo_id: str, pull_request: bool) -> bool:
    """Whether a token may write here: a fine-grained one lists the places, any other may write everywhere."""
    if token.get("role") != "fineGrained":
        return True
    needed = {"repo.write", "discussion.write"} if pull_request else {"repo.write"}
    grants = _mapping(token.get("fineGrained"))
    for scope in grants.get("scoped") or ():
        entity = _mapping(scope.get("entity")).get("name")
        if needed & set(scope.get("permissions") or ()) and (pull_request or entity in (namespace, repo_id)):
            return True
    return bool(needed & set(grants.get("global") or ()))


def look(hub: Hub, repo_id: str, revision: str | None) -> Remote:
    """Return the state of a repository: whether it exists, and what the branch to push to holds.

    Raises HubError when it is gated, when it cannot be asked, or when the Hub calls it by another name.
    """
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    def find() -> Any:
        try:
            return hub.api.model_info(repo_id)
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:
            return None

    info = hub.ask(repo_id, find)
    if info is None:
        return Remote(exists=False)
    if info.id != repo_id:  # of another case, or renamed: the Hub redirects reading, but not all of a push
        raise HubError(f"{repo_id}: the Hub calls this repository {info.id}", hint=f"push to {info.id}")
    refs = hub.ask(repo_id, lambda: hub.api.list_repo_refs(repo_id, include_pull_requests=True))
    heads = {ref.name: ref.target_commit for ref in refs.branches}
    heads |= {ref.ref: ref.target_commit for ref in refs.pull_requests or ()}
    branch = revision or "main"
    head = hub.commit_id(heads.get(branch) or info.sha, repo_id)
    tags = {ref.name: ref.target_commit for ref in refs.tags}
    return Remote(True, bool(info.private), head, branch in heads, tags, remote_files(hub, repo_id, head))


def remote_files(hub: Hub, repo_id: str, revision: str) -> dict[str, HubFile]:
    """Return the files of a repository at a revision, with their hashes."""
    from huggingface_hub.hf_api import RepoFile

    def listing() -> dict[str, HubFile]:
        items = hub.api.list_repo_tree(repo_id, recursive=True, revision=revision)
        return {item.path: _as_file(item) for item in items if isinstance(item, RepoFile)}

    return hub.ask(f"{repo_id}@{revision}", listing)


def read_card(hub: Hub, repo_id: str, revision: str, path: str, file: HubFile) -> str:
    """Return the text of a repository's card at a commit.

    Raises HubError when it cannot be fetched, when it is not what the Hub lists, or when it is not UTF-8.
    """
    subject = f"{repo_id}@{revision}: {path}"
    if file.size > _MAX_CARD_BYTES:
        raise HubError(f"{subject}: is larger than {_MAX_CARD_BYTES >> 20} MB", hint="shorten it on the Hub")
    content = hub.read_range(repo_id, revision, path, 0, file.size, file.size) if file.size else b""
    digest = git_blob_digest(len(content))
    digest.update(content)
    if file.git_sha1 is not None and digest.hexdigest() != file.git_sha1:
        raise HubError(f"{subject}: the endpoint sends other bytes than it lists")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise HubError(f"{subject}: is not UTF-8", hint="replace it on the Hub") from error


def commit_descriptions(hub: Hub, repo_id: str, revision: str) -> list[str]:
    """Return what the commits of a repository say below their titles, newest first."""
    commits = hub.ask(f"{repo_id}@{revision}", lambda: hub.api.list_repo_commits(repo_id, revision=revision))
    return [str(commit.message or "") for commit in commits]


def check_card(hub: Hub, repo_id: str, card: str) -> None:
    """Raise HubError when the Hub would refuse a card: asked before a repository is created for it."""
    url, content = f"{hub.endpoint}/api/validate-yaml", {"content": card, "repoType": "model"}

    def call() -> Any:
        answer = hub.client.post(url, json=content, headers=hub.headers)
        return answer.json() if answer.status_code in (200, 400) else {}  # the commit itself is checked again

    errors = _mapping(hub.retry(repo_id, call)).get("errors")
    if isinstance(errors, list) and errors:
        words = "; ".join(" ".join(str(_mapping(error).get("message", error)).split())[:200] for error in errors[:3])
        raise HubError(f"{repo_id}: the Hub refuses the metadata of README.md: {words}", hint="fix it, then push again")


def _as_file(item: RepoFile) -> HubFile:
    if item.lfs is not None:
        return HubFile(item.lfs.size, sha256=item.lfs.sha256)
    return HubFile(item.size, git_sha1=item.blob_id)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
