"""Layouts: rules over paths, host batches to global arrays, one device against four."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from stemjax import errors, mesh

P = PartitionSpec


def grid(**axes):
    """A mesh without devices."""
    return AbstractMesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes))


def specs(layout, tree):
    return jax.tree.map(lambda sharding: sharding.spec, layout.shardings(tree))


PARAMS = {
    "blocks": {"attn": {"kernel": jnp.zeros((3, 8, 24)), "bias": jnp.zeros((3, 24))}},
    "head": {"kernel": jnp.zeros((8, 2))},
}


def test_first_matching_rule_counts_and_the_rest_is_copied():
    layout = mesh.Layout(
        mesh=grid(data=2, fsdp=4),
        rules=(
            (r"blocks/.*/bias$", P()),
            (r"blocks/", P(None, "fsdp", None)),
            (r"attn/kernel", P("data")),
        ),
    )
    assert specs(layout, PARAMS) == {
        "blocks": {"attn": {"kernel": P(None, "fsdp", None), "bias": P()}},
        "head": {"kernel": P()},
    }


def test_without_rules_everything_is_copied():
    layout = mesh.make_layout()
    assert all(s.is_fully_replicated for s in jax.tree.leaves(layout.shardings(PARAMS)))


def test_rules_reach_the_moments_of_the_optimiser():
    state = jax.eval_shape(optax.adamw(1e-3).init, PARAMS)
    layout = mesh.Layout(
        mesh=grid(data=4), rules=((r"blocks/attn/kernel$", P(None, None, ("data",))),)
    )
    moments = specs(layout, state)[0]
    assert moments.mu["blocks"]["attn"]["kernel"] == P(None, None, "data")
    assert moments.nu["blocks"]["attn"]["kernel"] == P(None, None, "data")
    assert moments.mu["head"]["kernel"] == P()
    assert moments.count == P()


@pytest.mark.parametrize(
    ("rule", "expected", "found"),
    [
        # 24 columns over 5, and over both axes: 2 * 5.
        ((r"attn/kernel", P(None, None, "fsdp")), "dimension 2 to be a multiple of 5", "24"),
        ((r"attn/kernel", P(None, ("data", "fsdp"))), "dimension 1 to be a multiple of 10", "8"),
        ((r"head/kernel", P(None, None, "data")), "at least 3 dimensions", "2"),
    ],
)
def test_a_rule_that_does_not_fit_is_named_with_the_array(rule, expected, found):
    layout = mesh.Layout(mesh=grid(data=2, fsdp=5), rules=(rule,))
    with pytest.raises(errors.ConfigError) as caught:
        layout.shardings(PARAMS)
    assert rule[0] in caught.value.what
    assert caught.value.expected == expected
    assert caught.value.found == found


def test_unusable_layouts_are_refused_when_made():
    with pytest.raises(errors.ConfigError, match=r"'model'.*fsdp|fsdp.*'model'"):
        mesh.Layout(mesh=grid(data=2, fsdp=4), rules=((r"kernel", P("fsdp", ("data", "model"))),))
    with pytest.raises(errors.ConfigError, match="one named 'data'"):
        mesh.Layout(mesh=grid(fsdp=4))
    with pytest.raises(errors.ConfigError, match="regular expression"):
        mesh.Layout(mesh=grid(data=4), rules=((r"blocks/(", P()),))


def test_each_device_holds_its_own_contiguous_rows():
    devices = jax.devices()
    layout = mesh.make_layout(devices[::-1])  # the order given does not matter
    rows = np.arange(24, dtype=np.float32).reshape(8, 3)
    placed = layout.put({"x": rows, "index": np.arange(8)})
    assert set(placed) == {"x", "index"}
    for shard in placed["x"].addressable_shards:
        i = devices.index(shard.device)
        np.testing.assert_array_equal(shard.data, rows[2 * i : 2 * i + 2])
    np.testing.assert_array_equal(placed["index"], np.arange(8))
    assert placed["x"].sharding == layout.data


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(errors.ConfigError) as caught:
        mesh.make_layout().put({"x": np.ones((6, 3))})
    assert caught.value.what == "batch"
    assert "4 devices" in caught.value.expected
    assert "6 rows" in caught.value.found
    assert "multiple of 4" in caught.value.fix
    with pytest.raises(errors.ConfigError, match="'y': 2"):
        mesh.make_layout().put({"x": np.ones((4, 3)), "y": np.ones((2, 3))})


def train(layout, steps=3):
    """Parameters and losses of a small regression trained under a layout."""
    rng = np.random.default_rng(0)
    batch = {
        "x": rng.normal(size=(16, 12)).astype(np.float32),
        "y": rng.normal(size=(16, 4)).astype(np.float32),
    }

    def init(key):
        one, two = jax.random.split(key)
        return {
            "hidden": {"kernel": jax.random.normal(one, (12, 8))},
            "head": {"kernel": jax.random.normal(two, (8, 4))},
        }

    def loss(params, batch):
        out = jnp.tanh(batch["x"] @ params["hidden"]["kernel"]) @ params["head"]["kernel"]
        return jnp.square(out - batch["y"]).mean()

    def step(params, batch):
        value, grad = jax.value_and_grad(loss)(params, batch)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grad), value

    key = jax.random.key(0)
    shardings = layout.shardings(jax.eval_shape(init, key))
    params = jax.jit(init, out_shardings=shardings)(key)
    compiled = jax.jit(step, out_shardings=(shardings, layout.replicated))
    placed, values = layout.put(batch), []
    for _ in range(steps):
        params, value = jax.block_until_ready(compiled(params, placed))
        values.append(float(value))
    return params, values, shardings


@pytest.mark.parametrize("rules", [(), ((r"kernel", P("data")),)], ids=["copied", "split"])
def test_four_devices_train_like_one(rules):
    single, single_values, _ = train(mesh.make_layout(jax.devices()[:1]))
    layout = mesh.Layout(mesh=mesh.make_layout().mesh, rules=rules)
    params, values, shardings = train(layout)
    assert values[0] > values[-1]
    # Sums over the batch run in another order: float32 roundings, three steps of them.
    np.testing.assert_allclose(values, single_values, rtol=1e-5)
    for one, other in zip(jax.tree.leaves(single), jax.tree.leaves(params)):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    for leaf, sharding in zip(jax.tree.leaves(params), jax.tree.leaves(shardings)):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
        expected = leaf.shape[0] // (4 if rules else 1)
        assert {shard.data.shape[0] for shard in leaf.addressable_shards} == {expected}


@pytest.mark.parametrize(
    ("axes", "shape", "pieces"),
    [({}, (4, 1, 1), 4), ({"fsdp": 2}, (2, 2, 1), 4), ({"fsdp": 2, "genes": 2}, (1, 2, 2), 2)],
)
def test_devices_stand_in_groups(axes, shape, pieces):
    layout = mesh.make_layout(**axes)
    assert tuple(layout.mesh.shape.values()) == shape
    assert layout.mesh.axis_names == ("data", "fsdp", "genes")
    assert set(layout.mesh.axis_types) == {AxisType.Auto}
    assert (layout.pieces, layout.share) == (pieces, (0, 1))
    assert [device.id for device in layout.mesh.devices.flat] == [0, 1, 2, 3]


@pytest.mark.parametrize("axes", [{"fsdp": 3}, {"genes": 8}, {"fsdp": 4, "genes": 2}, {"fsdp": 0}])
def test_groups_that_do_not_divide_the_devices_are_refused(axes):
    with pytest.raises(errors.ConfigError, match=r"divides the 4 devices"):
        mesh.make_layout(**axes)


class Chip:
    """A device that is not there, of a slice and a process."""

    platform = "tpu"

    def __init__(self, number, process, slice_index):
        self.id, self.process_index, self.slice_index = number, process, slice_index

    def __repr__(self):
        return f"chip {self.id}"


def grid_of(monkeypatch, chips, **axes):
    """The numbers of the chips by place, as the mesh would be given them."""
    made = []

    def note(grid, names, axis_types):
        made.append(grid)
        return AbstractMesh(grid.shape, names, axis_types=axis_types)

    monkeypatch.setattr(mesh, "Mesh", note)
    mesh.make_layout(chips, **axes)
    return [[[chip.id for chip in tokens] for tokens in rows] for rows in made[0]]


def test_short_axes_stay_inside_a_slice(monkeypatch):
    # Two slices of two processes of two chips, numbered across the slices.
    chips = [Chip(n, process=n // 2, slice_index=n % 4 // 2) for n in range(8)]
    found = grid_of(monkeypatch, chips, fsdp=2, genes=2)
    assert found == [[[0, 1], [4, 5]], [[2, 3], [6, 7]]]
    with pytest.raises(errors.ConfigError, match="the 4 devices of a slice"):
        mesh.make_layout(chips, fsdp=8)


def test_a_process_holds_whole_rows_or_a_piece_of_one_s_genes():
    chips = [Chip(n, process=n // 4, slice_index=0) for n in range(12)]
    with pytest.raises(errors.ConfigError, match="divisor or a multiple of the 4 devices"):
        mesh.make_layout(chips, genes=6)


def test_large_arrays_are_split_along_their_longest_dimension():
    layout = mesh.Layout(mesh=grid(data=2, fsdp=4, genes=1), split_from=64)
    tree = {
        # Layers are used one after another: never along them, however many.
        "blocks": {"a": jnp.zeros((96, 8, 12)), "b": jnp.zeros((4, 16, 4)), "few": jnp.zeros(60)},
        "square": jnp.zeros((8, 8)),
        "odd": jnp.zeros((9, 9)),
        "next": jnp.zeros((9, 8)),
        "params": {"blocks": {"c": jnp.zeros((8, 7, 4))}},
    }
    assert specs(layout, tree) == {
        "blocks": {"a": P(None, None, "fsdp"), "b": P(None, "fsdp"), "few": P()},
        "square": P(None, "fsdp"),
        "odd": P(),
        "next": P(None, "fsdp"),
        "params": {"blocks": {"c": P(None, None, "fsdp")}},
    }


def test_rules_go_before_the_longest_dimension():
    layout = mesh.Layout(mesh=grid(data=2, fsdp=4), rules=((r"head/", P()),), split_from=1)
    assert specs(layout, PARAMS)["head"] == {"kernel": P()}
    assert specs(layout, PARAMS)["blocks"]["attn"]["bias"] == P(None, "fsdp")


def test_what_is_at_home_already_stays():
    tree = {"a": jax.device_put(np.ones(3), mesh.make_layout().replicated), "b": np.ones(2)}
    assert mesh.bring_home(tree) is tree
