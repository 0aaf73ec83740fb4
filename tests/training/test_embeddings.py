import numpy as np
import pytest

from diffmix.tasks.encoding import EncodedDataset
from diffmix.training.embeddings import WINDOW, amount_embeddings, ppmi_embeddings


def dataset(rows):
    return EncodedDataset(
        np.concatenate(rows).astype(np.int32), np.concatenate([[0], np.cumsum([len(r) for r in rows])])
    )


def two_topics(random, texts=400, words=12):
    """Texts whose words come from one of two disjoint topics: ids 1..12 and 13..24."""
    return dataset([random.integers(1, words + 1, size=9) + words * (text % 2) for text in range(texts)])


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_words_of_one_topic_start_near_each_other():
    vectors = ppmi_embeddings(two_topics(np.random.default_rng(0)), 30, 8)
    within = np.mean([cosine(vectors[i], vectors[j]) for i in range(1, 13) for j in range(1, 13) if i < j])
    across = np.mean([cosine(vectors[i], vectors[j]) for i in range(1, 13) for j in range(13, 25)])
    assert within > 0.5 > across + 0.4


def test_shape_scale_and_tokens_that_never_occur():
    vectors = ppmi_embeddings(two_topics(np.random.default_rng(0)), 30, 8)
    assert vectors.shape == (30, 8)
    assert vectors.dtype == np.float32
    assert vectors[1:25].std() == pytest.approx(1, rel=1e-3)
    assert not vectors[0].any()
    assert not vectors[25:].any()


def test_is_reproducible_and_fits_any_size():
    data = two_topics(np.random.default_rng(0))
    before = data.tokens.copy()
    np.testing.assert_allclose(ppmi_embeddings(data, 30, 8), ppmi_embeddings(data, 30, 8), atol=1e-6)
    np.testing.assert_array_equal(data.tokens, before)
    assert ppmi_embeddings(data, 30, 64).shape == (30, 64)  # more channels than tokens: the rest is 0


def test_long_texts_count_by_windows():
    """Two topics one after the other in every text: only windows keep them apart."""
    random = np.random.default_rng(0)
    rows = [np.concatenate([random.integers(1, 13, WINDOW), random.integers(13, 25, WINDOW)]) for _ in range(50)]
    vectors = ppmi_embeddings(dataset(rows), 30, 8)
    assert cosine(vectors[1], vectors[2]) > cosine(vectors[1], vectors[14]) + 0.4


def test_texts_without_pairs_give_zeros():
    assert not ppmi_embeddings(dataset([np.array([3]), np.array([4])]), 10, 4).any()


def test_near_amounts_start_near():
    vectors = amount_embeddings(257, 512)
    assert vectors.dtype == np.float32
    assert not vectors[0].any()  # padding
    grey = vectors[1:]
    near, apart = (np.linalg.norm(grey[distance:] - grey[:-distance], axis=1) for distance in (1, 128))
    assert near.max() < 0.1 * apart.min()
    assert grey.std() == pytest.approx(1, rel=0.05)
    np.testing.assert_array_equal(vectors, amount_embeddings(257, 512))
    assert not np.array_equal(vectors, amount_embeddings(257, 512, seed=1))
