"""Embeddings to start from: out of the task's own texts, which tokens stand near which; of pixels, which are alike.

V tokens of the vocabulary, C context tokens, D channels.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from scipy import sparse
from sklearn.utils.extmath import randomized_svd

from diffmix.tasks.encoding import EncodedDataset

WINDOW = 64  # tokens that count as near: a text, or a piece of a long one
CONTEXTS = 8192  # the most frequent tokens, which say enough about all
SMOOTHING = 0.75  # of the contexts' frequencies, so that rare contexts do not dominate (Levy et al., 2015)
MOST_WINDOWS = 100_000  # of more, a random choice: enough to know the words, and bounds time and memory
FASTEST = 4.0  # half waves from the first amount to the last
_AT_ONCE = 20_000


def ppmi_embeddings(dataset: EncodedDataset, vocab_size: int, size: int, *, seed: int = 0) -> np.ndarray:
    """Token vectors from the singular value decomposition of positive pointwise mutual information.

    M_ij = max(0, log(P(i, j) / (P(i) P(j)^0.75))) over tokens i and contexts j that share a window; M ≈ U S Vᵀ, and the
    vectors are U √S. It takes seconds, and a rare word starts near the words that it occurs with, which a small labelled
    set alone cannot teach. Source: Levy and Goldberg (2014); Levy, Goldberg and Dagan (2015).

    Args:
        dataset: encoded texts; labels are not read.
        vocab_size: V.
        size: D.
        seed: of the randomised decomposition.

    Returns:
        float32 [V, D], scaled to standard deviation 1 over the tokens that occur; 0 for those that do not.
    """
    frequency = np.bincount(dataset.tokens, minlength=vocab_size)
    contexts = np.sort(np.argsort(-frequency, kind="stable")[: min(CONTEXTS, int((frequency > 0).sum()))])
    counts = sparse.csr_matrix((vocab_size, len(contexts)), dtype=np.float32)
    starts = np.concatenate(
        [np.arange(first, last, WINDOW) for first, last in zip(dataset.offsets[:-1], dataset.offsets[1:], strict=True)]
        + [dataset.offsets[-1:]]
    ).astype(np.int64)
    windows = np.random.default_rng(seed).permutation(len(starts) - 1)[:MOST_WINDOWS]
    for first in range(0, len(windows), _AT_ONCE):
        spans = [dataset.tokens[starts[window] : starts[window + 1]] for window in windows[first : first + _AT_ONCE]]
        tokens = np.concatenate(spans)
        bounds = np.concatenate([[0], np.cumsum([len(span) for span in spans])])
        ones = np.ones(len(tokens), dtype=np.float32)
        present = sparse.csr_matrix((ones, tokens, bounds), shape=(len(spans), vocab_size))
        present.sum_duplicates()
        present.data[:] = 1
        counts = counts + present.T.tocsr() @ present[:, contexts]
    pairs = counts.tocoo()
    others = pairs.row != contexts[pairs.col]  # every token is near itself
    row, col, count = pairs.row[others], pairs.col[others], pairs.data[others].astype(np.float64)
    token_total = np.bincount(row, weights=count, minlength=vocab_size)
    context_share = np.bincount(col, weights=count, minlength=len(contexts)) ** SMOOTHING
    context_share /= max(context_share.sum(), 1)
    information = np.log(count / (token_total[row] * context_share[col]))
    positive = information > 0
    vectors = np.zeros((vocab_size, size))
    occurring = np.unique(row[positive])
    if len(occurring) == 0:
        return vectors.astype(np.float32)
    # fp64, so that what is left of rounding does not show in the fp32 result.
    matrix = sparse.csr_matrix(
        (information[positive], (row[positive], col[positive])), shape=(vocab_size, len(contexts))
    )
    rank = min(size, vocab_size, len(contexts))
    decompose = cast(Any, randomized_svd)  # it states no types
    left, strength, _ = decompose(matrix, rank, n_iter=3, random_state=seed)
    vectors[occurring, :rank] = left[occurring] * np.sqrt(strength)
    return (vectors / vectors[occurring].std()).astype(np.float32)


def amount_embeddings(vocab_size: int, size: int, *, seed: int = 0) -> np.ndarray:
    """Vectors of ids that are amounts, such as grey values: smooth functions of the id, so that near ones start alike.

    E_vd = √2 cos(π (f_d v / (V-1) + φ_d)) with f_d uniform in [0, FASTEST] and φ_d in [0, 2]: random Fourier features (Rahimi
    and Recht, 2007). A model that draws each embedding on its own has to learn first that 100 is nearly 101.

    Args:
        vocab_size: V; 0 is padding, 1 the smallest amount.
        size: D.
        seed: of frequencies and phases.

    Returns:
        float32 [V, D], standard deviation about 1; 0 for padding.
    """
    random = np.random.default_rng(seed)
    speed, phase = random.uniform(0, FASTEST, size), random.uniform(0, 2, size)
    amount = np.arange(vocab_size)[:, None] / max(1, vocab_size - 1)
    vectors = np.sqrt(2) * np.cos(np.pi * (speed * amount + phase))
    vectors[0] = 0
    return vectors.astype(np.float32)
