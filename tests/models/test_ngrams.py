import pytest
import torch

from diffmix import DiffmixConfig, DiffmixForCausalLM, DiffmixForSequenceClassification
from diffmix.models.ngrams import NgramEmbedding

TEXT = [5, 6, 7, 5, 6, 7, 8]


def filled(sizes, buckets=2**20):
    torch.manual_seed(0)
    embedding = NgramEmbedding(sizes, buckets, 4).double()
    torch.nn.init.normal_(embedding.weight)
    return embedding


def test_the_same_grams_have_the_same_rows_and_others_do_not():
    (rows,) = filled([3]).rows(torch.tensor([TEXT]))[:, 0]
    assert rows[2] == rows[5]  # 5 6 7
    assert len(set(rows.tolist())) == len(TEXT) - 1
    pairs, triples = filled([2, 3]).rows(torch.tensor([[5, 6, 7, 6, 5]]))[:, 0]
    assert len({*pairs.tolist(), *triples.tolist()}) == 10  # order counts, and so do the size and the beginning
    whole = filled([3]).rows(torch.tensor([[250, 251, 252, 253]]))
    assert torch.equal(whole, filled([3]).rows(torch.tensor([[250, 251, 252, 253]], dtype=torch.int32)))
    (bounded,) = filled([3], buckets=2).rows(torch.tensor([TEXT]))[:, 0]
    assert set(bounded.tolist()) <= {0, 1}


def test_the_rows_are_those_of_saved_weights():
    """The formula of the docstring, with Python's whole numbers."""
    a, p, ids, sizes, buckets = 1_000_003, 2**31 - 1, [255, 256, 3, 0, 255], (2, 4), 1000
    expected = []
    for size in sizes:
        for end in range(len(ids)):
            key = 0
            for back in range(size):
                key = (a * key + (ids[end - back] + 1 if end >= back else 0)) % p
            expected.append((a * key + size - 1) % p % buckets)
    assert NgramEmbedding(sizes, buckets, 1).rows(torch.tensor([ids])).flatten().tolist() == expected


def test_a_token_adds_up_the_grams_that_end_with_it():
    embedding = filled([2, 4])
    ids = torch.tensor([TEXT])
    whole = embedding(ids)
    torch.testing.assert_close(whole, embedding.weight[embedding.rows(ids)].sum(0))
    torch.testing.assert_close(whole[:, :4], embedding(ids[:, :4]))  # later tokens change nothing
    assert not torch.allclose(whole[:, 4:], embedding(torch.tensor([[*TEXT[:3], 9, *TEXT[4:]]]))[:, 4:])


def test_a_model_begins_as_one_without():
    small = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 2, "num_labels": 2}
    plain = DiffmixForSequenceClassification(DiffmixConfig(**small)).eval()
    grams = DiffmixForSequenceClassification(DiffmixConfig(**small, embedding_ngrams=[2], embedding_buckets=9)).eval()
    missing = grams.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert missing == ["model.ngrams.weight"]
    ids = torch.tensor([TEXT])
    torch.testing.assert_close(grams(ids).logits, plain(ids).logits)
    grams(ids, labels=torch.tensor([1])).loss.backward()
    assert grams.model.ngrams.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("sizes", [[1], [2, 2], [0], [2.5], [-3], 3, None, "34"])
def test_sizes_that_do_not_fit_are_named(sizes):
    with pytest.raises(ValueError, match=r"embedding_ngrams is .*give different whole numbers of at least 2"):
        DiffmixConfig(embedding_ngrams=sizes)


def test_what_a_cache_could_not_go_on_with_is_refused():
    with pytest.raises(ValueError, match=r"embedding_ngrams.*causal.*leave embedding_ngrams out"):
        DiffmixForCausalLM(DiffmixConfig(embedding_ngrams=[3]))
    with pytest.raises(ValueError, match="embedding_buckets is 0"):
        DiffmixConfig(embedding_ngrams=[3], embedding_buckets=0)
