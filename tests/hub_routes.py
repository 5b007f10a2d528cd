"""What a small Hub knows and answers: repositories, commits and one function for each route of the protocol."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import yaml

if TYPE_CHECKING:
    from hub_server import HubServer

LFS_SUFFIXES = (".safetensors", ".png", ".bin")
DATE = "2026-01-01T00:00:00.000Z"


@dataclass(frozen=True)
class User:
    name: str
    role: str = "write"
    orgs: Mapping[str, str] = field(default_factory=dict)  #: organisation → role in it
    fine_grained: Mapping[str, list[str]] | None = None  #: entity → permissions


@dataclass(frozen=True)
class Blob:
    oid: str  #: git's name of the blob; of an LFS file: of its pointer
    size: int
    sha256: str | None = None  #: of an LFS file
    content: bytes | None = None  #: of any other

    @classmethod
    def regular(cls, content: bytes) -> Blob:
        return cls(git_oid(content), len(content), content=content)

    @classmethod
    def lfs(cls, sha256: str, size: int) -> Blob:
        return cls(git_oid(lfs_pointer(sha256, size)), size, sha256)

    def listed(self) -> dict[str, Any]:
        if self.sha256 is None:
            return {"size": self.size, "oid": self.oid}
        pointer = len(lfs_pointer(self.sha256, self.size))
        return {
            "size": self.size,
            "oid": self.oid,
            "lfs": {"oid": self.sha256, "size": self.size, "pointerSize": pointer},
        }


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    title: str
    tree: Mapping[str, Blob]
    description: str = ""


@dataclass
class Repo:
    name: str
    private: bool = False
    gated: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)  #: refs/heads/main → commit
    pull_requests: list[dict[str, Any]] = field(default_factory=list)

    def resolve(self, revision: str) -> Commit | None:
        names = (revision, f"refs/heads/{revision}", f"refs/tags/{revision}")
        oid = next((self.refs[name] for name in names if name in self.refs), revision)
        return self.commits.get(oid)

    def commit(
        self, ref: str, title: str, tree: Mapping[str, Blob], parent: str | None, description: str = ""
    ) -> Commit:
        oid = hashlib.sha1(f"{self.name} {ref} {len(self.commits)} {title}".encode()).hexdigest()
        self.commits[oid] = Commit(oid, parent, title, dict(tree), description)
        self.refs[ref] = oid
        return self.commits[oid]

    def history(self, revision: str = "main") -> list[Commit]:
        commit, found = self.resolve(revision), []
        while commit is not None:
            found.append(commit)
            commit = self.commits.get(commit.parent or "")
        return found


class Refusal(Exception):  # noqa: N818 - an answer, not a fault
    def __init__(self, status: int, message: str, code: str | None = None, **content: Any) -> None:
        super().__init__(message)
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.reply = Reply(status, json.dumps({"error": message, **content}).encode(), headers)


@dataclass
class Reply:
    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    body: bytes
    user: User | None

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def lfs_pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def is_lfs(name: str) -> bool:
    return name.endswith(LFS_SUFFIXES)


ROUTES: list[tuple[str, re.Pattern[str], Callable[..., Reply]]] = []


def route(method: str, pattern: str) -> Callable[[Callable[..., Reply]], Callable[..., Reply]]:
    name = pattern.replace("{id}", "(?P<name>[^/]+/[^/]+)").replace("{rev}", "(?P<revision>[^/]+)")

    def register(answer: Callable[..., Reply]) -> Callable[..., Reply]:
        ROUTES.extend((one, re.compile(name), answer) for one in method.split("|"))
        return answer

    return register


def reply(content: Any, status: int = 200, **headers: str) -> Reply:
    return Reply(status, json.dumps(content).encode(), {k.replace("_", "-"): v for k, v in headers.items()})


@route("GET", "/api/whoami-v2")
def whoami(hub: HubServer, request: Request) -> Reply:
    user = request.user
    if user is None:
        raise Refusal(401, "Invalid username or password.")
    token: dict[str, Any] = {"displayName": "test", "role": user.role}
    if user.fine_grained is not None:
        scopes = [{"entity": {"name": n}, "permissions": p} for n, p in user.fine_grained.items()]
        token["fineGrained"] = {"scoped": scopes, "global": []}
    orgs = [{"name": name, "roleInOrg": role} for name, role in user.orgs.items()]
    return reply({"type": "user", "name": user.name, "fullname": "", "orgs": orgs, "auth": {"accessToken": token}})


@route("POST", "/api/repos/create")
def create_repo(hub: HubServer, request: Request) -> Reply:
    asked, user = request.json, request.user
    name = f"{asked['organization'] or (user.name if user else '')}/{asked['name']}"
    if user is None or user.role == "read" or not hub._belongs(user, name):
        raise Refusal(403, "You don't have the rights to create a model under this namespace")
    if name in hub.repos:
        raise Refusal(409, "You already created this model repo", url=f"{hub.endpoint}/{name}")
    hub.add_repo(name, private=asked.get("visibility") == "private")
    return reply({"url": f"{hub.endpoint}/{name}", "name": name})


@route("POST", "/api/validate-yaml")
def validate_yaml(hub: HubServer, request: Request) -> Reply:
    head = re.match(r"---\n(.*?)\n---", request.json["content"], re.DOTALL)
    metadata = yaml.safe_load(head[1]) if head else {}
    if metadata.get("license") == "no-such-license":
        return reply({"errors": [{"message": '"license" must be one of [...]'}], "warnings": []}, 400)
    return reply({"errors": [], "warnings": [] if metadata else [{"message": "empty or missing yaml metadata"}]})


@route("GET", "/api/(?:models|datasets)/{id}(?:/revision/{rev})?")
def model_info(hub: HubServer, request: Request, name: str, revision: str | None) -> Reply:
    repo = hub.reader(request, name)
    commit = hub.committed(repo, revision or "main")
    siblings = []
    for path, blob in commit.tree.items():
        item: dict[str, Any] = {"rfilename": path}
        if "blobs" in request.query:
            listed = blob.listed()
            lfs = {"lfs": {**listed["lfs"], "sha256": listed["lfs"]["oid"]}} if "lfs" in listed else {}
            item |= {"size": listed["size"], "blobId": listed["oid"], **lfs}
        siblings.append(item)
    card = commit.tree.get("README.md")
    head = re.match(rb"---\n(.*?)\n---", (card.content or b"") if card else b"", re.DOTALL)
    info = {"id": repo.name, "sha": commit.oid, "private": repo.private, "gated": "manual" if repo.gated else False}
    info |= {"tags": [], "lastModified": DATE, "createdAt": DATE, "siblings": siblings}
    return reply(info | ({"cardData": yaml.safe_load(head[1])} if head else {}))


@route("GET", "/api/datasets/{id}/tree/{rev}(?:/(?P<folder>.+))?")
def tree_of_data(hub: HubServer, request: Request, name: str, revision: str, folder: str | None) -> Reply:
    """One level of a folder, as the library `datasets` asks for it."""
    files = hub.committed(hub.reader(request, name), revision).tree
    above = "" if folder is None else f"{unquote(folder)}/"
    inner = {path: blob for path, blob in files.items() if path.startswith(above)}
    folders = {above + path.removeprefix(above).split("/")[0] for path in inner if "/" in path.removeprefix(above)}
    if not inner:
        raise Refusal(404, "Entry not found", "EntryNotFound")
    found = [{"type": "file", "path": p, **b.listed()} for p, b in inner.items() if "/" not in p.removeprefix(above)]
    return reply([*found, *({"type": "directory", "path": each, "oid": "0", "size": 0} for each in sorted(folders))])


@route("GET", "/api/models/{id}/tree/{rev}")
def tree(hub: HubServer, request: Request, name: str, revision: str) -> Reply:
    items = list(hub.committed(hub.reader(request, name), revision).tree.items())
    start = int(request.query.get("cursor", ["0"])[0])
    page = [{"type": "file", "path": p, **b.listed()} for p, b in items[start : start + hub.page_items]]
    answer = reply(page)
    if start + hub.page_items < len(items):
        query = f"recursive=true&cursor={start + hub.page_items}"
        answer.headers["Link"] = f'<{hub.endpoint}/api/models/{name}/tree/{revision}?{query}>; rel="next"'
    return answer


@route("GET", "/api/models/{id}/refs")
def refs(hub: HubServer, request: Request, name: str) -> Reply:
    known = hub.reader(request, name).refs.items()
    kinds = {"branches": "refs/heads/", "tags": "refs/tags/", "pullRequests": "refs/pr/", "converts": "refs/convert/"}
    return reply(
        {
            kind: [{"name": r.removeprefix(at), "ref": r, "targetCommit": oid} for r, oid in known if r.startswith(at)]
            for kind, at in kinds.items()
        }
    )


@route("GET", "/api/models/{id}/commits/{rev}")
def commits(hub: HubServer, request: Request, name: str, revision: str) -> Reply:
    found = hub.reader(request, name).history(unquote(revision))
    return reply(
        [{"id": c.oid, "authors": [], "date": DATE, "title": c.title, "message": c.description} for c in found]
    )


@route("GET", "/api/models/{id}/discussions")
def discussions(hub: HubServer, request: Request, name: str) -> Reply:
    wanted = {key: request.query[key][0] for key in ("status", "author") if key in request.query}
    found = [
        pr
        for pr in hub.reader(request, name).pull_requests
        if all((pr[k]["name"] if k == "author" else pr[k]) == v for k, v in wanted.items())
    ]
    return reply({"discussions": found, "count": len(found), "start": 0})


@route("POST", "/api/models/{id}/branch/{rev}")
def branch(hub: HubServer, request: Request, name: str, revision: str) -> Reply:
    repo, ref = hub.writer(request, name), f"refs/heads/{unquote(revision)}"
    if ref in repo.refs:
        raise Refusal(409, "Reference already exists")
    repo.refs[ref] = hub.committed(repo, request.json.get("startingPoint", "main")).oid
    return reply({})


@route("POST", "/api/models/{id}/tag/{rev}")
def tag(hub: HubServer, request: Request, name: str, revision: str) -> Reply:
    repo, ref = hub.writer(request, name), f"refs/tags/{request.json['tag']}"
    if ref in repo.refs:
        raise Refusal(409, "Tag reference already exists")
    repo.refs[ref] = hub.committed(repo, revision).oid
    return reply({})


@route("POST", "/api/models/{id}/preupload/{rev}")
def preupload(hub: HubServer, request: Request, name: str, revision: str) -> Reply:
    repo = hub.writer(request, name, pull_request="create_pr" in request.query)
    known = hub.committed(repo, revision).tree
    files = []
    for file in request.json["files"]:
        path = file["path"]
        mode = "lfs" if is_lfs(path) or file["size"] > 10_000_000 else "regular"
        answer = {"path": path, "uploadMode": mode, "shouldIgnore": False}
        if path in known:
            answer["oid"] = known[path].sha256 or known[path].oid
        files.append(answer)
    return reply({"files": files, "commitOid": hub.committed(repo, revision).oid})


@route("POST", r"/{id}\.git/info/lfs/objects/batch")
def lfs_batch(hub: HubServer, request: Request, name: str) -> Reply:
    objects = []
    for wanted in request.json["objects"]:
        answer = {"oid": wanted["oid"], "size": wanted["size"]}
        if wanted["oid"] not in hub.stored:
            href = f"http://{hub.storage_host}:{hub.port}/storage/{wanted['oid']}?X-Amz-Signature=signature"
            answer["actions"] = {"upload": {"href": href}}
        objects.append(answer)
    return reply({"transfer": "basic", "objects": objects})


@route("PUT", "/storage/(?P<oid>[0-9a-f]{64})")
def store(hub: HubServer, request: Request, oid: str) -> Reply:
    if hashlib.sha256(request.body).hexdigest() != oid:
        raise Refusal(400, "The content does not match its name")
    hub.stored[oid] = request.body
    return Reply(200)


@route("POST", "/api/models/{id}/commit/{rev}")
def commit(hub: HubServer, request: Request, name: str, revision: str) -> Reply:
    pull_request = "create_pr" in request.query
    repo = hub.writer(request, name, pull_request=pull_request)
    head = hub.committed(repo, revision)
    lines = [json.loads(line) for line in request.body.splitlines()]
    header, files = lines[0]["value"], dict(head.tree)
    if header.get("parentCommit", head.oid) != head.oid:
        raise Refusal(412, "A commit has happened since. Please refresh and try again.")
    for line in lines[1:]:
        value, kind = line["value"], line["key"]
        if kind == "file":
            files[value["path"]] = Blob.regular(base64.b64decode(value["content"]))
        elif kind == "lfsFile":
            if value["oid"] not in hub.stored and hub.storage is None:
                raise Refusal(400, f"LFS pointer pointed to a file that does not exist: {value['oid']}")
            files[value["path"]] = Blob.lfs(value["oid"], value["size"])
        else:
            assert kind == "deletedFile", kind
            del files[value["path"]]
    number = len(repo.pull_requests) + 1
    ref = f"refs/pr/{number}" if pull_request else f"refs/heads/{unquote(revision)}"
    target = unquote(revision) if unquote(revision) in repo.refs else ref
    made = repo.commit(target, header["summary"], files, head.oid, header.get("description", ""))
    answer = {"success": True, "commitOid": made.oid, "commitUrl": f"{hub.endpoint}/{name}/commit/{made.oid}"}
    if pull_request:
        about = {"title": header["summary"], "num": number, "status": "open", "createdAt": DATE, "isPullRequest": True}
        author = request.user.name if request.user else ""
        repo.pull_requests.append({**about, "author": {"name": author}, "repo": {"name": name, "type": "model"}})
        answer["pullRequestUrl"] = f"{hub.endpoint}/{name}/discussions/{number}"
    return reply(answer)


@route("GET|HEAD", "(?:/datasets)?/{id}/resolve/{rev}/(?P<path>.+)")
def resolve(hub: HubServer, request: Request, name: str, revision: str, path: str) -> Reply:
    repo = hub.reader(request, name)
    made = hub.committed(repo, revision)
    if repo.gated and not hub._belongs(request.user, name):
        raise Refusal(403, f"Access to model {name} is restricted", "GatedRepo")
    blob = made.tree.get(unquote(path))
    if blob is None:
        raise Refusal(404, "Entry not found", "EntryNotFound")
    if blob.sha256 is None:
        content = blob.content or b""
        return ranged(hub, request, content, {"X-Repo-Commit": made.oid, "ETag": f'"{blob.oid}"'})
    headers = {"X-Repo-Commit": made.oid, "X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(blob.size)}
    if blob.sha256 in hub.xet_hashes:
        headers["X-Xet-Hash"] = hub.xet_hashes[blob.sha256]
        headers["X-Xet-Refresh-Route"] = f"{hub.endpoint}/api/models/{name}/xet-read-token/{made.oid}"
    headers["Location"] = f"http://{hub.storage_host}:{hub.port}/storage/{blob.sha256}?X-Amz-Signature=signature"
    return Reply(302, b"", headers)


@route("GET|HEAD", "/storage/(?P<oid>[0-9a-f]{64})")
def stored(hub: HubServer, request: Request, oid: str) -> Reply:
    return ranged(hub, request, hub.stored[oid], {"ETag": '"a-part-count-3"'})


def ranged(hub: HubServer, request: Request, content: bytes, headers: dict[str, str]) -> Reply:
    asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
    if not asked or not hub.ranges:
        return Reply(200, content, headers)
    start, end = int(asked[1]), min(int(asked[2] or len(content)) + 1, len(content))
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
    return Reply(206, content[start:end], headers)


@route("GET", "/api/models/{id}/xet-(?:read|write)-token/{rev}")
def xet_token(hub: HubServer, request: Request, name: str, revision: str) -> Reply:
    if hub.storage is None:
        raise Refusal(404, "Not found")
    hub.reader(request, name)
    answer = reply({"casUrl": hub.storage, "exp": 4_000_000_000, "accessToken": "xet"})
    answer.headers |= {
        "X-Xet-Cas-Url": hub.storage,
        "X-Xet-Access-Token": "xet",
        "X-Xet-Token-Expiration": "4000000000",
    }
    return answer
