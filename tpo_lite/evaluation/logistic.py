"""Logistic regression with fractional wins and weights, by Newton's method."""

from __future__ import annotations

import math

import numpy as np


def logistic(design: np.ndarray, wins: np.ndarray, weights: np.ndarray, penalty: float) -> np.ndarray:
    """Return the w (D,) that minimize sum weights * cross-entropy(wins, sigma(design w)) + penalty / 2 |w|^2.

    `design` is (N, D), `wins` (N,) from 0 to 1, `weights` (N,) not negative. By Newton's method; the penalty must be
    positive, so that there is one minimum.
    """
    found = np.zeros(design.shape[1])
    loss = math.inf
    step = found
    for _ in range(100):
        size = 1.0
        while True:
            trial = found + size * step
            logits = design @ trial
            now = float(weights @ (np.logaddexp(0, logits) - wins * logits)) + penalty / 2 * float(trial @ trial)
            if now <= loss + 1e-12 * abs(now) or size < 1e-6:
                break
            size /= 2
        done = loss - now <= 1e-12 * max(1.0, abs(now))
        found, loss = trial, now
        if done:
            break
        p = 1 / (1 + np.exp(-logits))
        gradient = design.T @ (weights * (p - wins)) + penalty * found
        curvature = design.T @ (design * (weights * p * (1 - p))[:, None]) + penalty * np.eye(len(found))
        step = -np.linalg.solve(curvature, gradient)
    return found
