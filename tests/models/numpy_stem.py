"""Stem's forward pass in float64 numpy, written from the table of the published definition.

Independent of stemjax.models on purpose: one sample and one head at a time, a Python loop over
layers, PyTorch-like weights looked up by path. It shares no function with the code it checks.
"""

from __future__ import annotations

import numpy as np


def _silu(x):
    return x / (1.0 + np.exp(-x))


def _gelu_tanh(x):
    return 0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3)))


def _norm(x):
    mean, var = np.mean(x, axis=1, keepdims=True), np.var(x, axis=1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-6)


def _lin(p, x):
    return x @ p["kernel"] + p["bias"]


def _layer(tree, i):
    return {
        k: _layer(v, i) if isinstance(v, dict) else np.asarray(v[i], np.float64)
        for k, v in tree.items()
    }


def _timestep_features(t):
    out = np.zeros(256)
    for i in range(128):
        omega = np.exp(-np.log(10000.0) * i / 128)
        out[i], out[128 + i] = np.cos(t * omega), np.sin(t * omega)
    return out


def _self_attention(p, tokens, heads):
    width = tokens.shape[1]
    k = width // heads
    fused = _lin(p["qkv"], tokens)
    outs = []
    for h in range(heads):
        # Column layout (3, heads, head width).
        query = fused[:, h * k : (h + 1) * k]
        key = fused[:, width + h * k : width + (h + 1) * k]
        value = fused[:, 2 * width + h * k : 2 * width + (h + 1) * k]
        logits = query @ key.T / np.sqrt(k)
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        outs.append(weights / weights.sum(axis=1, keepdims=True) @ value)
    return _lin(p["proj"], np.concatenate(outs, axis=1))


def forward(params, x, noise_level, cond, *, heads):
    """Stem's output, [b channels g] float64."""
    p = _as64(params)
    depth, width = p["blocks"]["attn"]["qkv"]["kernel"].shape[:2]
    result = []
    for x_row, t, cond_row in zip(np.float64(x), np.float64(noise_level), np.float64(cond)):
        mlp = p["tokens"]["value"]
        rows = [
            p["tokens"]["name"][g] + _lin(mlp["fc2"], _silu(_lin(mlp["fc1"], np.array([x_row[g]]))))
            for g in range(len(x_row))
        ]
        tokens = np.stack(rows)
        c = _lin(p["noise"]["fc2"], _silu(_lin(p["noise"]["fc1"], _timestep_features(t))))
        c = c + _lin(p["condition"]["fc2"], _silu(_lin(p["condition"]["fc1"], cond_row)))
        for i in range(depth):
            block = _layer(p["blocks"], i)
            ada = _lin(block["modulation"]["linear"], _silu(c)).reshape(6, width)
            shift_attn, scale_attn, gate_attn, shift_mlp, scale_mlp, gate_mlp = ada
            inside = _norm(tokens) * (1 + scale_attn) + shift_attn
            tokens = tokens + gate_attn * _self_attention(block["attn"], inside, heads)
            inside = _norm(tokens) * (1 + scale_mlp) + shift_mlp
            hidden = _gelu_tanh(_lin(block["mlp"]["fc1"], inside))
            tokens = tokens + gate_mlp * _lin(block["mlp"]["fc2"], hidden)
        shift, scale = _lin(p["head"]["modulation"]["linear"], _silu(c)).reshape(2, width)
        result.append(_lin(p["head"]["linear"], _norm(tokens) * (1 + scale) + shift).T)
    return np.stack(result)


def _as64(tree):
    return {
        k: _as64(v) if isinstance(v, dict) else np.asarray(v, np.float64) for k, v in tree.items()
    }
