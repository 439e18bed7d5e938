"""Finding the other processes, and dealing things out; what needs real ones is in train/."""

from __future__ import annotations

import socket

import jax
import numpy as np
import pytest

from stemjax import distributed, errors, peers

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
}


@pytest.mark.parametrize(
    ("environment", "cluster"),
    [
        ({}, None),
        (SLURM, "slurm"),
        (SLURM | {"SLURM_NTASKS": "1"}, None),
        # The batch script itself, before any srun: it is one process whatever the job asked for.
        ({k: v for k, v in SLURM.items() if k != "SLURM_STEP_NODELIST"}, None),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}, "mpi"),
        ({"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "tpu"),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, "tpu"),
    ],
)
def test_a_process_knows_what_started_it(environment, cluster):
    assert distributed.find_cluster(environment) == cluster


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"process_count": 2}, "--coordinator HOST:PORT beside"),
        ({"coordinator": "a:1"}, "--process-count N and --process-index I"),
        ({"coordinator": "a:1", "process_count": 2, "process_index": 2}, "found 2 and 2"),
        ({"coordinator": "a:1", "process_count": 2, "process_index": -1}, "found 2 and -1"),
        ({"coordinator": "a", "process_count": 2, "process_index": 0}, "HOST:PORT, found a"),
        ({"coordinator": ":80", "process_count": 2, "process_index": 0}, "HOST:PORT, found :80"),
        ({"coordinator": "a:b", "process_count": 2, "process_index": 0}, "HOST:PORT, found a:b"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(monkeypatch, given, message):
    monkeypatch.delenv("OMPI_COMM_WORLD_SIZE", raising=False)
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: pytest.fail("connected"))
    with pytest.raises(errors.ConfigError, match=message):
        distributed.start(**given)


class Passage:
    """A relay to a coordinator that always answers."""

    def __init__(self, host, port):
        self.address, self.held = f"relay.of.{host}:{port}", False

    def is_reached(self, seconds):
        return True

    def hold(self):
        self.held = True


def connected(monkeypatch, **given):
    """What JAX is told, in an environment without a cluster but for what the test sets."""
    told = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda **options: told.update(options))
    monkeypatch.setattr(distributed.peers, "Relay", Passage)
    distributed.start(**given)
    return told


def test_flags_and_ranks_of_mpi_reach_jax(monkeypatch):
    monkeypatch.setattr(distributed, "find_cluster", lambda: None)
    assert connected(monkeypatch) == {}
    told = connected(monkeypatch, coordinator="h:9", process_count=3, process_index=2)
    # By way of a relay: JAX aborts a process whose connection to the first one breaks.
    assert told["coordinator_address"] == "relay.of.h:9"
    assert (told["num_processes"], told["process_id"]) == (3, 2)
    # The first process is the other end of it.
    told = connected(monkeypatch, coordinator="h:9", process_count=3, process_index=0)
    assert told["coordinator_address"] == "h:9"
    # JAX's own would let a dead process go unnoticed for 100 s.
    assert told["heartbeat_timeout_seconds"] == distributed.HEARTBEAT_S > 2 * peers.LIMIT_S
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "8")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "5")
    told = connected(monkeypatch, coordinator="h:9")
    assert (told["num_processes"], told["process_id"]) == (8, 5)


def test_a_cluster_is_left_to_jax_unless_the_process_is_to_be_alone(monkeypatch):
    monkeypatch.setattr(distributed, "find_cluster", lambda: "slurm")
    assert "heartbeat_timeout_seconds" in connected(monkeypatch)
    assert connected(monkeypatch, detect=False) == {}


def test_a_connection_that_fails_says_what_to_give(monkeypatch):
    def fail(**_):
        raise RuntimeError("DEADLINE_EXCEEDED: nobody came")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with pytest.raises(errors.ConfigError, match="did not find each other.*nobody came.*--coord"):
        distributed.start(coordinator="h:9", process_count=2, process_index=0)


def test_a_first_process_that_nobody_reaches_is_named(monkeypatch):
    monkeypatch.setattr(distributed, "WAIT_S", 0)
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: pytest.fail("connected"))
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # taken, and nobody listens
        port = held.getsockname()[1]
        with pytest.raises(errors.ConfigError, match=f"reached at 127.0.0.1:{port}: found .*refu"):
            distributed.start(coordinator=f"127.0.0.1:{port}", process_count=2, process_index=1)


@pytest.mark.parametrize(("rows", "processes"), [(12, 4), (13, 4), (15, 4), (4, 4), (3, 4), (1, 2)])
def test_shares_are_all_rows_once_in_order(monkeypatch, rows, processes):
    shares = []
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    for index in range(processes):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        shares.append(distributed.share_of(rows))
    lengths = [share.stop - share.start for share in shares]
    if rows < processes:
        assert lengths == [rows] * processes
        return
    assert [row for share in shares for row in range(share.start, share.stop)] == list(range(rows))
    assert max(lengths) - min(lengths) <= 1


def simulate(monkeypatch, each):
    """Makes `distributed.gather` return what every process would give, by its number."""
    monkeypatch.setattr(jax, "process_count", lambda: len(each))
    monkeypatch.setattr(distributed, "gather", lambda mine: np.stack(each))


def test_uneven_rows_come_back_in_order(monkeypatch):
    rows = np.arange(10.0).reshape(5, 2)
    padded = [rows[:3], rows[[3, 4, 4]]]
    simulate(monkeypatch, padded)
    np.testing.assert_array_equal(distributed.gather_rows(rows[:3], 5), rows)
    given = []
    monkeypatch.setattr(distributed, "gather", lambda mine: given.append(mine) or np.stack(padded))
    np.testing.assert_array_equal(distributed.gather_rows(rows[3:], 5), rows)
    assert given[0].shape == (3, 2)


def test_dealt_arrays_come_back_in_order(monkeypatch):
    dealt = [np.full(2, number) for number in range(5)]
    each = [np.stack(dealt[0::2]), np.stack([*dealt[1::2], np.zeros(2, int)])]
    simulate(monkeypatch, each)
    np.testing.assert_array_equal(distributed.gather_dealt(dealt[1::2], 5), dealt)


def test_bytes_of_any_length_come_back_whole(monkeypatch):
    each = [b"", bytes(range(256)) * 3, b"\0\0"]
    monkeypatch.setattr(jax, "process_count", lambda: len(each))
    for mine in each:
        given = []

        def gather(values, mine=mine, given=given):
            given.append(values)
            if len(given) == 1:
                return np.asarray([[len(one)] for one in each])
            others = [np.frombuffer(one.ljust(768, b"\0"), np.uint8) for one in each]
            others[each.index(mine)] = values
            return np.stack(others)

        monkeypatch.setattr(distributed, "gather", gather)
        assert distributed.gather_bytes(mine) == each
        assert given[0] == len(mine)


@pytest.mark.parametrize(("count", "processes"), [(5, 2), (4, 2), (2, 3), (3, 1), (0, 2)])
def test_dealt_bytes_come_back_in_order(monkeypatch, count, processes):
    things = [b"thing %d" % number for number in range(count)]
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    shares = []
    for index in range(processes):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        shares.append([things[number] for number in distributed.dealt(count)])
    assert sorted(sum(shares, [])) == things
    for share in shares:
        turn, given = iter(range(count)), []

        def gather_bytes(mine, turn=turn, given=given):
            number = next(turn)
            given.append(mine)
            return [dict(enumerate(one)).get(number, b"") for one in shares]

        monkeypatch.setattr(distributed, "gather_bytes", gather_bytes)
        assert list(distributed.gather_dealt_bytes(iter(share), count)) == things
        # Who has nothing left takes part all the same.
        assert given == [*share, *[b""] * (-(-count // processes) - len(share))]


def run_together(monkeypatch, mine, others):
    """The error of a block that fails as ``mine`` says beside others; what it has told them."""
    told = []
    monkeypatch.setattr(jax, "process_count", lambda: 1 + len(others))
    monkeypatch.setattr(
        distributed, "gather_bytes", lambda said: told.append(said) or [said, *others]
    )
    try:
        with distributed.together():
            if mine is not None:
                raise mine
    except Exception as error:  # noqa: BLE001 - any may be planted
        return error, told
    return None, told


def test_where_one_failed_no_process_goes_on(monkeypatch, caplog):
    assert run_together(monkeypatch, None, [b"", b""]) == (None, [b""])
    assert caplog.text == ""
    found, _ = run_together(monkeypatch, None, [b"", b"[SJ-E01] b.h5ad holds a NaN"])
    assert isinstance(found, errors.DisagreementError)
    assert "1 of 3 processes of this run failed" in str(found)
    assert "process 2: [SJ-E01] b.h5ad holds a NaN" in str(found)
    own = errors.PredictionError("a.h5ad", fix="predict again")
    own.add_note("while evaluating a.h5ad")
    found, told = run_together(monkeypatch, own, [b"[SJ-E01] b.h5ad holds a NaN"])
    assert found is own
    assert told == [b"[SJ-E01] a.h5ad. predict again, while evaluating a.h5ad"]
    assert "process 0 failed and waits for the others: [SJ-E01] a.h5ad." in caplog.text
    found, told = run_together(monkeypatch, MemoryError("no more"), [b""])
    assert isinstance(found, MemoryError)
    assert told == [b"[MemoryError] no more"]


def test_one_process_fails_as_it_would(monkeypatch):
    monkeypatch.setattr(distributed, "gather_bytes", lambda _: pytest.fail("asked the others"))
    with pytest.raises(ValueError, match="mine"), distributed.together():
        raise ValueError("mine")
    with distributed.together():
        pass


def test_one_process_has_nobody_to_agree_with():
    distributed.require_agreement({"config.seed": "1"})
    values = np.asarray([1 / 3], np.float64)
    assert distributed.gather(values).dtype == np.float64
    np.testing.assert_array_equal(distributed.gather(values), values[None])
