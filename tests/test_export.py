"""Export of models: torch.export, ONNX and traced TorchScript in eval mode, torch.export in training mode."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sbnref import SyncBatchNorm, revert_sync_batchnorm

X = torch.randn(3, 2, 8, 8)


def agree(loaded, model):
    for n in (2, 3, 7):
        x = torch.randn(n, 2, 8, 8)
        torch.testing.assert_close(loaded(x), model(x), rtol=1e-4, atol=1e-5)


def saved_and_loaded(module, what):
    buffer = io.BytesIO()
    module.save(what, buffer)
    buffer.seek(0)
    return module.load(buffer)


@pytest.fixture
def model():
    """Return a model trained for a few steps, so its running statistics are not zeros and ones."""
    torch.manual_seed(0)
    norms = SyncBatchNorm(4), SyncBatchNorm(4, affine=False)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), norms[0], nn.ReLU(), nn.Flatten(2), norms[1])
    for _ in range(3):
        model(torch.randn(5, 2, 8, 8) * 2 + 1)
    return model.eval()


def test_torch_export_with_any_batch_size(model):
    program = torch.export.export(model, (X,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    agree(saved_and_loaded(torch.export, program).module(), model)


@pytest.mark.parametrize("impl", ["reference", "cpu"])
def test_a_forward_pass_in_training_mode(model, impl):
    """The exported program updates its running statistics like the model."""
    for layer in model:
        if isinstance(layer, SyncBatchNorm):
            layer.impl = impl
    model.train()
    with torch.no_grad():
        sizes = ({0: torch.export.Dim.DYNAMIC},)
        loaded = torch.export.export(copy.deepcopy(model), (X,), dynamic_shapes=sizes).module()
        agree(loaded, model)
    torch.testing.assert_close(dict(loaded.named_buffers()), dict(model.named_buffers()))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_onnx_runs_in_onnxruntime(model):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    program = torch.onnx.export(model, (X,), dynamo=True, dynamic_shapes=({0: "batch"},), verbose=False)
    assert "BatchNormalization" in {node.op_type for node in program.model.graph}
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    (name,) = (i.name for i in session.get_inputs())
    agree(lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0]), model)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Converting a tensor")
def test_a_trace_is_saved_and_loaded(model):
    agree(saved_and_loaded(torch.jit, torch.jit.trace(model, X)), model)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_eval_mode_without_running_statistics_is_torchs_own():
    layer = SyncBatchNorm(2, track_running_stats=False).eval()
    torch.jit.save(torch.jit.trace(layer, X), io.BytesIO())
    calls = [str(node.target) for node in torch.export.export(layer, (X,)).graph.nodes if node.op == "call_function"]
    assert not [call for call in calls if "sbnref" in call], calls
    for x in (X, X[:0]):
        torch.testing.assert_close(layer(x), F.batch_norm(x, None, None, layer.weight, layer.bias, training=True))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_trace_in_training_mode_is_refused():
    with pytest.raises(RuntimeError, match=r"got one in training mode; call eval\(\) first"):
        torch.jit.trace(SyncBatchNorm(2), X)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_reverted_model_is_exported_before_its_first_input(model):
    want = model(X)
    torch.testing.assert_close(torch.jit.script(revert_sync_batchnorm(model))(X), want)
    program = torch.export.export(model, (X,))
    torch.testing.assert_close(program.module()(X), want)
