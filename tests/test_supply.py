"""On what stemjax rests: `.ci/audit`, and the texts about it."""

from __future__ import annotations

import datetime
import http.server
import importlib.machinery
import importlib.metadata
import importlib.util
import json
import pathlib
import re
import socket
import subprocess
import sys
import threading
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
TODAY = datetime.datetime.now(datetime.UTC).date()
KNOWN = {"id": "PYSEC-2099-1", "aliases": ["CVE-2099-1"], "fix_versions": ["99.0"]}


def _load(name):
    """A program of .ci as a module; its name has no ending."""
    path = ROOT / ".ci" / name
    loader = importlib.machinery.SourceFileLoader(f"ci_{name}", str(path))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    sys.modules[loader.name] = module  # dataclasses look themselves up there
    loader.exec_module(module)
    return module


audit = _load("audit")


@pytest.fixture
def serve():
    """Starts a server that answers every query with the given text; returns its address."""
    servers = []

    def start(text="{}", *, pause=0.0):
        class Answer(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(200)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                for letter in text:
                    self.wfile.write(letter.encode())
                    time.sleep(pause)

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/v1/query"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def _nowhere():
    """An address at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"http://127.0.0.1:{taken.getsockname()[1]}/v1/query"


def _stub(folder, name, body):
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!{sys.executable} -I\nimport json, sys\n{body}")
    path.chmod(0o755)
    return folder


def _pip_audit(folder, *, known=None, version="2.10.1", answer=True, forgets=()):
    """A pip-audit that knows of these vulnerabilities, by package."""
    return _stub(
        folder,
        "pip-audit",
        f"""
if "--version" in sys.argv:
    print("pip-audit {version}")
    sys.exit()
given = dict(zip(sys.argv, sys.argv[1:]))
rows = [line.split("==") for line in open(given["-r"])]
known = {known or {}!r}
dependencies = [
    dict(name=name, version=version.strip(), vulns=known.get(name, []))
    for name, version in rows if name not in {forgets!r}
]
if {answer!r}:
    json.dump(dict(dependencies=dependencies, fixes=[]), open(given["-o"], "w"))
else:
    print("it broke", file=sys.stderr)
sys.exit(1 if known or not {answer!r} else 0)
""",
    )


def _audit(path, service, *more):
    """Exit status and lines of an audit for which only `path` is on PATH."""
    done = subprocess.run(
        [sys.executable, ROOT / ".ci" / "audit", "--service", service, *map(str, more)],
        env={"PATH": str(path), "no_proxy": "*"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()


def _excuse(path, *, since=TODAY, expires=TODAY, **fields):
    fields = {"id": "CVE-2099-1", "reason": "never called", **fields}
    rows = "".join(f"{name} = {json.dumps(value)}\n" for name, value in fields.items())
    path.write_text(f"[[ignore]]\n{rows}since = {since}\nexpires = {expires}\n")
    return path


def test_offline_the_audit_is_skipped_at_once_and_says_so(tmp_path):
    began = time.monotonic()
    path = _pip_audit(tmp_path / "bin", known={"numpy": [KNOWN]})
    line = "audit: skipped, the advisory service cannot be reached"
    assert _audit(path, _nowhere()) == (0, [line])
    assert time.monotonic() - began < 20
    assert _audit(path, _nowhere(), "--required") == (3, [line])


def test_what_is_no_answer_of_a_database_does_not_count_as_reached(serve):
    assert audit.is_reachable(serve())
    assert not audit.is_reachable(serve("<html>log in first</html>"))
    began = time.monotonic()
    # A byte now and then, so that no wait for one is long.
    assert not audit.is_reachable(serve("{" + " " * 40 + "}", pause=0.1), seconds=0.3)
    assert time.monotonic() - began < 2


def test_a_database_has_an_address_of_the_web(capsys):
    with pytest.raises(SystemExit):
        audit.main(["--service", "file:///dev/null"])
    assert "is no address of a database" in capsys.readouterr().err


def test_without_pip_audit_the_audit_is_skipped_and_says_so(tmp_path, serve):
    line = "audit: skipped, pip-audit cannot be installed"
    path = _stub(tmp_path / "bin", "uv", "sys.exit(2)")
    assert _audit(path, serve()) == (0, [line])
    # One that is too old is not used, and would have found something.
    _pip_audit(path, known={"numpy": [KNOWN]}, version="2.9.0")
    assert _audit(path, serve()) == (0, [line])
    assert _audit(path, serve(), "--required")[0] == 3


def test_a_known_vulnerability_fails_the_audit_unless_it_is_excused(tmp_path, serve):
    service, version = serve(), importlib.metadata.version("numpy")
    path = _pip_audit(tmp_path / "bin", known={"numpy": [KNOWN]})
    status, lines = _audit(path, service)
    assert status == 1
    assert f"audit: numpy {version}: PYSEC-2099-1 = CVE-2099-1, fixed in 99.0" in lines
    until = TODAY + datetime.timedelta(days=30)
    ignored = _excuse(tmp_path / "ignored", since=TODAY, expires=until)
    status, lines = _audit(path, service, "--ignore", ignored)
    assert status == 0
    assert lines[0].startswith(f"audit: excused until {until}, numpy {version}: PYSEC-2099-1")
    other = _excuse(tmp_path / "ignored", since=TODAY, expires=until, id="CVE-2099-2")
    status, lines = _audit(path, service, "--ignore", other)
    assert status == 1
    assert "audit: CVE-2099-2 is not found any more: remove it from audit-ignore" in lines


def test_nothing_known_passes(tmp_path, serve):
    status, lines = _audit(_pip_audit(tmp_path / "bin"), serve())
    assert status == 0
    assert re.fullmatch(r"audit: 1\d\d packages, 0 known vulnerabilities", lines[-1])


@pytest.mark.parametrize("given", [{"answer": False}, {"forgets": ("numpy",)}])
def test_an_audit_that_did_not_look_is_a_failure(tmp_path, serve, given):
    status, lines = _audit(_pip_audit(tmp_path / "bin", **given), serve())
    assert status == 2
    assert lines[0].startswith("audit: pip-audit ended with")


def _days(count):
    return TODAY + datetime.timedelta(days=count)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"since": _days(-9), "expires": _days(-1)}, "expired on"),
        ({"expires": _days(181)}, "at most 180 days"),
        ({"since": _days(1), "expires": _days(9)}, "begins by today"),
        ({"since": _days(-1), "reason": " "}, "without an id or a reason"),
        ({"since": _days(-1), "because": "x"}, "and no other"),
        ({"since": f"{_days(-1)}T00:00:00"}, "and no other"),
        ({"since": "nonsense"}, "is not TOML"),
    ],
)
def test_an_excuse_has_a_reason_and_a_term_offline_too(tmp_path, fields, said):
    status, lines = _audit(tmp_path, _nowhere(), "--ignore", _excuse(tmp_path / "i", **fields))
    assert status == 1
    assert said in lines[0]


def test_the_committed_excuses_are_well_formed():
    assert (ROOT / ".ci" / "audit-ignore").is_file()
    audit.read_excuses(ROOT / ".ci" / "audit-ignore", today=TODAY)


def test_the_audit_covers_what_is_installed_and_what_extras_were_tested_with(tmp_path):
    project = tmp_path / "pyproject.toml"
    text = '[project]\nname = "stemjax"\n[tool.uv]\nconstraint-dependencies = [{}]\n'
    project.write_text(text.format('"numpy==0.1", "Not_Here==1.0"'))
    versions = audit.list_versions(project)
    assert versions["numpy"] == importlib.metadata.version("numpy")
    assert versions["not-here"] == "1.0"
    assert "stemjax" not in versions
    project.write_text(text.replace("stemjax", "elsewhere").format(""))
    with pytest.raises(audit.AuditError, match="is not installed for"):
        audit.list_versions(project)


def test_ci_audits_with_the_lint():
    lines = [line.partition("  #")[0] for line in (ROOT / ".ci/run").read_text().splitlines()]
    assert lines.index("uv run basedpyright") + 1 == lines.index(".ci/audit")


@pytest.mark.parametrize("name", ["SECURITY.md", "docs/releasing.md"])
def test_files_that_the_texts_name_are_there(name):
    text = (ROOT / name).read_text()
    named = set(re.findall(r"`((?:stemjax|tests|docs|configs|\.ci)/[\w./-]+)`", text))
    assert len(named) > 2
    assert sorted(path for path in named if not (ROOT / path).exists()) == []
