"""Sections that look like H&E, drawn from noise, whose expression follows a known law.

A section is drawn in four passes, none of which looks at single pixels in Python:

    smooth random fields -> nests of tumour and fibre directions -> nuclei stamped one class at a
    time -> absorbances of haematoxylin and eosin -> colours (Beer-Lambert), strip by strip

The state ``z`` of a spot (`stemjax.data.synthetic.STATES`) is what is drawn within its patch: the
area that nests cover, and the averages of the fields that set how many lymphocytes there are, how
dense the collagen is and how large the tumour nuclei are. So the image shows the state, up to the
chance of single nuclei; it cannot show the mode that the law hides. Nothing here is measured on a
patient: the sections show that the system works, not how tissue behaves.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float
from scipy import sparse, special

from stemjax import errors
from stemjax.data import images, random_fields, slides, synthetic

_CELL_UM = 4.0  # fields are drawn on cells of this size and enlarged: all of them are smooth
_FIELD_UM = 280.0  # standard deviation of the kernel that smooths the state's fields
_NEST_UM = 20.0  # ... and the noise that separates nests from stroma
_NEST_COVER = (0.24, 0.76)  # share of the area that nests cover where the tumour field is 0 and 1
_TUMOUR_SPAN = (0.12, 0.88)  # share of a patch's tissue in nests at which the state is 0 and 1
_GRID_UM = {"tumour": 10.5, "lymphocyte": 8.4, "fibroblast": 21.0}  # sites of nuclei
_LYMPHOCYTE_SHARE = 0.5  # of the lymphocyte sites, taken where the immune field is 1
_TUMOUR_RADIUS_UM = (2.6, 5.5)  # half the long axis where the nuclear size is 0 and 1
_SMALLEST_PATCH_PX = 224  # the published patch rule: max(224 px, spot diameter)
_MAX_MEGAPIXELS = 400  # larger sections need a coarser mpp
_STRIP = 256  # rows coloured at a time: their temporaries stay in the processor's cache
# Absorbance (red, green, blue) of a unit of haematoxylin and of eosin.
_STAINS = np.array([[0.82, 0.86, 0.38], [0.16, 0.62, 0.26]])
GLASS = np.array([244.0, 242.0, 244.0])


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Plan:
    """Where the tissue and its spots lie; lengths in um from the image's top left corner."""

    height: float
    width: float
    array_xy: np.ndarray  # [l 2]
    spot_xy: np.ndarray  # [l 2]
    tissue: np.ndarray  # [y x] on cells, 1 inside


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Fields:
    """What is drawn, on cells [y x]; each in [0, 1] but the directions."""

    tissue: np.ndarray  # 1 inside the outline, 0 in fat, lumina and on glass
    nest: np.ndarray
    states: np.ndarray  # [k y x], in the order of synthetic.STATES, the field for tumour included
    warp: np.ndarray  # [2 y x] um: across and along the fibres
    angle: float  # of the fibres where the warp is flat


def draw_section(
    law: synthetic.Law,
    *,
    seed: int,
    id: str,
    patient: str | None,
    n_spots: int = 300,
    mpp: float = 1.0,
    pitch_um: float = 200.0,
    spot_diameter_um: float = 100.0,
) -> tuple[slides.Slide, Float[np.ndarray, "l k"]]:
    """A drawn section in memory, and the state of each of its spots.

    The same arguments give the same section. ``seed`` draws the section (tissue, stain, counts),
    ``law.seed`` what holds for all sections (how expression follows from the state).

    Args:
      law: the conditional law of the counts.
      seed: of this section; sections need different ones.
      id: slide id.
      patient: patient id, or None for unknown.
      n_spots: spots under the tissue, on a square lattice as Spatial Transcriptomics arrays have.
      mpp: um per pixel; the time goes with 1 / mpp^2.
      pitch_um: distance between neighbouring spots.
      spot_diameter_um: diameter of a spot.

    Returns:
      The slide, and z [l k] in [0, 1] with columns `synthetic.STATES`, rows as the slide's spots:
      averages over the patch that the published rule cuts out, max(224 px, spot diameter).

    Raises:
      ConfigError: a length, the seed or the number of spots cannot be used.
      SlideError: the id cannot be used.
    """
    _check(seed, n_spots, mpp, pitch_um, spot_diameter_um)
    fields_rng, nuclei_rng, colour_rng, counts_rng = np.random.default_rng([seed, 3]).spawn(4)
    patch_um = max(_SMALLEST_PATCH_PX, round(spot_diameter_um / mpp)) * mpp
    plan = _lay_out(n_spots, pitch_um, patch_um, fields_rng)
    fields = _draw_fields(plan, fields_rng)
    nuclei = _stamp_nuclei(plan, fields, mpp, nuclei_rng)
    pixels = _colour(fields, nuclei, mpp, colour_rng)
    z = _patch_states(plan, fields, patch_um)
    counts = law.sample_counts(z, counts_rng).counts
    slide = slides.Slide(
        id=id,
        patient=patient,
        counts=sparse.csr_array(counts),
        genes=law.genes,
        barcodes=tuple(f"{x:.0f}x{y:.0f}" for x, y in plan.array_xy),
        array_xy=plan.array_xy.astype(np.float32),
        pixel_xy=(plan.spot_xy / mpp).astype(np.float32),
        image=images.ArrayImage(pixels, source=f"drawn {id}"),
        mpp=mpp,
        spot_diameter_um=spot_diameter_um,
        sources={},
        notes=(f"drawn, not measured: section seed {seed}, law {law}",),
    )
    return slide, z


def _check(seed: int, n_spots: int, mpp: float, pitch: float, diameter: float) -> None:
    _require("seed", seed >= 0, "a number from 0 up", seed)
    _require("n_spots", 1 <= n_spots <= 5000, "1 to 5000", n_spots)
    _require("mpp", 0.2 <= mpp <= 2, "0.2 to 2 um per pixel, where nuclei can be drawn", mpp)
    _require("pitch_um", 50 <= pitch <= 1000, "50 to 1000 um", pitch)
    # The outline fills about six tenths of its image.
    pixels = n_spots * (pitch / mpp) ** 2 / 0.6 / 1e6
    _require(
        "mpp", pixels < _MAX_MEGAPIXELS, f"< {_MAX_MEGAPIXELS} Mpx", f"{mpp}: {pixels:.0f} Mpx"
    )
    _require("spot_diameter_um", 0 < diameter <= pitch, "above 0, at most pitch_um", diameter)


def _require(field: str, holds: bool, expected: str, found: object) -> None:
    if not holds:
        raise errors.ConfigError(
            f"drawn section: {field} cannot be used", expected=expected, found=str(found)
        )


def _lay_out(n_spots: int, pitch: float, patch: float, rng: np.random.Generator) -> _Plan:
    """The outline: the level of a lobed disc that holds exactly ``n_spots`` lattice sites."""
    side = int(np.ceil(np.sqrt(n_spots / 0.55))) + 2
    column, row = np.meshgrid(np.arange(side), np.arange(side))
    sites = np.stack([column.ravel(), row.ravel()], 1)
    centre = (side - 1) / 2 + rng.uniform(-0.4, 0.4, 2)
    lobes = rng.normal(0, [0.1, 0.09, 0.05, 0.035], 4)
    phase = rng.uniform(0, 2 * np.pi, 4)

    def level(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Distance from the centre in pitches, stretched by the lobes."""
        angle = np.arctan2(y - centre[1], x - centre[0])[..., None]
        reach = 1 + (lobes * np.cos(np.arange(2, 6) * angle + phase)).sum(-1)
        return np.hypot(x - centre[0], y - centre[1]) / reach

    height_of = level(sites[:, 0], sites[:, 1])
    chosen = np.sort(np.argsort(height_of, kind="stable")[:n_spots])
    edge = height_of[chosen].max() + 0.35
    # Patches at the rim stay inside the image, and glass shows around the tissue.
    around = np.linspace(0, 2 * np.pi, 361)
    rim = np.stack([np.cos(around), np.sin(around)], 1)
    rim = centre + rim * (edge / level(*(centre + rim).T))[:, None]
    half, glass = patch / 2 / pitch, 0.35
    low = np.minimum(sites[chosen].min(0) - half, rim.min(0) - glass)
    high = np.maximum(sites[chosen].max(0) + half, rim.max(0) + glass)
    width, height = (high - low) * pitch + 10
    y, x = np.mgrid[0 : height + _CELL_UM : _CELL_UM, 0 : width + _CELL_UM : _CELL_UM]
    outline = level((x - 5) / pitch + low[0], (y - 5) / pitch + low[1])
    ragged = 0.03 * _noise(rng, outline.shape, 16.0) + 0.09 * _noise(rng, outline.shape, 110.0)
    return _Plan(
        height=height,
        width=width,
        array_xy=sites[chosen] - sites[chosen].min(0) + 1,
        spot_xy=(sites[chosen] - low) * pitch + 5,
        tissue=special.expit((edge + ragged - outline) * pitch / 4).astype(np.float32),
    )


def _noise(rng: np.random.Generator, shape: tuple[int, int], um: float) -> np.ndarray:
    """Unit normal noise [y x] on cells, smooth over ``um``."""
    return random_fields.smooth(rng, shape, um / _CELL_UM)


def _draw_fields(plan: _Plan, rng: np.random.Generator) -> _Fields:
    """The state's fields, nests, holes and the directions of fibres."""
    shape = plan.tissue.shape
    states = np.stack([special.ndtr(_noise(rng, shape, _FIELD_UM)) for _ in synthetic.STATES])
    low, high = _NEST_COVER
    cover = low + (high - low) * states[0]
    # A level of unit normal noise that `cover` of the area exceeds; the slope sets a soft border.
    nest = special.expit((_noise(rng, shape, _NEST_UM) - special.ndtri(1 - cover)) / 0.12)
    fat = special.ndtr(_noise(rng, shape, 150.0)) > 0.93
    holes = _discs(shape, 56.0, (17.0, 28.0), 0.95, fat & (nest < 0.5), rng)
    lumina = _discs(shape, 45.0, (4.0, 11.0), 0.2, nest > 0.9, rng)
    tissue = plan.tissue * (1 - np.maximum(holes, lumina))
    warp = np.stack([60 * _noise(rng, shape, 170.0), 40 * _noise(rng, shape, 120.0)])
    return _Fields(
        tissue=tissue.astype(np.float32),
        nest=(nest * tissue).astype(np.float32),
        states=states.astype(np.float32),
        warp=warp,
        angle=float(rng.uniform(0, np.pi)),
    )


def _sites(
    shape: tuple[int, ...], pitch: float, jitter: float, rng: np.random.Generator
) -> np.ndarray:
    """Jittered hexagonal lattice [n 2] of (y, x) in um, no nearer to the border than 30 um."""
    height, width = ((n - 1) * _CELL_UM for n in shape)
    y, x = np.meshgrid(
        np.arange(30, height - 30, pitch * np.sqrt(0.75)), np.arange(30, width - 30, pitch)
    )
    x = x + pitch / 2 * (np.arange(y.shape[1]) % 2)
    at = np.stack([y.ravel(), x.ravel()], 1)
    at = at + rng.uniform(-jitter, jitter, at.shape) * pitch
    return np.clip(at, 30, (height - 30, width - 30))


def _cells(at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index of the cell that each point (y, x) in um lies in."""
    index = (at / _CELL_UM).astype(np.int64)
    return index[:, 0], index[:, 1]


def _ellipse(half_long: float, half_short: float, angle: float) -> np.ndarray:
    """An ellipse [s s], 1 inside and 0 outside; lengths in px, angle from the x axis."""
    reach = int(np.ceil(half_long)) + 1
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float64)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    distance = np.hypot(along / half_long, across / half_short)
    # About one pixel of soft border, whatever the size.
    return special.expit((1 - distance) * half_short * 3.0)


def _stamp(canvas: np.ndarray, at: np.ndarray, stamp: np.ndarray, ink: np.ndarray) -> None:
    """Lays ``stamp`` [s s] times ``ink`` [n] at pixels ``at`` [n 2] (y, x); the darker stays."""
    reach = stamp.shape[0] // 2
    flat, width = canvas.reshape(-1), canvas.shape[1]
    centre = at[:, 0] * width + at[:, 1]
    # One pixel of the stamp at a time for all places, which are distinct but for equal centres.
    for y, x in np.argwhere(stamp > 0.04):
        place = centre + (y - reach) * width + (x - reach)
        flat[place] = np.maximum(flat[place], (stamp[y, x] * ink).astype(canvas.dtype))


def _discs(
    shape: tuple[int, ...],
    pitch: float,
    radius: tuple[float, float],
    share: float,
    chosen: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Discs on cells [y x], at this share of the sites whose cell is ``chosen``."""
    canvas = np.zeros(shape, np.float32)
    at = _sites(shape, pitch, 0.15, rng)
    at = at[chosen[_cells(at)] & (rng.random(len(at)) < share)]
    size = rng.integers(0, 5, len(at))
    for i, um in enumerate(np.linspace(*radius, 5)):
        own = np.stack(_cells(at[size == i]), 1)
        _stamp(canvas, own, _ellipse(um / _CELL_UM, um / _CELL_UM, 0.0), np.ones(len(own)))
    return canvas


def _fibre_angle(fields: _Fields) -> np.ndarray:
    """Direction of the fibres [y x], radians from the x axis: along the lines of equal warp."""
    slope_y, slope_x = np.gradient(fields.warp[0], _CELL_UM)
    return np.arctan2(np.sin(fields.angle) - slope_x, np.cos(fields.angle) + slope_y)


def _stamp_nuclei(plan: _Plan, fields: _Fields, mpp: float, rng: np.random.Generator) -> np.ndarray:
    """Haematoxylin of the nuclei [y x] on pixels, uint8 of 255."""
    canvas = np.zeros((round(plan.height / mpp), round(plan.width / mpp)), np.uint8)
    fibre = _fibre_angle(fields)
    _, immune, _, size = fields.states
    for kind, pitch in _GRID_UM.items():
        at = _sites(plan.tissue.shape, pitch, 0.3, rng)
        cell = _cells(at)
        tissue, nest = fields.tissue[cell], fields.nest[cell]
        chance, n = rng.random(len(at)), len(at)
        angle, aspect, ink = rng.uniform(0, np.pi, n), rng.uniform(0.66, 0.98, n), np.zeros(n)
        if kind == "tumour":
            kept = (tissue > 0.6) & (chance * 0.5 + 0.25 < nest)
            low, high = _TUMOUR_RADIUS_UM
            radius = (low + (high - low) * size[cell]) * rng.uniform(0.86, 1.14, n)
            ink = rng.uniform(95, 120, n) + 42 * size[cell]
        elif kind == "lymphocyte":
            kept = (tissue > 0.6) & (chance < _LYMPHOCYTE_SHARE * immune[cell])
            radius, aspect = rng.uniform(2.5, 3.0, n), np.full(n, 0.95)
            ink = rng.uniform(235, 255, n)
        else:
            kept = (tissue > 0.6) & (nest < 0.2) & (chance < 0.75)
            radius, aspect = rng.uniform(4.5, 7.5, n), rng.uniform(0.2, 0.34, n)
            radius *= 0.8 + 0.45 * size[cell]
            angle = fibre[cell] + rng.normal(0, 0.15, n)
            ink = rng.uniform(115, 160, n)
        shape = np.stack([radius / mpp, aspect, angle], 1)[kept]
        _stamp_classes(canvas, (at[kept] / mpp).astype(np.int64), shape, ink[kept])
    return canvas


def _stamp_classes(canvas: np.ndarray, at: np.ndarray, shape: np.ndarray, ink: np.ndarray) -> None:
    """Stamps ellipses of ``shape`` [n 3] (half long axis px, aspect, angle), in coarse classes."""
    steps = np.array([0.5, 0.14, np.pi / 8])
    shape[:, 2] %= np.pi
    kinds, member = np.unique(np.floor(shape / steps).astype(np.int64), axis=0, return_inverse=True)
    order = np.argsort(member, kind="stable")
    bounds = np.searchsorted(member[order], np.arange(len(kinds) + 1))
    for kind, low, high in zip(kinds, bounds[:-1], bounds[1:], strict=True):
        half, aspect, angle = (kind + 0.5) * steps
        own = order[low:high]
        _stamp(canvas, at[own], _ellipse(half, half * aspect, angle), ink[own])


def _colour(
    fields: _Fields, nuclei: np.ndarray, mpp: float, rng: np.random.Generator
) -> np.ndarray:
    """The section's pixels [y x 3] uint8, coloured strip by strip."""
    # Sections differ a little in how strongly they took the stains, and in the stains' hues.
    stains = _STAINS * rng.normal(1, 0.008, (2, 1)) + rng.normal(0, 0.0025, (2, 3))
    tiles = {
        "fibre": random_fields.tile(rng, 3.0, 8.0),  # 0.5 um a row, 4 um a column
        "bundle": random_fields.tile(rng, 5.0, 12.0),  # 2 um a row, 8 um a column
        "grain": random_fields.tile(rng, 1.3, 1.3),
        "noise": 2.0
        * rng.standard_normal((random_fields.SIDE, random_fields.SIDE)).astype(np.float32),
    }
    height, width = nuclei.shape
    pixels = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, _STRIP):
        rows = slice(top, min(top + _STRIP, height))
        absorbed = _absorbance(fields, nuclei[rows], top, mpp, tiles)
        for channel in range(3):
            light = absorbed[0] * np.float32(-stains[0, channel])
            light -= absorbed[1] * np.float32(stains[1, channel])
            np.exp(light, out=light)
            light *= np.float32(GLASS[channel])
            start = rng.integers(0, random_fields.SIDE, 2)
            light += random_fields.window(tiles["noise"], start[0], start[1], light.shape)
            pixels[rows, :, channel] = np.clip(light, 0, 255)
    return pixels


def _absorbance(
    fields: _Fields, nuclei: np.ndarray, top: int, mpp: float, tiles: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Haematoxylin and eosin [y x] of the strip of pixels that starts at row ``top``."""
    shape = nuclei.shape
    tissue, nest, dense, warp_across, warp_along = (
        random_fields.enlarge(field, shape, top=top * mpp / _CELL_UM, step=mpp / _CELL_UM)
        for field in (fields.tissue, fields.nest, fields.states[2], *fields.warp)
    )
    y = (np.arange(top, top + shape[0], dtype=np.float32) * np.float32(mpp))[:, None]
    x = (np.arange(shape[1], dtype=np.float32) * np.float32(mpp))[None, :]
    cos, sin = np.float32(np.cos(fields.angle)), np.float32(np.sin(fields.angle))
    across, along = warp_across + (y * cos - x * sin), warp_along + (x * cos + y * sin)
    texture = 0.30 * random_fields.look_up(
        tiles["fibre"], across * np.float32(2), along * np.float32(0.25)
    )
    texture += 0.34 * random_fields.look_up(
        tiles["bundle"], across * np.float32(0.5), along * np.float32(0.125)
    )
    np.clip(texture + 1, 0.08, 2.4, out=texture)
    grain = random_fields.window(tiles["grain"], top, 0, shape)
    ink = nuclei.astype(np.float32) / 255
    stroma = tissue - nest
    eosin = stroma * (np.float32(0.12) + np.float32(0.75) * dense) * texture
    eosin += nest * (np.float32(0.25) + np.float32(0.42) * dense + np.float32(0.05) * grain)
    # Nests shrink from the stroma when tissue is fixed: a pale line around them.
    eosin *= 1 - np.float32(1.6) * nest * stroma
    eosin *= 1 - np.float32(0.6) * ink
    haematoxylin = np.float32(1.75) * ink * (1 + np.float32(0.12) * grain)
    haematoxylin += nest * (np.float32(0.17) + np.float32(0.03) * grain)
    haematoxylin += np.float32(0.05) * stroma * texture
    return haematoxylin, eosin


def _patch_states(plan: _Plan, fields: _Fields, patch: float) -> np.ndarray:
    """Averages [l k] of what is drawn, over the tissue within each spot's patch."""
    # Never zero: a small patch can lie within one fat cell.
    weight = fields.tissue.astype(np.float64) + 1e-3
    drawn = np.stack([weight, fields.nest, *(weight * fields.states[1:])])
    sums = np.pad(drawn.cumsum(1).cumsum(2), ((0, 0), (1, 0), (1, 0)))
    low = np.rint((plan.spot_xy - patch / 2) / _CELL_UM).astype(np.int64)
    high = np.rint((plan.spot_xy + patch / 2) / _CELL_UM).astype(np.int64)
    total, *parts = (
        sums[:, high[:, 1], high[:, 0]]
        - sums[:, low[:, 1], high[:, 0]]
        - sums[:, high[:, 1], low[:, 0]]
        + sums[:, low[:, 1], low[:, 0]]
    )
    z = np.stack(parts, 1) / total[:, None]
    z[:, 0] = (z[:, 0] - _TUMOUR_SPAN[0]) / (_TUMOUR_SPAN[1] - _TUMOUR_SPAN[0])
    return np.clip(z, 0, 1)
