"""What a release is made of: `.ci/release`."""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.metadata
import importlib.util
import io
import json
import pathlib
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
WHEEL = "stemjax-1.0-py3-none-any.whl"


def _load(name):
    """A program of .ci as a module; its name has no ending."""
    path = ROOT / ".ci" / name
    loader = importlib.machinery.SourceFileLoader(f"ci_{name}", str(path))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    sys.modules[loader.name] = module  # dataclasses look themselves up there
    loader.exec_module(module)
    return module


release = _load("release")


def _wheel(path, files, *, when=(2026, 1, 2, 3, 4, 6), mode=0o100644):
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, contents in files.items():
            entry = zipfile.ZipInfo(name, when)
            entry.external_attr = mode << 16
            archive.writestr(entry, contents)
    return path


HOME = b"/" + b"home/ann"  # in one piece it would be found in the sdist, which has this file
FILES = {"a.py": b"1", "b.py": b"2"}


@pytest.mark.parametrize(
    ("files", "given", "said"),
    [
        (FILES, {}, None),
        ({"a.py": b"1", "b.py": b"3"}, {}, "b.py has other contents"),
        ({"b.py": b"2", "a.py": b"1"}, {}, "a.py stands where the other has b.py"),
        ({**FILES, "c.py": b""}, {}, "c.py is in one of them only"),
        (FILES, {"when": (2026, 1, 2, 3, 4, 8)}, "a.py is stored with ((2026, 1, 2, 3, 4, 6)"),
        (FILES, {"mode": 0o100600}, "a.py is stored with"),
    ],
)
def test_the_first_member_that_differs_is_named(tmp_path, files, given, said):
    left = _wheel(tmp_path / "one" / WHEEL, FILES)
    found = release.first_difference(left, _wheel(tmp_path / "two" / WHEEL, files, **given))
    assert (found is None) if said is None else found.startswith(said)


def test_of_sdists_too(tmp_path):
    def sdist(name, when):
        path = tmp_path / name
        with tarfile.open(path, "w:gz") as archive:
            entry = tarfile.TarInfo("a.py")
            entry.size, entry.mtime = 1, when
            archive.addfile(entry, io.BytesIO(b"1"))
        return path

    found = release.first_difference(sdist("a.tar.gz", 1), sdist("b.tar.gz", 2))
    assert found.startswith("a.py is stored with (1,")


def _commit(**more):
    files = {
        "LICENSE": b"free",
        "stemjax/__init__.py": b"",
        "stemjax/py.typed": b"",
        "stemjax/pretrained/demo/model.safetensors": b"weights",
        "configs/histosge.py": b"steps = 1",
        "tests/test_x.py": b"no part of a wheel",
        **more,
    }
    return release.Commit(
        id="c" * 40, epoch=10**9, files={name: (text, False) for name, text in files.items()}
    )


def _shipped(**changes):
    scripts = b"[console_scripts]\nstemjax = stemjax.cli:main\n"
    files = {
        "stemjax/__init__.py": b"",
        "stemjax/py.typed": b"",
        "stemjax/pretrained/demo/model.safetensors": b"weights",
        "stemjax/experiments/histosge.py": b"steps = 1",
        "stemjax-1.0.dist-info/METADATA": b"Name: stemjax",
        "stemjax-1.0.dist-info/WHEEL": b"",
        "stemjax-1.0.dist-info/RECORD": b"",
        "stemjax-1.0.dist-info/entry_points.txt": scripts,
        "stemjax-1.0.dist-info/licenses/LICENSE": b"free",
    }
    files |= changes
    return {name: contents for name, contents in files.items() if contents is not None}


def test_a_wheel_with_the_commits_package_is_right(tmp_path):
    wheel = _wheel(tmp_path / WHEEL, _shipped())
    assert release.check_wheel(wheel, _commit(), places=[b"/nowhere"]) == "1.0"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"stemjax/py.typed": None}, "lacks stemjax/py.typed"),
        ({"stemjax/experiments/histosge.py": None}, "lacks stemjax/experiments/histosge.py"),
        ({"stemjax-1.0.dist-info/licenses/LICENSE": None}, "lacks stemjax-1.0.dist-info/licenses"),
        ({"stemjax/experiments/histosge.py": b"steps = 2"}, "histosge.py in .* is not the commit"),
        ({"tests/test_x.py": b"no part of a wheel"}, "has what the commit does not: tests/test_x"),
        ({"stemjax-1.0.dist-info/METADATA": HOME}, "METADATA names a folder of some"),
        ({"stemjax-1.0.dist-info/METADATA": b"/scratch/one"}, "METADATA names the folder that"),
    ],
)
def test_a_wheel_that_lacks_or_adds_something_is_refused(tmp_path, changes, said):
    wheel = _wheel(tmp_path / WHEEL, _shipped(**changes))
    with pytest.raises(release.ReleaseError, match=said):
        release.check_wheel(wheel, _commit(), places=[b"/scratch"])


def _listed(*, version="2.0"):
    """As cyclonedx-py lists an environment, with what must not stay in an SBOM."""
    link = [{"type": "distribution", "url": "https://example.org/files"}]
    return {
        "serialNumber": "urn:uuid:4d7ec40b-fd84-4b14-9d3b-7f2e6d9fbd8c",
        "metadata": {
            "timestamp": "2026-01-02T03:04:05+00:00",
            "tools": {
                "components": [
                    {"type": "application", "name": "t", "version": "1", "externalReferences": link}
                ]
            },
            "component": {
                "type": "library",
                "bom-ref": "root",
                "name": "stemjax",
                "licenses": [],
                "externalReferences": link,
            },
        },
        "components": [
            {
                "type": "library",
                "bom-ref": f"{name}=={version}",
                "name": name,
                "version": version,
                "purl": f"pkg:pypi/{name.lower()}@{version}",
                "description": "see https://example.org",
                "externalReferences": link,
            }
            for name in ("Zarr", "numpy", "fast_api")
        ],
        "dependencies": [{"ref": "root", "dependsOn": [f"numpy=={version}"]}],
    }


def _sbom(tmp_path, listed):
    built = release.Built(
        sdist=_wheel(tmp_path / "stemjax-1.0.tar.gz", {}), wheel=_wheel(tmp_path / WHEEL, FILES)
    )
    return release.make_sbom(
        listed, version="1.0", built=built, commit=_commit(), optional={"fast-api"}
    )


def test_the_sbom_names_packages_and_nothing_random_or_reachable(tmp_path):
    sbom = _sbom(tmp_path, _listed())
    assert release.write_sbom(sbom, places=[]) == release.write_sbom(
        _sbom(tmp_path, {**_listed(), "serialNumber": "another"}), places=[]
    )
    rows = {row["name"]: row for row in sbom["components"]}
    assert list(rows) == sorted(rows)
    assert rows["numpy"]["purl"] == "pkg:pypi/numpy@2.0"
    assert [name for name, row in rows.items() if row.get("scope") == "optional"] == ["fast_api"]
    digest = hashlib.sha256((tmp_path / WHEEL).read_bytes()).hexdigest()
    assert sbom["metadata"]["component"]["hashes"] == [{"alg": "SHA-256", "content": digest}]
    # The serial number is the contents', so that of other contents is another.
    assert _sbom(tmp_path, _listed(version="2.1"))["serialNumber"] != sbom["serialNumber"]


@pytest.mark.parametrize(
    ("licence", "said"),
    [("see https://example.org", "an address in it: https"), ("/scratch/x", "the folder that")],
)
def test_an_sbom_with_an_address_or_a_place_is_refused(tmp_path, licence, said):
    listed = _listed()
    listed["components"][0]["licenses"] = [{"license": {"name": licence}}]
    with pytest.raises(release.ReleaseError, match=said):
        release.write_sbom(_sbom(tmp_path, listed), places=[b"/scratch"])


def test_a_package_that_no_constraint_pins_is_refused():
    release.check_pinned({"numpy", "fast-api"}, ["numpy==2.0", "Fast_API==1"])
    with pytest.raises(release.ReleaseError, match="pins jax, zarr$"):
        release.check_pinned({"numpy", "jax", "zarr"}, ["numpy==2.0", "jax", "zarr>=3"])


def test_what_is_written_is_listed_and_a_folder_in_use_is_left_alone(tmp_path, capsys):
    release.write(tmp_path / "out", {"a.whl": b"1", "b.json": b"2"})
    assert _sums(tmp_path / "out") == {"a.whl", "b.json"}
    before = sorted((tmp_path / "out").iterdir())
    with pytest.raises(SystemExit) as ended:
        release.main([str(tmp_path / "out")])
    assert ended.value.code == 2
    assert "not an empty folder" in capsys.readouterr().err
    assert sorted((tmp_path / "out").iterdir()) == before


def _sums(out):
    """The names in SHA256SUMS, each checked, which are all that is there."""
    rows = [line.split("  ") for line in (out / "SHA256SUMS").read_text().splitlines()]
    for digest, name in rows:
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
    names = {name for _, name in rows}
    assert {path.name for path in out.iterdir()} == names | {"SHA256SUMS"}
    return names


@pytest.mark.slow
def test_a_release_of_this_commit(tmp_path):
    git = subprocess.run(["git", "log", "-1"], cwd=ROOT, capture_output=True, check=False)
    if git.returncode or shutil.which("uv") is None:
        pytest.skip("needs a git checkout and uv")
    done = subprocess.run(
        [sys.executable, ROOT / ".ci" / "release", tmp_path / "out"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "reproducible: two builds and the sdist's give the same bytes" in done.stdout
    assert len(_sums(tmp_path / "out")) == 3
    sbom = json.loads(next((tmp_path / "out").glob("*.cdx.json")).read_text())
    assert {"jax", "flax", "anndata"} <= {row["name"] for row in sbom["components"]}
    refs = {row["bom-ref"] for row in sbom["components"]} | {"root-component"}
    assert {row["ref"] for row in sbom["dependencies"]} == refs


# ---------------------------------------------------------------------- the texts
