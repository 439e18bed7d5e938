"""Several processes as one run: finding each other, agreeing, and exchanging what is small.

A run of many machines is the same program started on each. JAX's own runtime connects the
processes (`jax.distributed`); after that `jax.devices()` are those of all of them and one compiled
program runs on all. What remains to be done here is to know when a process is one of several, to
make sure that all of them are about to do the same, and to exchange numbers of the host.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import importlib.util
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from stemjax import errors, peers

HEARTBEAT_S = 60
"""Seconds without a sign of life after which JAX ends the others, should `peers` not have.

Far behind its limit: on a crowded machine 30 s were reached before the sentence was printed.
"""

WAIT_S = 300
"""Seconds that the first process waits for all others to come."""

_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
_MPI_COUNT, _MPI_INDEX = "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"
_log = logging.getLogger(__name__)
_TPU_CHIPS = ("/dev/accel*", "/dev/vfio/[0-9]*")


def find_cluster(env: Mapping[str, str] | None = None) -> str | None:
    """Returns what started this process as one of several: ``slurm``, ``mpi``, ``tpu``, or None.

    SLURM: a task of ``srun``. OpenMPI: a rank of ``mpirun``. TPU: a worker of a slice of several
    hosts on GKE, or any TPU machine, whose metadata say what it belongs to.

    Args:
      env: environment variables; those of this process by default.
    """
    given = os.environ if env is None else env
    if all(name in given for name in _SLURM) and _number(given["SLURM_NTASKS"]) > 1:
        return "slurm"
    if _number(given.get(_MPI_COUNT)) > 1:
        return "mpi"
    hosts = given.get("TPU_WORKER_HOSTNAMES", "")
    if "," in hosts or _number(given.get("MEGASCALE_NUM_SLICES")) > 1:
        return "tpu"
    if env is None and importlib.util.find_spec("libtpu") and any(map(glob.glob, _TPU_CHIPS)):
        return "tpu"
    return None


def start(
    *,
    coordinator: str | None = None,
    process_count: int | None = None,
    process_index: int | None = None,
    detect: bool = True,
    limit_s: float = peers.LIMIT_S,
) -> int:
    """Connects this process with the others of its run, before any device is touched.

    Args:
      coordinator: ``HOST:PORT`` of the first process, which listens there. None finds it from what
        started the process.
      process_count: processes in all; with ``coordinator``, and left away under OpenMPI.
      process_index: which of them this is, from 0; likewise.
      detect: whether to look for a cluster where no coordinator is given.
      limit_s: silence after which a process counts as lost, and the others end (`peers`).

    Returns:
      Processes in all: 1 where this one is alone, which then needs no connection.

    Raises:
      ConfigError: the three do not go together, or the others cannot be reached.
    """
    if coordinator is None and (process_count, process_index) != (None, None):
        raise errors.ConfigError(
            "--process-count and --process-index", expected="--coordinator HOST:PORT beside them"
        )
    if coordinator is None:
        if not detect or find_cluster() is None:
            return 1
        _connect(_detect(), limit_s)
        return jax.process_count()
    if process_count is None and process_index is None and _MPI_COUNT in os.environ:
        process_count, process_index = (int(os.environ[k]) for k in (_MPI_COUNT, _MPI_INDEX))
    if process_count is None or process_index is None or not 0 <= process_index < process_count:
        raise errors.ConfigError(
            "--coordinator",
            expected="--process-count N and --process-index I beside it, I from 0 to N - 1",
            found=f"{process_count} and {process_index}",
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise errors.ConfigError("--coordinator", expected="HOST:PORT", found=coordinator)
    given = {
        "coordinator_address": coordinator,
        "num_processes": process_count,
        "process_id": process_index,
    }
    _connect(given, limit_s)
    return process_count


def _detect() -> dict[str, Any]:
    """What JAX finds out about the cluster; empty if it has to do so by itself."""
    from jax._src import clusters

    first = os.environ.get("JAX_COORDINATOR_ADDRESS")
    try:
        found = clusters.ClusterEnv.auto_detect_unset_distributed_params(
            first, None, None, None, None, WAIT_S
        )
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return {}
    names = ("coordinator_address", "num_processes", "process_id", "local_device_ids")
    told: dict[str, Any] = dict(zip(names, found))
    return {} if None in list(told.values())[:3] else told


def _connect(given: dict[str, Any], limit_s: float) -> None:
    """Connects with the others: all but the first by way of a relay, and then `peers` watches."""
    host, _, port = str(given.get("coordinator_address", "")).rpartition(":")
    relay = None
    if given.get("process_id") and not _names_are_verified():
        relay = peers.Relay(host, int(port))
        if not relay.is_reached(WAIT_S):
            raise errors.ConfigError(
                f"the first process of this run cannot be reached at {host}:{port}",
                found=str(relay.trouble),
                fix="Start it too, with one --coordinator that all reach",
            )
        given = given | {"coordinator_address": relay.address}
    _initialize(given)
    if relay is not None:
        relay.hold()
    from jax._src import distributed as runtime

    state = runtime.global_state
    if state.client is not None and host:
        peers.begin(
            state.client,
            index=state.process_id,
            count=state.num_processes,
            host=host,
            shutdown=jax.distributed.shutdown,
            limit_s=limit_s,
        )


def _names_are_verified() -> bool:
    """Whether JAX's connections want the first process's own name in its certificate."""
    values = jax.config.values
    return bool(values.get("jax_mtls_ca_file")) and not values.get("jax_mtls_peer_uri_prefix")


def _initialize(given: Mapping[str, Any]) -> None:
    try:
        jax.distributed.initialize(
            heartbeat_timeout_seconds=HEARTBEAT_S,
            initialization_timeout=WAIT_S,
            **given,
        )
    except (RuntimeError, ValueError) as error:
        raise errors.ConfigError(
            "the processes of this run did not find each other",
            found=f"{type(error).__name__}: {error}",
            fix="Start all of them within five minutes, with one coordinator that all can reach; "
            "or give --coordinator, --process-count and --process-index",
        ) from error


def is_first() -> bool:
    """Returns whether this is the process that writes and prints for all."""
    return jax.process_index() == 0


def gather(values: np.ndarray) -> np.ndarray:
    """Returns the array of every process, [processes, ...], bit for bit, on every process.

    Args:
      values: of one shape and dtype on all processes. For small things: all processes wait for
        each other, and the array goes through the devices.
    """
    if jax.process_count() == 1:
        return values[None]
    from jax.experimental import multihost_utils

    # As bytes: JAX would make float32 of float64.
    flat = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
    every = np.asarray(multihost_utils.process_allgather(flat))
    return np.frombuffer(every.tobytes(), values.dtype).reshape(-1, *values.shape)


def gather_bytes(mine: bytes) -> list[bytes]:
    """Returns the bytes of every process, of any length each, on every process.

    Args:
      mine: those of this process; it may have none.
    """
    if jax.process_count() == 1:
        return [mine]
    lengths = gather(np.asarray([len(mine)], np.int64))[:, 0]
    padded = np.zeros(max(1, lengths.max()), np.uint8)  # nothing at all cannot be exchanged
    padded[: len(mine)] = np.frombuffer(mine, np.uint8)
    return [row[:n].tobytes() for row, n in zip(gather(padded), lengths, strict=True)]


def dealt(count: int) -> range:
    """Returns which of so many things are this process's: numbers i, i + n, ... of n processes."""
    return range(jax.process_index(), count, jax.process_count())


def gather_dealt_bytes(mine: Iterable[bytes], count: int) -> Iterator[bytes]:
    """Yields the bytes that `dealt` things came to, in the order of the things, on every process.

    One thing of every process goes through all of them at a time. All have to take the last.

    Args:
      mine: those of this process's things, in order.
      count: things in all.
    """
    given = iter(mine)
    for first in range(0, count, jax.process_count()):
        yield from gather_bytes(next(given, b""))[: count - first]


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Ends a piece of work on all processes alike: where one failed, none goes on.

    All processes wait at the end of the block for each other, so that one that fails leaves no
    other waiting for what it will never give. Nothing in the block may itself wait for others.

    Raises:
      DisagreementError: on a process whose block succeeded while another's failed; quotes that
        one's error. Where the block failed its own error is raised.
    """
    if jax.process_count() == 1:
        yield
        return
    own, said = None, ""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - whatever it is, the others have to hear of it
        own, code = error, getattr(error, "code", type(error).__name__)
        said = f"[{code}] {str(error).rstrip('.')}"
        said = ", ".join([said, *getattr(error, "__notes__", ())])
        # Said at once: the others may be at work for long.
        _log.warning("process %d failed and waits for the others: %s", jax.process_index(), said)
    every = [text.decode(errors="replace") for text in gather_bytes(said.encode())]
    if own is not None:
        raise own
    found = [f"process {i}: {text}" for i, text in enumerate(every) if text]
    if found:
        raise errors.DisagreementError(
            f"{len(found)} of {len(every)} processes of this run failed",
            expected="all to succeed",
            found=_listing(found),
            fix="Mend that, and start all processes again",
        )


def gather_dealt(mine: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
    """Returns arrays that were dealt out one by one over the processes, in their order.

    Args:
      mine: those of this process: numbers i, i + n, ... of ``count``, with i of n processes. All of
        one shape and dtype.
      count: arrays in all, at least one a process.
    """
    processes = jax.process_count()
    if processes == 1:
        return list(mine)
    longest = -(-count // processes)
    short = [*mine, *[np.zeros_like(mine[0])] * (longest - len(mine))]
    every = gather(np.stack(short))
    return [every[number % processes, number // processes] for number in range(count)]


def share_of(rows: int) -> slice:
    """Returns this process's share of so many rows: contiguous, of sizes that differ by one.

    All of them, on every process, where there are fewer rows than processes.
    """
    processes, index = jax.process_count(), jax.process_index()
    if rows < processes:
        return slice(0, rows)
    ends = np.cumsum([0, *_sizes(rows, processes)])
    return slice(int(ends[index]), int(ends[index + 1]))


def gather_rows(mine: np.ndarray, rows: int) -> np.ndarray:
    """Returns the rows of all processes in order, of which each has its `share_of` ``rows``."""
    processes = jax.process_count()
    if processes == 1 or rows < processes:
        return mine
    sizes = _sizes(rows, processes)
    padded = np.concatenate([mine, np.repeat(mine[-1:], sizes[0] - len(mine), axis=0)])
    return np.concatenate([part[:size] for part, size in zip(gather(padded), sizes)])


def _sizes(rows: int, processes: int) -> list[int]:
    return [rows // processes + (i < rows % processes) for i in range(processes)]


def wait(name: str) -> None:
    """Waits until all processes are here.

    Args:
      name: what they wait for, the same on all.
    """
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def require_agreement(facts: Mapping[str, str]) -> None:
    """Checks that all processes are about to do the same as the first.

    Args:
      facts: what has to be equal, by name; the same names on all processes.

    Raises:
      DisagreementError: on every process; names those that differ, and in what.
    """
    if jax.process_count() == 1:
        return
    # The names first: another version of the code may have others, and arrays of another shape
    # cannot be exchanged.
    names = np.frombuffer(hashlib.sha256("\n".join(facts).encode()).digest(), np.uint8)
    strangers = np.flatnonzero((gather(names) != names[None]).any(axis=1))
    if strangers.size:
        raise _disagree(
            [f"process {process} runs another version of stemjax" for process in strangers]
        )
    digests = [hashlib.sha256(value.encode()).digest() for value in facts.values()]
    every = gather(np.frombuffer(b"".join(digests), np.uint8).reshape(len(facts), -1))
    differ = (every != every[:1]).any(axis=2)
    if not differ.any():
        return
    # Cut to a fixed length, as all exchange what has one shape.
    told = [value.encode()[:_TOLD].ljust(_TOLD, b"\0") for value in facts.values()]
    words = gather(np.frombuffer(b"".join(told), np.uint8).reshape(len(facts), -1))

    def word(process: int, fact: int) -> str:
        return words[process, fact].tobytes().rstrip(b"\0").decode(errors="replace")

    raise _disagree([
        f"process {process} has another {name} ({word(process, fact)}; the first has "
        f"{word(0, fact)})"
        for process in range(len(every))
        for fact, name in enumerate(facts)
        if differ[process, fact]
    ])  # fmt: skip


def _disagree(found: Sequence[str]) -> errors.DisagreementError:
    return errors.DisagreementError(
        f"{jax.process_count()} processes were started as one run and would not do the same",
        expected="one configuration, version, seed and set of records on all",
        found=_listing(found),
        fix="Start all processes with the same command, code and files",
    )


def _listing(found: Sequence[str]) -> str:
    more = f"; and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    return "; ".join(found[:_LISTED]) + more


_TOLD, _LISTED = 80, 8


def _number(text: str | None) -> int:
    return int(text) if text and text.isdigit() else 0
