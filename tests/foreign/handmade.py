"""Checkpoint archives made by hand, byte by byte, as tests need them."""

import pickle
import zipfile

EMPTY = b"ccollections\nOrderedDict\n)R"


def stream(value, protocol=2):
    """The opcodes that push a plain value: pickle's own, without PROTO and STOP."""
    return pickle.dumps(value, protocol)[2:-1]


def storage(key="0", kind="FloatStorage", elements=6):
    return b"(%sctorch\n%s\n%s%s%stQ" % (
        stream("storage"),
        kind.encode(),
        stream(key),
        stream("cpu"),
        stream(elements),
    )


def tensor(offset=0, shape=(2, 3), strides=(3, 1), where=None):
    return b"ctorch._utils\n_rebuild_tensor_v2\n(%s%s%s%s\x89%stR" % (
        storage() if where is None else where,
        stream(offset),
        stream(shape),
        stream(strides),
        EMPTY,
    )


def archive(path, body, records=None, *, stem="m", compression=zipfile.ZIP_STORED):
    """Writes a zip with `body` between PROTO 2 and STOP, and further records by name."""
    whole = body if body.startswith(b"\x80") else b"\x80\x02" + body + b"."
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr(f"{stem}/data.pkl", whole)
        for name, contents in (records or {}).items():
            file.writestr(f"{stem}/{name}", contents)
    return path


def leaves(tree):
    """Every array of a tree, read from disk; what it takes for damage to show."""
    if isinstance(tree, dict):
        return [leaf for value in tree.values() for leaf in leaves(value)]
    if isinstance(tree, list | tuple):
        return [leaf for value in tree for leaf in leaves(value)]
    return [tree.numpy()] if hasattr(tree, "numpy") else []
