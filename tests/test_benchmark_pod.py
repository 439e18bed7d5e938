"""Reading TPU programs for what they send, and the ring model for what sending takes."""

from __future__ import annotations

import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture
def hlo(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import hlo

    return hlo


@pytest.fixture
def links(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import links

    return links


# As libtpu prints it, shortened: a loop whose number of turns stands nowhere, with a gather that
# goes on during another fusion, and a sum of which each device keeps its piece.
PROGRAM = """\
HloModule jit_step, is_scheduled=true

%start (p: bf16[1,512,1024]) -> (bf16[1,512,1024], bf16[1,4096,1024], s32[2]) {
  %p = bf16[1,512,1024]{2,1,0:T(8,128)(2,1)S(1)} parameter(0)
  %all-gather.1 = bf16[1,4096,1024]{2,1,0:T(8,128)(2,1)} all-gather(%p), channel_id=2, replica_groups=mesh['data'=2,'fsdp'=8,'genes'=1] {'fsdp'}, dimensions={1}
  ROOT %custom-call.6 = (bf16[1,512,1024]{2,1,0}, bf16[1,4096,1024]{2,1,0}, s32[2]{0}) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion (p: bf16[1,512,1024], x: bf16[64,1024]) -> bf16[64,1024] {
  %p = bf16[1,512,1024]{2,1,0} parameter(0)
  %all-gather.2 = bf16[1,4096,1024]{2,1,0} all-gather(%p), channel_id=2, replica_groups=mesh['data'=2,'fsdp'=8,'genes'=1] {'fsdp'}, dimensions={1}
  ROOT %dot = bf16[64,1024]{1,0} dot(%x, %x)
}

%done (p: bf16[1,512,1024]) -> bf16[1,4096,1024] {
  %p = bf16[1,512,1024]{2,1,0} parameter(0)
  %all-gather.3 = bf16[1,4096,1024]{2,1,0} all-gather(%p), channel_id=2, replica_groups=mesh['data'=2,'fsdp'=8,'genes'=1] {'fsdp'}, dimensions={1}
  ROOT %custom-call.8 = bf16[1,4096,1024]{2,1,0} custom-call(%p, %all-gather.3), custom_call_target="AsyncCollectiveDone"
}

%all-reduce-scatter.1 (g: bf16[4096,1024]) -> bf16[512,1024] {
  %g = bf16[4096,1024]{1,0} parameter(0)
  %pad = bf16[4104,1024]{1,0} pad(%g)
  %all-reduce.7 = bf16[4104,1024]{1,0:T(8,128)(2,1)} all-reduce(%pad), channel_id=3, replica_groups={{0,1,2,3,4,5,6,7},{8,9,10,11,12,13,14,15}}, to_apply=%add
  ROOT %dynamic-slice.3 = bf16[512,1024]{1,0:T(8,128)(2,1)S(1)} dynamic-slice(%all-reduce.7, %a, %b), dynamic_slice_sizes={512,1024}
}

%body (w: (s32[], bf16[64,1024])) -> (s32[], bf16[64,1024]) {
  %w = (s32[]{:T(128)}, bf16[64,1024]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%w), index=0
  %one = s32[]{:T(128)} constant(1)
  %next = s32[]{:T(128)} add(%i, %one)
  %a = (bf16[1,512,1024]{2,1,0}, bf16[1,4096,1024]{2,1,0}, s32[2]{0}) fusion(%w), kind=kCustom, calls=%start
  %b = bf16[64,1024]{1,0} fusion(%a, %w), kind=kCustom, calls=%async_collective_fusion
  %c = bf16[1,4096,1024]{2,1,0} fusion(%a), kind=kCustom, calls=%done
  %d = bf16[512,1024]{1,0} fusion(%c), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %t = (s32[]{:T(128)}, bf16[64,1024]{1,0}) tuple(%next, %b)
}

%cond (w: (s32[], bf16[64,1024])) -> pred[] {
  %w = (s32[]{:T(128)}, bf16[64,1024]{1,0}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%w), index=0
  %limit = s32[]{:T(128)} constant(6)
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

ENTRY %main (x: bf16[64,1024], g: f32[10]) -> f32[10] {
  %x = bf16[64,1024]{1,0} parameter(0)
  %g = f32[10]{0} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %copied = s32[]{:T(128)} copy(%zero)
  %tuple = (s32[]{:T(128)}, /*index=1*/bf16[64,1024]{1,0}) tuple(%copied, /*index=1*/%x)
  %while = (s32[]{:T(128)}, bf16[64,1024]{1,0}) while(%tuple), condition=%cond, body=%body
  %send = (f32[3]{0}, u32[]{:S(2)}, token[]) send(%g, %k), channel_id=5, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime"}
  %recv = (f32[3]{0}, u32[]{:S(2)}, token[]) recv(%k), channel_id=5, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime"}
  %permuted = (f32[26]{0}, f32[26]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%g), channel_id=9, source_target_pairs={{0,1}}
  ROOT %sum = f32[10]{0} all-reduce(%g), channel_id=4, replica_groups=[8,2]<=[2,8]T(1,0), to_apply=%add
}
"""  # noqa: E501


class TestCommunications:
    def test_each_form_of_a_tpu_program_counts_once_a_turn(self, hlo):
        eight = tuple(range(8))
        assert hlo.communications(PROGRAM) == [
            hlo.Communication(
                kind="all-gather", bytes=2 * 4096 * 1024, calls=6, group=eight, overlapped=True
            ),
            hlo.Communication(kind="reduce-scatter", bytes=2 * 512 * 1024, calls=6, group=eight),
            hlo.Communication(kind="between-slices", bytes=12, calls=1),
            hlo.Communication(kind="collective-permute", bytes=104, calls=1, overlapped=True),
            hlo.Communication(kind="all-reduce", bytes=40, calls=1, group=(0, 8)),
        ]
        assert hlo.uncounted_loops(PROGRAM) == 0

    def test_the_sum_by_kind_is_that_of_the_lines(self, hlo):
        found = hlo.collectives(PROGRAM)
        assert found["reduce-scatter"] == {"calls": 6, "bytes": 6 * 2 * 512 * 1024, "places": 1}
        assert set(found) == {one.kind for one in hlo.communications(PROGRAM)}

    @pytest.mark.parametrize(
        ("old", "new", "turns"),
        [
            ("constant(6)", "constant(24)", 24),
            ("constant(0)", "constant(2)", 4),  # from 2 to 6
            ("constant(1)", "constant(4)", 2),  # 0, 4
            ("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"9"}}', 9),
        ],
        ids=["limit", "start", "step", "said"],
    )
    def test_turns_are_those_of_the_counter(self, hlo, old, new, turns):
        text = PROGRAM.replace(old, new)
        assert text != PROGRAM
        assert hlo.communications(text)[0].calls == turns

    def test_a_loop_that_cannot_be_counted_is_said(self, hlo):
        text = PROGRAM.replace("direction=LT", "direction=NE")
        assert hlo.uncounted_loops(text) == 1
        assert hlo.communications(text)[0].calls == 1

    def test_a_gather_on_the_sparse_cores_counts_once_and_is_overlapped(self, hlo):
        called = PROGRAM[PROGRAM.index("%done (") : PROGRAM.index("%all-reduce-scatter.1")]
        called = called.replace("%done (", "%called (").replace("channel_id=2", "channel_id=7")
        called = called.replace("AsyncCollectiveDone", "Other")
        lines = (
            '  %g.start = ((), (), (s32[1]{0})) call-start(), async_execution_thread="sparsecore",'
            " to_apply=%called\n"
            "  %g.update = ((bf16[1,512,1024]{2,1,0})) call-update(%g.start, %w)\n"
            "  %g.done = bf16[1,4096,1024]{2,1,0} call-done(%g.update)\n"
        )
        text = PROGRAM.replace("%body (", called + "%body (").replace("  %a = ", lines + "  %a = ")
        gathers = [one for one in hlo.communications(text) if one.kind == "all-gather"]
        assert [(one.calls, one.overlapped) for one in gathers] == [(6, True)] * 2

    def test_the_same_gather_outside_of_fusions_is_another_one(self, hlo):
        line = "  %again = bf16[1,4096,1024]{2,1,0} all-gather(%x), channel_id=2, dimensions={1}\n"
        text = PROGRAM.replace("  %send =", line + "  %send =")
        kinds = [(one.kind, one.overlapped) for one in hlo.communications(text)]
        assert kinds.count(("all-gather", True)) == kinds.count(("all-gather", False)) == 1


def ring_all_gather(devices):
    """Pieces that each device receives until all have all, passed on around a ring."""
    held = [{i} for i in range(devices)]
    last, received = list(range(devices)), [0] * devices
    while any(len(pieces) < devices for pieces in held):
        last = [last[i - 1] for i in range(devices)]
        for i, piece in enumerate(last):
            held[i].add(piece)
            received[i] += 1
    return received


@pytest.mark.parametrize("devices", [2, 3, 8])
def test_a_ring_receives_what_the_model_says(links, devices):
    piece = 120.0
    (each,) = set(ring_all_gather(devices))
    assert links.received("all-gather", devices * piece, devices) == pytest.approx(each * piece)
    # Scattering a sum is the same way back: as many partial sums as pieces.
    assert links.received("reduce-scatter", piece, devices) == pytest.approx(each * piece)
    # And a sum for all is one after the other.
    assert links.received("all-reduce", devices * piece, devices) == pytest.approx(2 * each * piece)


def grid(*sizes, steps=(1, 1, 1)):
    places = [()]
    for size, step in zip(sizes, steps):
        places = [(*place, step * i) for place in places for i in range(size)]
    return places


@pytest.mark.parametrize(
    ("kind", "shape", "group", "expected"),
    [
        ("TPU v5 lite", (16, 16), grid(16, 16), 4),  # two rings, two directions each
        ("TPU v5 lite", (2, 4), grid(2, 4), 2),  # open: the corner has a link along each axis
        ("TPU v5 lite", (16, 16), grid(4, 2), 2),
        # Every fourth and every second chip: the rings' links are shared by 4 and by 2 groups.
        ("TPU v5 lite", (16, 16), grid(4, 8, steps=(4, 2)), 2 / 4 + 2 / 2),
        ("TPU v5", (4, 4, 4), grid(4, 2, 1), 2 + 1),
        ("TPU v5", (8, 8, 16), grid(8, 8, 16), 6),
        ("TPU v6 lite", (4, 4), grid(4, 4), 2),
    ],
)
def test_links_of_a_group_by_hand(links, kind, shape, group, expected):
    assert links.usable_links(group, shape, links.NETWORKS[kind]) == pytest.approx(expected)


def test_chips_that_are_no_grid_are_refused(links):
    with pytest.raises(ValueError, match="3 chips that are no grid"):
        links.usable_links([(0, 0), (0, 1), (1, 0)], (2, 2), links.NETWORKS["TPU v5"])


def test_a_gradient_on_a_whole_v5e_pod_takes_what_the_arithmetic_says(links, hlo):
    # 142.6 MB: 2 x 255/256 of it over 4 links of 50 GB/s.
    places = grid(16, 16)
    one = hlo.Communication(kind="all-reduce", bytes=142_600_000, calls=1, group=tuple(range(256)))
    network = links.NETWORKS["TPU v5 lite"]
    taken = links.seconds(one, places, [0] * 256, network)
    assert taken == pytest.approx(2 * 255 / 256 * 142.6e6 / 200e9)
    # The pages' own figure for the pod, 51.2 TB/s of all-reduce, is 200 GB/s a chip.
    assert 4 * network.link * 256 == pytest.approx(51.2e12)


def test_between_slices_it_is_the_hosts_network(links, hlo):
    places, slices = [*grid(2, 4), *grid(2, 4)], [0] * 8 + [1] * 8
    network = links.NETWORKS["TPU v5 lite"]
    piece = hlo.Communication(kind="between-slices", bytes=1_000_000, calls=3)
    # Two slices: a chip receives the other's piece, 3.125 GB/s of its host's 25.
    assert links.seconds(piece, places, slices, network) == pytest.approx(3e6 / 3.125e9)
    # A collective is one within the slice: both links of the open 2 x 4.
    inside = hlo.Communication(kind="all-gather", bytes=8_000, calls=1, group=tuple(range(8)))
    assert links.seconds(inside, places, slices, network) == pytest.approx(7_000 / 100e9)


def test_a_step_waits_for_what_is_not_overlapped(links):
    step = links.Step(arithmetic=0.6, memory=1.0, overlapped=0.5, exposed=0.25)
    assert (step.compute, step.total, step.efficiency) == (1.0, 1.25, 0.8)
    # At the full rating .36 s of arithmetic are less than what is overlapped.
    assert step.least_efficiency == pytest.approx(0.36 / 0.75)
    slow = links.Step(arithmetic=0.6, memory=1.0, overlapped=3.0, exposed=0.0)
    assert slow.total == 3.0


def test_feeding_is_held_against_what_was_measured(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import feeding

    row = {
        "topology": "v5e:2x4", "size": "published", "program": "train", "chips": 8,
        "chips_a_host": 4, "mesh": {"data": 8, "fsdp": 1, "genes": 1},
        "projected": {"spots_s_chip": 500.0},
        "row_bytes": {"numbers": 8, "handed": 2000, "stored": 10_000},
    }  # fmt: skip
    wide = {**row, "size": "wide", "row_bytes": {**row["row_bytes"], "handed": 4000}}
    paths = {"put_numbers": 2e6, "ram_ahead": 2e5, "stream": 1e3}
    measured = {"cores": 2, "condition": 300, "genes": 100,
                "lines": [{"path": k, "rows_per_s": v} for k, v in paths.items()]}  # fmt: skip
    text = feeding.tables({"lines": [row, {**row, "program": "sampler"}, wide]}, measured)
    # 2,000 spots/s a host of 10 kB each; two hosts; 10^7 x 10 kB over 8 chips are 12.5 GB.
    assert "| published | 2 | 2,000 | 0.1% | 1.0% | 2.0 x | 20.0 | 0.04 | 12.50 |" in text
    # Twice the bytes a row take RAM and files twice as long.
    assert "| wide | 2 | 2,000 | 0.1% | 2.0% | 4.0 x |" in text
    assert text.count("v5e:2x4") == 2
