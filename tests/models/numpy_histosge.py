"""HisToSGE's two networks in float64 numpy: one window, one head and one pair of spots at a time.

`published` is written from the description of the published network, `corrected` from what
`stemjax.models.histosge` says of its own. Neither shares a function with the code it checks.
"""

from __future__ import annotations

import math

import numpy as np

PLACES = 512
UNIT_UM = 100.0
WAVELENGTHS_UM = (200.0, 400.0, 800.0, 1600.0, 3200.0, 6400.0, 12800.0)


def gelu_tanh(x):
    """The tanh form of GELU."""
    return 0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3)))


def gelu_exact(x):
    """GELU by its definition, x times the normal distribution function of x."""
    return 0.5 * x * (1.0 + np.vectorize(math.erf)(x / np.sqrt(2.0)))


def softplus(x):
    """ln(1 + e^x)."""
    return np.log1p(np.exp(x))


def _norm(p, x, eps):
    out = np.empty_like(x)
    for i, row in enumerate(x):
        out[i] = (row - row.mean()) / np.sqrt(row.var() + eps)
    return out * p["scale"] + p["bias"]


def _linear(p, x):
    return x @ p["kernel"] + p.get("bias", 0.0)


def _softmax(logits):
    weights = np.exp(logits - max(logits))
    return weights / weights.sum()


def _attention(p, x, heads, allowed, fall_by_head, distance):
    """Each spot attends to the allowed ones; q, k and v lie one after another, heads inside."""
    fused = x @ p["qkv"]["kernel"]
    inner = fused.shape[1] // 3
    width = inner // heads
    out = np.zeros((len(x), inner))
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        query, key, value = (fused[:, i * inner : (i + 1) * inner][:, part] for i in range(3))
        for i in range(len(x)):
            logits = [
                query[i] @ key[j] / np.sqrt(width) - fall_by_head[h] * distance[i][j]
                for j in allowed
            ]
            out[i, part] = _softmax(np.array(logits)) @ value[allowed]
    return _linear(p["proj"], out)


def _blocks(p, x, heads, allowed, falls, distance, gelu, eps):
    for depth in sorted(p["blocks"]):
        block = p["blocks"][depth]
        normed = _norm(block["norm_attn"], x, eps)
        x = x + _attention(block["attn"], normed, heads, allowed, falls[int(depth)], distance)
        mlp, normed = block["mlp"], _norm(block["norm_mlp"], x, eps)
        x = x + _linear(mlp["fc2"], gelu(_linear(mlp["fc1"], normed)))
    return x


def _as64(tree):
    return {
        k: _as64(v) if isinstance(v, dict) else np.asarray(v, np.float64) for k, v in tree.items()
    }


def published(params, cond, place, present, *, heads, gelu=gelu_exact):
    """Every token's expression, [b l g] float64; of absent tokens nothing is said (NaN)."""
    p = _as64(params)
    windows = []
    for cond_row, place_row, present_row in zip(np.float64(cond), place, present):
        tokens = []
        for feature, (column, row) in zip(cond_row, place_row):
            token = _linear(p["feature"], feature) if "feature" in p else feature
            # Half steps are cut off: 3.5 is looked up as 3.
            column, row = (min(max(math.trunc(float(v)), 0), PLACES - 1) for v in (column, row))
            tokens.append(token + p["column"]["embedding"][column] + p["row"]["embedding"][row])
        x = np.array(tokens)
        n = len(x)
        allowed = [j for j in range(n) if present_row[j] > 0]
        level = np.zeros((n, n))
        x = _blocks(p, x, heads, allowed, np.zeros((len(p["blocks"]), heads)), level, gelu, 1e-5)
        x = np.maximum(_linear(p["fc1"], x), 0.0)
        x = np.maximum(_linear(p["fc2"], _norm(p["norm"], x, 1e-5)), 0.0)
        x[[j for j in range(n) if j not in allowed]] = np.nan
        windows.append(x)
    return np.array(windows)


def _fourier(offset):
    """(cos, sin) of the first axis at every wavelength, then of the second."""
    out = []
    for along in offset:
        phases = [2 * np.pi * along / wave for wave in WAVELENGTHS_UM]
        out += [np.cos(phase) for phase in phases] + [np.sin(phase) for phase in phases]
    return np.array(out)


def _moved(weight):
    """The factor that a weight of the kriging stands for."""
    return math.exp(min(max(20.0 * weight, -5.0), 5.0))


def _matern(r):
    """Matern correlation of nu = 3/2, r in length scales."""
    return (1.0 + math.sqrt(3.0) * r) * math.exp(-math.sqrt(3.0) * r)


def corrected(params, cond, x, seen, shown, present, xy, *, heads, gelu=gelu_tanh):
    """The first token's expression, [b g] float64."""
    p = _as64(params)
    result = []
    for window in zip(*(np.asarray(a, np.float64) for a in (cond, x, seen, shown, present, xy))):
        cond_l, x_l, seen_l, shown_l, present_l, xy_l = window
        n = len(cond_l)
        distance = [[math.dist(xy_l[i], xy_l[j]) / UNIT_UM for j in range(n)] for i in range(n)]
        tokens = []
        for i in range(n):
            token = _linear(p["feature"], cond_l[i])
            token = token + _linear(p["position"], _fourier(xy_l[i] - xy_l[0]))
            token += _linear(p["measured"], seen_l[i]) if shown_l[i] else p["unknown"][0]
            tokens.append(token + p["unknown"][1] if i == 0 else token)
        allowed = [j for j in range(n) if present_l[j] > 0]
        falls = softplus(p["slope"])
        hidden = _blocks(p, np.array(tokens), heads, allowed, falls, distance, gelu, 1e-6)
        hidden = _norm(p["norm"], hidden, 1e-6)
        drift = _linear(p["drift"]["fc2"], gelu(_linear(p["drift"]["fc1"], cond_l)))
        measured = [j for j in range(n) if shown_l[j] > 0]
        out = p["centre"].copy()
        for k, loading in enumerate(p["loadings"]):
            length = 4.0 * _moved(p["kriging"]["length"][k])
            noise = 1e-3 + _moved(p["kriging"]["noise"][k])
            score = drift[0, k] + _linear(p["head"], hidden[0])[k]
            level = 0.3 * _moved(p["kriging"]["level"][k])
            among = [[level + _matern(distance[i][j] / length) for j in measured] for i in measured]
            among = np.array(among).reshape(2 * (len(measured),)) + noise * np.eye(len(measured))
            asked = np.array([level + _matern(distance[0][j] / length) for j in measured])
            left = np.array([(x_l[j] - p["centre"]) @ loading - drift[j, k] for j in measured])
            score += asked @ np.linalg.inv(among) @ left if measured else 0.0
            out = out + score * loading
        result.append(out)
    return np.array(result)
