"""The few answers of the hub that pushing and pulling ask for, from a server on this machine."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
import urllib.parse

TOKEN = "hf_secretsecretsecret"


class Stub:
    """Repositories in memory.

    Attributes:
      url: the endpoint.
      repositories: by name: whether private, the files of each commit, the commit of each branch.
      asked: method and path of every request, in order.
      refusal: status and message of every answer, where the hub is to refuse.
    """

    def __init__(self, url):
        self.url, self.repositories, self.asked, self.blobs = url, {}, [], {}
        self.refusal = None

    def commit(self, name, files, *, branch="main", private=False):
        """Adds a commit of some files; returns its hash."""
        repository = self.repositories.setdefault(
            name, {"private": private, "commits": {}, "branches": {}}
        )
        told = [(path, hashlib.sha1(files[path]).hexdigest()) for path in sorted(files)]
        number = len(repository["commits"])
        sha = hashlib.sha1(repr((name, number, told)).encode()).hexdigest()
        repository["commits"][sha], repository["branches"][branch] = dict(files), sha
        return sha

    def files(self, name, revision="main"):
        """The files of a revision, or None."""
        repository = self.repositories[name]
        return repository["commits"].get(repository["branches"].get(revision, revision))


class _Refused(Exception):
    def __init__(self, status, code="", message=""):
        self.status, self.code, self.message = status, code, message


def _answer(stub, method, path, body, token):
    """Headers and content for a request."""
    if stub.refusal is not None:
        raise _Refused(stub.refusal[0], "", stub.refusal[1])
    if path == "/api/validate-yaml":
        return {}, {"errors": [], "warnings": []}
    if path == "/api/repos/create":
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if token != TOKEN:
            raise _Refused(401, "", "Invalid credentials in Authorization header")
        if name in stub.repositories:
            raise _Refused(409, "", "You already created this model repo")
        stub.commit(name, {".gitattributes": b"x"}, private=asked.get("visibility") == "private")
        return {}, {"url": f"{stub.url}/{name}"}
    if found := re.fullmatch(r"/blobs/(\w+)", path):
        stub.blobs[found[1]] = body
        return {}, {}
    found = re.fullmatch(r"(?:/api/models)?/([\w.-]+/[\w.-]+?)(?:\.git)?(?:/(\w.*))?", path)
    name, rest = found[1], found[2] or "revision/main"
    if name not in stub.repositories or (stub.repositories[name]["private"] and token != TOKEN):
        raise _Refused(404 if token == TOKEN else 401, "RepoNotFound", "Repository not found")
    return _of_repository(stub, method, name, rest, body)


def _of_repository(stub, method, name, rest, body):
    repository, (verb, _, rest) = stub.repositories[name], rest.partition("/")
    if verb == "revision":
        files = stub.files(name, rest)
        if files is None:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {rest}")
        sha = repository["branches"].get(rest, rest)
        siblings = [{"rfilename": path} for path in sorted(files)]
        return {}, {"id": name, "sha": sha, "private": repository["private"], "siblings": siblings}
    if verb == "resolve":
        revision, _, path = rest.partition("/")
        content = (stub.files(name, revision) or {}).get(path)
        if content is None:
            raise _Refused(404, "EntryNotFound", "Entry not found")
        sha = repository["branches"].get(revision, revision)
        return {"X-Repo-Commit": sha, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}, content
    if verb == "branch":
        if rest in repository["branches"]:
            raise _Refused(409, "", "Reference already exists")
        repository["branches"][rest] = repository["branches"]["main"]
        return {}, {}
    if verb == "preupload":
        modes = [
            {
                "path": one["path"],
                "uploadMode": "lfs" if one["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for one in json.loads(body)["files"]
        ]
        return {}, {"files": modes}
    if verb == "info":  # lfs/objects/batch
        objects = [
            one | {"actions": {"upload": {"href": f"{stub.url}/blobs/{one['oid']}"}}}
            for one in json.loads(body)["objects"]
        ]
        return {}, {"transfer": "basic", "objects": objects}
    assert verb == "commit", verb
    files = dict(stub.files(name, rest))
    for line in body.splitlines():
        one = json.loads(line)
        value = one["value"]
        if one["key"] == "header":
            assert value.get("parentCommit") == repository["branches"][rest]
        elif one["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif one["key"] == "lfsFile":
            files[value["path"]] = stub.blobs[value["oid"]]
        else:
            assert one["key"] == "deletedFile", one["key"]
            del files[value["path"]]
    sha = stub.commit(name, files, branch=rest)
    return {}, {"commitUrl": f"{stub.url}/{name}/commit/{sha}", "commitOid": sha}


def _handler(stub):
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def respond(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = urllib.parse.unquote(self.path.partition("?")[0])
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            stub.asked.append((self.command, path))
            try:
                headers, content = _answer(stub, self.command, path, body, token)
                status = 200
            except _Refused as refused:
                content = {"error": refused.message, "url": f"{stub.url}/lab/any"}
                status = refused.status
                headers = {"X-Error-Code": refused.code, "X-Error-Message": refused.message}
            if not isinstance(content, bytes):
                content = json.dumps(content).encode()
                headers = headers | {"Content-Type": "application/json"}
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_HEAD = do_POST = do_PUT = respond

        def log_message(self, *args):
            """Says nothing."""

    return Handler


@contextlib.contextmanager
def serve():
    """A stub that listens until the block ends."""
    stub = Stub("")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(stub))
    server.daemon_threads = True
    stub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
