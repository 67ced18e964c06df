import pathlib
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from accel.errors import WeightsError
from accel.zoo.weights_io import load_weights, save_half


def small():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))


def equal(a, b, atol=0.0):
    return all(torch.allclose(x, y, atol=atol) for x, y in zip(a.state_dict().values(), b.state_dict().values()))


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
def test_round_trip(tmp_path, suffix):
    source, path = small(), tmp_path / f"w{suffix}"
    save_file(source.state_dict(), path) if suffix == ".safetensors" else torch.save(source.state_dict(), path)
    assert equal(load_weights(small(), path), source)


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_checkpoints_that_wrap_the_state(tmp_path, key):
    source = small()
    torch.save({key: source.state_dict(), "epoch": 3}, tmp_path / "w.pt")
    assert equal(load_weights(small(), tmp_path / "w.pt"), source)


def test_half_precision_is_cast(tmp_path):
    source = small()
    source[1].num_batches_tracked += 5
    save_half(source, tmp_path / "w.safetensors")
    loaded = load_weights(small(), tmp_path / "w.safetensors")
    assert loaded[0].weight.dtype == torch.float32 and loaded[1].num_batches_tracked == 5
    assert equal(loaded, source, atol=1e-3) and not equal(loaded, source)
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


def test_counters_of_batches_may_be_missing(tmp_path):
    source = small()
    state = {k: v for k, v in source.state_dict().items() if "num_batches" not in k}
    save_file(state, tmp_path / "w.safetensors")
    assert equal(load_weights(small(), tmp_path / "w.safetensors"), source)


class Payload:
    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path("executed"),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_strangers_code_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open("w.pt", "wb") as file:
        pickle.dump({"weight": Payload()}, file)
    with pytest.raises(WeightsError, match=r"w.pt cannot be read as a file of tensors"):
        load_weights(small(), "w.pt")
    torch.save({"weight": Payload()}, "z.pt")
    with pytest.raises(WeightsError, match=r"z.pt cannot be read as a file of tensors"):
        load_weights(small(), "z.pt")
    assert not pathlib.Path("executed").exists()


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("content", [b"", b"not weights", b"\x80" * 64], ids=["empty", "text", "binary"])
def test_corrupt_files(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match="cannot be read"):
        load_weights(small(), tmp_path / name)


def test_truncated_safetensors(tmp_path):
    save_file(small().state_dict(), tmp_path / "w.safetensors")
    data = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(data[:-7])
    with pytest.raises(WeightsError, match="cannot be read as safetensors"):
        load_weights(small(), tmp_path / "w.safetensors")


def test_foreign_files(tmp_path):
    path = tmp_path / "w.safetensors"
    with pytest.raises(WeightsError, match="no weights file"):
        load_weights(small(), path)
    save_file({"a": torch.zeros(1), "b": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match=r"6 missing \(0.weight, 0.bias, 1.weight, ...\), 2 unknown \(a, b\)"):
        load_weights(small(), path)
    state = small().state_dict()
    save_file({**state, "0.weight": torch.zeros(2, 1, 5, 5)}, path)
    model = small()
    before = model[0].bias.clone()
    with pytest.raises(WeightsError, match=r"0.weight of shape \(2, 1, 5, 5\), Sequential needs \(2, 1, 3, 3\)"):
        load_weights(model, path)
    assert torch.equal(model[0].bias, before)  # nothing was loaded
    torch.save([1, 2], tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="holds no state dict"):
        load_weights(small(), tmp_path / "w.pt")
    (tmp_path / "w.h5").touch()
    with pytest.raises(WeightsError, match=r"suffix '\.h5'"):
        load_weights(small(), tmp_path / "w.h5")
