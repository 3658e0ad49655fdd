"""What float64 makes of a mixer's random inputs, token by token."""

import numpy as np
from mixers import EPS, THETA, Attention, Delta
from reference import attend, delta_step, l2_norm, rms_norm, rotate, sigmoid, silu


def attended(case: Attention, tokens: range) -> np.ndarray:
    """What float64 makes of some of the case's tokens."""
    turned = []
    for t in range(case.tokens):
        key = rms_norm(case.key[t].astype(float).reshape(case.kv_heads, case.dim), case.key_norm.astype(float), EPS)
        turned.append(rotate(key, t, case.rotary, THETA))
    keys, values = np.stack(turned), case.value.astype(float).reshape(case.tokens, case.kv_heads, case.dim)
    rows = []
    for t in tokens:
        query, gate = np.split(case.query_gate[t].astype(float).reshape(case.heads, 2 * case.dim), 2, axis=1)
        query = rotate(rms_norm(query, case.query_norm.astype(float), EPS), t, case.rotary, THETA)
        rows.append((attend(query, keys[: t + 1], values[: t + 1]) * sigmoid(gate)).reshape(-1))
    return np.stack(rows)


def delta_rule(case: Delta) -> tuple[np.ndarray, np.ndarray]:
    """What float64 makes of the case: outputs and the state."""
    keys, values = case.key_heads * case.key_dim, (case.value_heads, case.value_dim)
    memory, out = np.zeros((case.value_heads, case.key_dim, case.value_dim)), np.empty((case.tokens, case.width))
    padded = np.concatenate([np.zeros((case.kernel - 1, case.channels)), case.mixed.astype(float)])
    for t in range(case.tokens):
        row = silu((padded[t : t + case.kernel] * case.conv).sum(0))
        query, key, value = np.split(row, [keys, 2 * keys])
        query, key = (
            np.repeat(l2_norm(part.reshape(case.key_heads, -1)), case.value_heads // case.key_heads, 0)
            for part in (query, key)
        )
        rate = np.exp(-np.exp(case.log_decay.astype(float)) * np.logaddexp(0, case.decay[t].astype(float) + case.bias))
        beta = sigmoid(case.beta[t].astype(float))
        read = delta_step(memory, query / np.sqrt(case.key_dim), key, value.reshape(values), rate, beta)
        out[t] = (rms_norm(read, case.norm, EPS) * silu(case.gate[t].astype(float).reshape(values))).reshape(-1)
    return out, memory
