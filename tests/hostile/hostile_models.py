"""Models from strangers: PyTorch files, bundles, encoders' weights, lists of genes."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import struct
import zipfile

import payloads
from boxes import Box, case

import stemjax

DEMO = pathlib.Path(stemjax.__file__).parent / "pretrained" / "demo"
LIE = {"w": {"dtype": "F32", "shape": [2**20, 2**19], "data_offsets": [0, 2**41]}}


def import_torch(box: Box, content: bytes) -> list[str]:
    (box.cwd / "a.pt").write_bytes(content)
    (box.cwd / "genes.txt").write_text("A\nB\n")
    return ["import-torch", "a.pt", "--genes", "genes.txt", "-o", "out"]


def checkpoint(program: bytes, *others):
    return payloads.zipped([("a/data.pkl", program), ("a/version", b"3\n"), *others])


@case("code to run")
def torch_that_runs_code(box):
    return import_torch(box, checkpoint(payloads.pickled(box.canary)))


@case("code to run")
def torch_that_runs_code_by_protocol_4(box):
    return import_torch(box, checkpoint(payloads.pickled(box.canary, 4)))


@case("older torch")
def torch_that_is_a_bare_pickle(box):
    return import_torch(box, payloads.pickled(box.canary))


@case("[SJ-X01]")
def torch_that_builds_itself_by_inst(box):
    line = f"open({str(box.canary)!r},'w')".encode()
    return import_torch(box, checkpoint(b"(V" + line + b"\nibuiltins\neval\n."))


@case("TorchScript")
def torch_script(box):
    code = f"open({str(box.canary)!r}, 'w')".encode()
    members = [("a/code/__torch__.py", code), ("a/data.pkl", b"\x80\x02}."), ("a/version", b"3")]
    return import_torch(box, payloads.zipped(members))


@case("no checkpoint")
def torch_whose_members_lie_elsewhere(box):
    members = [("../../canary", b"x"), (str(box.canary), b"x"), ("../a/data.pkl", b"\x80\x02}.")]
    return import_torch(box, payloads.zipped(members))


@case("compressed")
def torch_that_is_a_zip_bomb(box):
    members = [("a/data.pkl", bytes(2**26)), ("a/version", b"3")]
    return import_torch(box, payloads.zipped(members, compression=zipfile.ZIP_DEFLATED))


@case("twice")
def torch_with_a_member_twice(box):
    members = [("a/data.pkl", b"\x80\x02}."), ("a/data/0", b"0"), ("a/data/0", b"1")]
    return import_torch(box, payloads.zipped(members))


@case("wants a storage")
def torch_that_claims_terabytes(box):
    program = (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\n"
        b"X\x01\0\0\x000X\x03\0\0\0cpu\x8a\x06\0\0\0\0\0\x01tQK\0\x8a\x06\0\0\0\0\0\x01\x85"
        b"K\x01\x85\x89N tR."
    ).replace(b" ", b"")
    return import_torch(box, checkpoint(program, ("a/data/0", b"1234")))


@case("[SJ-X01]")
def torch_nested_deeply(box):
    return import_torch(box, checkpoint(b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"."))


@case("more than 2000000 values")
def torch_of_tuples_of_tuples(box):
    doubled = b"".join(b"q%ch%c\x86" % (i, i) for i in range(60))
    program = b"\x80\x02K\x01" + doubled + b"."
    return import_torch(box, checkpoint(program))


@case("cannot be read")
def contract_nested_deeply(box):
    argv = import_torch(box, checkpoint(b"\x80\x02}."))
    (box.cwd / "e.json").write_text(payloads.nested())
    return [*argv, "--encoder", "e.json"]


@case("code to run")
def encoder_weights_that_run_code(box):
    (box.cwd / "w.pt").write_bytes(checkpoint(payloads.pickled(box.canary)))
    (box.cwd / "a.png").write_bytes(b"\x89PNG")
    return [
        *("encode", "a.png", "--encoder", "uni", "--encoder-weights", "w.pt"),
        *("--mpp", "0.5", "-o", "out"),
    ]


@case("data_offsets")
def encoder_weights_that_claim_terabytes(box):
    (box.cwd / "w.safetensors").write_bytes(payloads.safetensors(LIE, b"1234"))
    (box.cwd / "a.png").write_bytes(b"\x89PNG")
    return [
        *("encode", "a.png", "--encoder", "uni", "--encoder-weights", "w.safetensors"),
        *("--mpp", "0.5", "-o", "out"),
    ]


def bundle(box: Box) -> pathlib.Path:
    """A bundle to be changed; `payloads.relist` afterwards makes its hashes fit."""
    path = box.cwd / "model"
    shutil.copytree(DEMO, path)
    return path


def info() -> list[str]:
    return ["models", "info", "model"]


EVIL = "open({!r}, 'w').write('ran')\ndef get_config():\n    return None\n"


@case("config.py: no file of a bundle")
def bundle_with_a_configuration(box):
    path = bundle(box)
    (path / "config.py").write_text(EVIL.format(str(box.canary)))
    return info()


@case("config.py: no file of a bundle")
def bundle_with_a_listed_configuration(box):
    path = bundle(box)
    (path / "config.py").write_text(EVIL.format(str(box.canary)))
    payloads.relist(path)
    return ["export", "model", "--format", "torch", "-o", "out.pt"]


@case("no file of a bundle")
def bundle_with_a_pickle(box):
    path = bundle(box)
    (path / "params.pkl").write_bytes(payloads.pickled(box.canary))
    payloads.relist(path)
    return info()


@case("safetensors")
def bundle_whose_weights_are_a_pickle(box):
    path = bundle(box)
    (path / "model.safetensors").write_bytes(payloads.pickled(box.canary))
    payloads.relist(path)
    return info()


@case("leads outside")
def bundle_with_a_link_outside(box):
    path = bundle(box)
    (path / "README.md").unlink()
    (path / "README.md").symlink_to(box.secret)
    payloads.relist(path)
    return ["export", "model", "--format", "bundle", "-o", "out"]


@case("[SJ-X02]")
def bundle_that_lists_files_elsewhere(box):
    path = bundle(box)
    listed = json.loads((path / "SHA256SUMS.json").read_text())
    listed["../../secret.txt"] = {"bytes": 1, "sha256": "0"}
    listed[str(box.secret)] = {"bytes": 1, "sha256": "0"}
    (path / "SHA256SUMS.json").write_text(json.dumps(listed))
    return info()


@case("2199023255552")
def bundle_whose_weights_claim_terabytes(box):
    path = bundle(box)
    (path / "model.safetensors").write_bytes(payloads.safetensors(LIE, b"1234"))
    payloads.relist(path)
    return info()


@case("header")
def bundle_whose_header_is_endless(box):
    path = bundle(box)
    (path / "model.safetensors").write_bytes(struct.pack("<Q", 2**63) + b"{}")
    payloads.relist(path)
    return info()


@case("2199023255552")
def bundle_whose_example_claims_terabytes(box):
    path = bundle(box)
    (path / "golden.safetensors").write_bytes(payloads.safetensors(LIE, b"1234"))
    payloads.relist(path)
    return info()


@case("[SJ-X02]")
def bundle_whose_index_leads_elsewhere(box):
    path = bundle(box)
    index = {"weight_map": {"w": "../../secret.txt"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    payloads.relist(path)
    return info()


@case("[SJ-X02]")
def bundle_whose_card_is_nested_deeply(box):
    path = bundle(box)
    (path / "bundle.json").write_text(payloads.nested())
    payloads.relist(path)
    return info()


@case("[SJ-X02]")
def bundle_whose_hashes_are_nested_deeply(box):
    path = bundle(box)
    (path / "SHA256SUMS.json").write_text(payloads.nested())
    return info()


@case("[SJ-")
def bundle_whose_scores_are_nested_deeply(box):
    path = bundle(box)
    (path / "metrics.json").write_text(payloads.nested())
    payloads.relist(path)
    return info()


@case("[SJ-")
def bundle_whose_calibrations_are_nested_deeply(box):
    path = bundle(box)
    (path / "calibration.json").write_text(payloads.nested())
    payloads.relist(path)
    return info()


def changed(box, section, key, value):
    path = bundle(box)
    told = json.loads((path / "bundle.json").read_text())
    told["card"]["experiment"][section][key] = value
    (path / "bundle.json").write_text(json.dumps(told))
    payloads.relist(path)
    return info()


@case("[SJ-")
def bundle_of_an_absurd_width(box):
    return changed(box, "model", "width", 2**30)


@case("[SJ-")
def bundle_of_an_absurd_depth(box):
    return changed(box, "model", "depth", 10**9)


@case("[SJ-")
def bundle_of_another_kind_and_an_absurd_depth(box):
    path = bundle(box)
    told = json.loads((path / "bundle.json").read_text())
    told["card"]["experiment"]["model"] |= {"kind": "histosge", "depth": 10**8}
    told["card"]["experiment"]["window"] |= {"kind": "spots", "length": 10**9}
    (path / "bundle.json").write_text(json.dumps(told))
    payloads.relist(path)
    return info()


@case("[SJ-")
def bundle_whose_numbers_are_endless(box):
    path = bundle(box)
    told = json.loads((path / "bundle.json").read_text())
    told["step"] = float("inf")
    told["card"]["space"] = {"expression": {"mean": "1e999"}}
    (path / "bundle.json").write_text(json.dumps(told))
    payloads.relist(path)
    return info()


@case("[SJ-")
def bundle_with_a_pipe(box):
    path = bundle(box)
    (path / "genes.txt").unlink()
    os.mkfifo(path / "genes.txt")
    return info()


@case("[SJ-")
def workdir_with_a_configuration(box):
    path = box.cwd / "model"
    path.mkdir()
    (path / "config.py").write_text(EVIL.format(str(box.canary)))
    (path / "checkpoints").mkdir()
    return info()


@case("[SJ-X03]")
def address_on_the_hub_that_climbs(box):
    return ["pull", "hub:../../etc@main", "-o", "out"]
