"""An ONNX graph of every model computes what torch does, for batches and lengths that it was not exported with."""

import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from diffmix import (
    DiffmixConfig,
    DiffmixForCausalLM,
    DiffmixForMaskedLM,
    DiffmixForSequenceClassification,
    DiffmixForSequencePairClassification,
)
from diffmix.models.pooling import AttentionPooling
from diffmix.ops import attention_diffusion
from diffmix.patterns import SparsePattern

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

# Raised inside torch: it uses a class of its own that it calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")

SMALL = {"vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "num_labels": 3}
LONGEST = 40
CLASSIFIER, PAIR, MASKED, CAUSAL = (
    DiffmixForSequenceClassification,
    DiffmixForSequencePairClassification,
    DiffmixForMaskedLM,
    DiffmixForCausalLM,
)
OPTIONS = {
    "neighbor": {"neighbor_offsets": [-8, -1, 0, 4]},
    "softmax": {"num_key_value_heads": 1},
    "heat_kernel": {"heat_form": "squared"},
    "attention_diffusion": {"diffusion_window": 2, "diffusion_random_links": 2, "diffusion_hops": 2},
}
EACH = {
    "neighbor": [(PAIR, {"pooling": "mean_max"}), (MASKED, {}), (CAUSAL, {})],
    "softmax": [(CLASSIFIER, {}), (CAUSAL, {})],
    "heat_kernel": [(CLASSIFIER, {})],
    "attention_diffusion": [(CLASSIFIER, {}), (CAUSAL, {"diffusion_hops": 1})],
}
VARIANTS = {
    "neighbor": [
        (CLASSIFIER, {"num_hidden_layers": 2, "neighbor_offsets": [[-1, 0, 1], [-8, -2, 0, 4]], "pooling": "mean_max"}),
        (CLASSIFIER, {"norm": "batch", "norm_placement": "pre", "pooling": "attention", "pooling_features": 5}),
        (CLASSIFIER, {"neighbor_shared_steps": True, "neighbor_tolerance": 0.2, "neighbor_max_steps": 3}),
        (CLASSIFIER, {"embedding_ngrams": [2, 3], "embedding_buckets": 50}),
        (CLASSIFIER, {"neighbor_tracks": True, "neighbor_offsets": [-8, -1, 0, 2], "gated_mlp": True}),
        (PAIR, {"neighbor_boundary": "wrap", "neighbor_alpha_mode": "channel", "pooling": "first"}),
        (MASKED, {"position_embedding": "learned", "neighbor_heads": 2, "document_context": True}),
    ],
    "softmax": [(CLASSIFIER, {"pooling": "max", "attention_qk_norm": True}), (PAIR, {}), (MASKED, {})],
    "heat_kernel": [
        (CLASSIFIER, {"heat_form": "normalized", "heat_time_mode": "learned", "heat_locality": 0.5}),
        (PAIR, {"heat_form": "dot", "heat_time_mode": "adaptive"}),
        (MASKED, {}),
        (CAUSAL, {}),
        (CAUSAL, {"heat_form": "normalized", "heat_locality": 0.5}),
        (CAUSAL, {"heat_form": "dot", "heat_time_mode": "adaptive", "heat_locality": 0.5}),
    ],
    "attention_diffusion": [
        (CLASSIFIER, {"diffusion_window": 17, "diffusion_global_tokens": [0, 20], "diffusion_random_links": 0}),
        (PAIR, {"diffusion_window": 0, "diffusion_global_tokens": 0}),
        (MASKED, {"diffusion_global_tokens": 3, "diffusion_coefficients": "heat", "num_key_value_heads": 1}),
    ],
}


@pytest.fixture(autouse=True)
def _untraced(caplog):
    """Without torch's records of its own tracing, which pytest would collect at length."""
    caplog.set_level(logging.WARNING, "torch.__trace")


def make(kind, **options):
    torch.manual_seed(0)
    model = kind(DiffmixConfig(**SMALL | options)).eval()
    for module in model.modules():
        if isinstance(module, AttentionPooling):
            nn.init.normal_(module.query)
        if isinstance(module, nn.BatchNorm1d):
            nn.init.normal_(module.running_mean)
    return model


class Together(nn.Module):
    """Several models on the same texts: an export takes seconds, for one of them or for all."""

    def __init__(self, models):
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, ids, mask, ids_pair=None, mask_pair=None):
        """A tuple of logits; those of padding are 0."""
        logits = []
        for model in self.models:
            pair = (ids_pair, mask_pair) if isinstance(model, PAIR) else ()
            output = model(ids, mask, *pair)
            logits.append(output.logits if output.logits.ndim == 2 else output.logits * mask.unsqueeze(-1))
            if output.get("diffusion_steps") is not None:
                logits.append(output.diffusion_steps)
        return tuple(logits)


def texts(batch, tokens):
    """Ids and mask; padding stands left, right, and in between, and the first row has none."""
    mask = torch.rand(batch, tokens) < torch.rand(batch, 1)
    mask[0] = True
    return torch.randint(1, SMALL["vocab_size"], (batch, tokens)), mask.long()


def session(model, inputs, path):
    with torch.no_grad():
        torch.onnx.export(
            model,
            inputs,
            path,
            dynamic_shapes=[{0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for _ in inputs],
            dynamo=True,
            verbose=False,
        )
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def run(session, inputs):
    names = [node.name for node in session.get_inputs()]
    return session.run(None, {name: values.numpy() for name, values in zip(names, inputs, strict=True)})


def check(mixer, chosen, path):
    """One export of some models of a mixer, and what it gives at other sizes; returns the session."""
    options = {"mixer": mixer, "max_position_embeddings": LONGEST} | OPTIONS[mixer]
    models = Together([make(kind, **options | changes) for kind, changes in chosen]).eval()
    paired = any(kind is PAIR for kind, _ in chosen)

    def draw(batch, tokens, tokens_pair):
        return (*texts(batch, tokens), *(texts(batch, tokens_pair) if paired else ()))

    exported = session(models, draw(2, 9, 11), path)
    for sizes in ((2, 9, 11), (1, 1, 1), (1, 33, 2), (5, 16, 40), (3, 7, 25), (2, LONGEST, 1)):
        inputs = draw(*sizes)
        with torch.no_grad():
            expected = models(*inputs)
        for got, logits in zip(run(exported, inputs), expected, strict=True):
            np.testing.assert_allclose(got, logits.numpy(), atol=1e-4, rtol=1e-4)
    return exported


@pytest.mark.slow
@pytest.mark.parametrize("mixer", OPTIONS)
def test_onnxruntime_gives_the_logits_of_torch_for_any_batch_and_length(mixer, tmp_path):
    exported = check(mixer, EACH[mixer], tmp_path / "model.onnx")
    if mixer == "attention_diffusion":
        with pytest.raises(Exception, match="out of"):  # the links of further tokens are not in the graph
            run(exported, texts(1, LONGEST + 1))


@pytest.mark.acceptance
@pytest.mark.parametrize("mixer", OPTIONS)
def test_so_does_every_variant(mixer, tmp_path):
    check(mixer, VARIANTS[mixer], tmp_path / "model.onnx")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:# The axis name:UserWarning")
def test_the_example_of_the_documentation_runs(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "onnx.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(example, "docs/onnx.md", "exec"), names)
    expected = names["model"](torch.from_numpy(names["inputs"]["input_ids"])).logits.detach().numpy()
    np.testing.assert_allclose(names["logits"], expected, atol=1e-4, rtol=1e-4)


def test_what_a_graph_cannot_hold_is_refused(monkeypatch):
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
    states = torch.randn(1, 1, 4, 2)
    with pytest.raises(ValueError, match="random_links is 1"):
        attention_diffusion(states, states, states, SparsePattern(1, random_links=1))
    with pytest.raises(ValueError, match=r"dropout_p is 0\.1"):
        attention_diffusion(states, states, states, SparsePattern(1), dropout_p=0.1)
