"""The fast path against the definition: values and every gradient, any offsets, masks, boundaries, dtypes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffmix.ops import neighbor_diffusion, reference

# Adjacent, dilated (one convolution), past-only, future-only, ±2^k, irregular, far beyond the ends.
NEIGHBOURHOODS = [
    (0,),
    (-1, 0, 1),
    (1, -1, 0),
    (-2, 0, 2),
    (-2, -1, 0),
    (1, 2, 3),
    (-8, -4, -2, -1, 0, 1, 2, 4, 8),
    (-3, 1, 5),
    (-100, 0, 100),
    (70, 90),
]


@st.composite
def problems(draw, dtype=torch.float64):
    """hidden, weight, offsets, padding_mask, boundary; odd lengths, heads, out ≠ in, masks with holes and empty rows."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    batch, tokens = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 3, 5, 15, 16, 33]))
    heads, channels, out = (
        draw(st.sampled_from([None, 1, 2])),
        draw(st.sampled_from([1, 3])),
        draw(st.sampled_from([1, 4])),
    )
    offsets = draw(st.sampled_from(NEIGHBOURHOODS))
    shape = (len(offsets), out, channels) if heads is None else (len(offsets), heads, out, channels)
    weight = torch.randn(shape, generator=generator, dtype=dtype)
    hidden = torch.randn(batch, tokens, channels * (heads or 1), generator=generator, dtype=dtype)
    if draw(st.integers(0, 3)) == 0:  # tracks
        weight, channels = None, len(offsets) + draw(st.integers(0, 3))
        hidden = torch.randn(batch, tokens, channels, generator=generator, dtype=dtype)
    mask = None
    if draw(st.booleans()):
        mask = torch.rand(batch, tokens, generator=generator) < draw(st.sampled_from([0.0, 0.5, 0.9, 1.0]))
    return hidden, weight, offsets, mask, draw(st.sampled_from(["zero", "wrap"]))


def value_and_gradients(function, hidden, weight, offsets, mask, boundary, upstream_seed=0):
    inputs = [hidden := hidden.clone().requires_grad_()]
    if weight is not None:
        inputs.append(weight := weight.clone().requires_grad_())
    out = function(hidden, weight, offsets, padding_mask=mask, boundary=boundary)
    if mask is not None:
        out = out.masked_fill(~mask.unsqueeze(-1), 0.0)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(upstream_seed), dtype=torch.float64)
    gradients = torch.autograd.grad((out * upstream.to(out.dtype)).sum(), inputs)
    return out.detach(), *gradients


@given(problems())
def test_equals_the_definition_in_value_and_gradients(problem):
    fast = value_and_gradients(neighbor_diffusion, *problem)
    plain = value_and_gradients(reference.neighbor_diffusion, *problem)
    for got, expected in zip(fast, plain, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-10)


@given(problems(dtype=torch.float32))
def test_equals_the_definition_in_single_precision(problem):
    hidden, weight, *rest = problem
    fast = value_and_gradients(neighbor_diffusion, hidden, weight, *rest)
    plain = value_and_gradients(
        reference.neighbor_diffusion, hidden.double(), None if weight is None else weight.double(), *rest
    )
    for got, expected in zip(fast, plain, strict=True):
        torch.testing.assert_close(got.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("boundary", ["zero", "wrap"])
@pytest.mark.parametrize("offsets", [(-1, 0, 1), (-4, -2, -1, 0, 1, 2, 4), (-2, -1, 0)])
def test_bfloat16_errs_at_most_twice_as_much_as_the_plain_definition_in_bfloat16(offsets, boundary):
    hidden = torch.randn(3, 63, 32, dtype=torch.float64)
    weight = torch.randn(len(offsets), 32, 32, dtype=torch.float64) / (32 * len(offsets)) ** 0.5
    mask = torch.arange(63)[None] < torch.tensor([63, 40, 7])[:, None]
    # Both low-precision runs start from the same rounded inputs, so that only their arithmetic differs.
    low = hidden.bfloat16(), weight.bfloat16()
    exact = value_and_gradients(reference.neighbor_diffusion, low[0].double(), low[1].double(), offsets, mask, boundary)
    plain = value_and_gradients(reference.neighbor_diffusion, *low, offsets, mask, boundary)
    fast = value_and_gradients(neighbor_diffusion, *low, offsets, mask, boundary)
    for name, e, p, f in zip(("out", "hidden", "weight"), exact, plain, fast, strict=True):
        allowed = 2 * (p.double() - e).norm() + 1e-3 * e.norm()
        assert (f.double() - e).norm() <= allowed, name


@pytest.mark.parametrize("boundary", ["zero", "wrap"])
@pytest.mark.parametrize("offsets", [(-1, 0, 1), (-3, 1, 5), (-2, -1, 0)])
def test_gradcheck(offsets, boundary):
    hidden = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(len(offsets), 2, 3, 2, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[1, 1, 0, 1, 0], [0, 1, 1, 1, 1]], dtype=torch.bool)

    def real_outputs(hidden, weight):
        return neighbor_diffusion(hidden, weight, offsets, padding_mask=mask, boundary=boundary)[mask]

    assert torch.autograd.gradcheck(real_outputs, (hidden, weight))


@given(problems(), st.integers(0, 6), st.integers(0, 6))
def test_padding_changes_nothing_and_is_not_read(problem, left, right):
    hidden, weight, offsets, _, boundary = problem
    alone = neighbor_diffusion(hidden, weight, offsets, boundary=boundary)
    batch, tokens, channels = hidden.shape
    padded = torch.full((batch, left + tokens + right, channels), float("nan"), dtype=hidden.dtype)
    padded[:, left : left + tokens] = hidden
    mask = torch.zeros(padded.shape[:2], dtype=torch.bool)
    mask[:, left : left + tokens] = True
    out = neighbor_diffusion(padded, weight, offsets, padding_mask=mask, boundary=boundary)
    torch.testing.assert_close(out[:, left : left + tokens], alone, atol=1e-10, rtol=1e-10)
    assert out.isfinite().all()


def test_the_definition_by_hand():
    hidden = torch.tensor([[[1.0], [2.0], [4.0]]])
    weight = torch.tensor([[[10.0]], [[100.0]]])  # 10 for the token before, 100 for the token after
    zero = reference.neighbor_diffusion(hidden, weight, (-1, 1))
    wrap = reference.neighbor_diffusion(hidden, weight, (-1, 1), boundary="wrap")
    assert zero.flatten().tolist() == [200.0, 410.0, 20.0]
    assert wrap.flatten().tolist() == [240.0, 410.0, 120.0]


def test_tracks_by_hand():
    hidden = torch.tensor(
        [[[1.0, 10.0, 100.0], [2.0, 20.0, 200.0], [4.0, 40.0, 400.0]]]
    )  # two channels move, one stays
    out = neighbor_diffusion(hidden, None, (-1, 0))
    assert out.tolist() == [[[0.0, 0.0, 100.0], [1.0, 10.0, 200.0], [2.0, 20.0, 400.0]]]
    wrapped = neighbor_diffusion(hidden, None, (-1, 0), boundary="wrap")
    assert wrapped[0, 0].tolist() == [4.0, 40.0, 100.0]


@pytest.mark.parametrize("offsets", [(-1, 0, 1), (-7, -2, 0, 2), (9,)])
def test_tracks_have_second_derivatives(offsets):
    hidden = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda h: neighbor_diffusion(h, None, offsets), [hidden])
    torch.autograd.gradgradcheck(lambda h: neighbor_diffusion(h, None, offsets) ** 2, [hidden])


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own, where it prepares them
def test_tracks_under_torch_func():
    hidden, tangent = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    found = []
    for function in (neighbor_diffusion, reference.neighbor_diffusion):

        def tracks(h, function=function):
            return function(h, None, (-7, -1, 0, 2))

        along = torch.func.jvp(tracks, (hidden,), (tangent,))
        slope = torch.func.grad(lambda h, tracks=tracks: (tracks(h) * tangent).sum())(hidden)
        found.append([*along, slope])
    torch.testing.assert_close(*found)
    many = torch.stack([hidden, tangent])
    each = torch.stack([neighbor_diffusion(h, None, (-1, 0, 2)) for h in many])
    torch.testing.assert_close(torch.func.vmap(lambda h: neighbor_diffusion(h, None, (-1, 0, 2)))(many), each)


def test_past_offsets_do_not_see_the_future():
    hidden, weight = torch.randn(1, 20, 4), torch.randn(3, 4, 4)
    changed = hidden.clone()
    changed[:, 11:] += 1.0
    before, after = (neighbor_diffusion(h, weight, (-4, -1, 0)) for h in (hidden, changed))
    assert torch.equal(before[:, :11], after[:, :11])
    assert not torch.equal(before[:, 11:], after[:, 11:])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden": torch.zeros(2, 3)}, "hidden has shape"),
        ({"hidden": torch.zeros(2, 3, 4, dtype=torch.long)}, "hidden has dtype"),
        ({"weight": torch.zeros(4, 4)}, "weight has shape"),
        ({"weight": torch.zeros(2, 4, 4)}, "2 matrices for 3 offsets"),
        ({"weight": torch.zeros(3, 4, 5)}, "weight takes 5 channels"),
        ({"weight": None, "offsets": range(5)}, "weight is None, .* 5 offsets for 4 channels"),
        ({"offsets": ()}, "offsets is"),
        ({"offsets": (0, 0, 1)}, "offsets is"),
        ({"offsets": (0, 0.5, 1)}, "offsets is"),
        ({"offsets": (-1.0, 0, 1)}, "offsets is"),
        ({"boundary": "mirror"}, "boundary is 'mirror'"),
        ({"padding_mask": torch.ones(2, 4, dtype=torch.bool)}, "padding_mask has shape"),
        ({"padding_mask": torch.ones(2, 3)}, "padding_mask has dtype"),
    ],
)
@pytest.mark.parametrize("function", [neighbor_diffusion, reference.neighbor_diffusion])
def test_wrong_arguments_are_named(function, change, words):
    arguments = {"hidden": torch.zeros(2, 3, 4), "weight": torch.zeros(3, 4, 4), "offsets": (-1, 0, 1)} | change
    with pytest.raises(ValueError, match=words):
        function(**arguments)


def test_compiles_into_one_graph_for_any_length():
    def mix(hidden, weight, mask):
        return neighbor_diffusion(hidden, weight, (-1, 0, 1), padding_mask=mask)

    compiled = torch.compile(mix, fullgraph=True, dynamic=True, backend="eager")
    weight = torch.randn(3, 4, 4)
    for tokens in (7, 12):
        hidden = torch.randn(2, tokens, 4)
        mask = torch.rand(2, tokens) < 0.7
        expected = reference.neighbor_diffusion(hidden, weight, (-1, 0, 1), padding_mask=mask)
        out = compiled(hidden, weight, mask)
        torch.testing.assert_close(out[mask], expected[mask], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("boundary", ["zero", "wrap"])
@pytest.mark.parametrize("offsets", [(10**9,), (-(10**30), 1), (3, -(10**8), 10**8 + 1)])
@pytest.mark.parametrize("weighted", [True, False])
def test_huge_offsets_cost_nothing(boundary, offsets, weighted):
    hidden = torch.randn(2, 7, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(len(offsets), 6, 6, dtype=torch.float64, requires_grad=True) if weighted else None
    mask = torch.tensor([[True] * 7, [False, True, True, False, True, True, True]])
    found = neighbor_diffusion(hidden, weight, offsets, padding_mask=mask, boundary=boundary)
    inputs = [hidden] if weight is None else [hidden, weight]
    slopes = torch.autograd.grad(found[mask].square().sum(), inputs)
    for row, length in ((0, 7), (1, 5)):
        real = hidden[row][mask[row]]
        # To a row of this length, offsets are what is left of them: outside of it, or once round.
        small = [o % length if boundary == "wrap" else max(-length, min(length, o)) for o in offsets]
        shifted = []
        for offset in small:
            place = torch.arange(length) + offset
            inside = (place >= 0) & (place < length)
            heard = real[place.clamp(0, length - 1)] * inside[:, None] if boundary == "zero" else real[place % length]
            shifted.append(heard)
        if weight is None:
            tracks = [h.tensor_split(len(offsets), -1)[number] for number, h in enumerate(shifted)]
            expected = torch.cat(tracks, dim=-1)
        else:
            expected = sum(h @ w.T for h, w in zip(shifted, weight, strict=True))
        torch.testing.assert_close(found[row][mask[row]], expected)
    assert all(slope.isfinite().all() for slope in slopes)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_tracks_have_a_hessian():
    hidden = torch.randn(1, 3, 4, dtype=torch.float64)
    found, expected = (
        torch.func.hessian(lambda h, f=function: f(h, None, (-1, 0, 1)).pow(3).sum())(hidden)
        for function in (neighbor_diffusion, reference.neighbor_diffusion)
    )
    torch.testing.assert_close(found, expected)
