"""Models side by side in each runtime: the same outputs, reasons where one can't run, warnings where nothing is won."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

from secateur.errors import ConfigError, FileError, RegistryError
from secateur.measure import RUNTIMES, compare_latency, latency, measure_models
from secateur.measure.realised import _shortfalls, _zeros


def net(width: int = 16) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3)).eval()


@pytest.mark.parametrize("runtime", ["eager", "onnx", pytest.param("compile", marks=pytest.mark.slow)])
def test_every_runtime_computes_the_model(runtime):
    model, x = net(), torch.randn(4, 6)
    with torch.inference_mode():
        result = RUNTIMES[runtime](model, x)()
    out = torch.as_tensor(result[0] if isinstance(result, list) else result)
    torch.testing.assert_close(out, model(x).detach(), rtol=1e-5, atol=1e-6)


def test_all_runtimes_are_under_that_test():
    assert list(RUNTIMES) == ["eager", "compile", "onnx"]


def test_without_a_compiler_the_reason_is_said(monkeypatch):
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def missing():
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", missing)
    found = measure_models({"net": net()}, torch.zeros(2, 6), runtimes=("compile", "eager"), repeats=2)
    assert list(found.latencies) == ["eager"]
    assert "needs a C++ compiler here and found none" in found.not_run["compile"]


class Sleeper(nn.Module):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.layer, self.seconds = nn.Linear(2, 2), seconds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds)
        return self.layer(x)


def test_speedups_are_over_the_first_model():
    found = compare_latency([Sleeper(0.12), Sleeper(0.04), Sleeper(0.3)], torch.zeros(1, 2), repeats=7, warmup=1)
    same, faster, slower = (s.median for s in found.speedups)
    assert same == 1
    assert 2 < faster < 3.2
    assert 0.3 < slower < 0.5


def test_the_setting_is_part_of_the_result():
    found = latency(net(), torch.zeros(4, 6), repeats=2, warmup=0, n_threads=1)
    assert found.setting() == "per batch of 4 (inputs 4×6) in eager on cpu, float32, 1 threads, 2 runs"


def test_an_unknown_runtime_lists_the_known():
    with pytest.raises(RegistryError, match=r"No runtime 'tvm'. Known: compile, eager, onnx"):
        latency(net(), torch.zeros(4, 6), runtime="tvm")


def test_a_model_that_the_runtime_cannot_run_is_named():
    class Unexportable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.special.bessel_j0(self.layer(x))

    with pytest.raises((FileError, ConfigError), match="Unexportable"):
        latency(Unexportable(), torch.zeros(1, 2), runtime="onnx", repeats=1)


def test_ratios_stand_beside_speedups():
    found = measure_models({"wide": net(64), "narrow": net(16)}, torch.zeros(8, 6), repeats=3)
    assert found.mac_ratios == (1.0, 4.0)
    assert found.realised("eager")[1] == found.speedups["eager"][1].median / 4
    assert found.sizes[0].activation_bytes > found.sizes[1].activation_bytes > 0
    assert found.to_dict()["realised"]["eager"][0] == 1


def test_what_is_not_realised_is_said():
    assert _shortfalls(2.0, {"eager": 1.2, "onnx": 1.9}) == [
        "2.00x fewer MACs, but 1.20x as fast in eager: 0.60 of the ratio."
    ]
    assert _shortfalls(1.0, {"eager": 0.5}) == []


def test_masks_bring_nothing():
    masked = net()
    with torch.no_grad():
        masked[0].weight[:8] = 0
    assert _zeros(net(), 1.0, {"eager": 1.0}) == []
    (text,) = _zeros(masked, 1.0, {"eager": 1.01, "onnx": 1.4})
    assert text.startswith("33% of the weights are zero and stay in place, which brings nothing in eager: 1.01x")


def test_odd_widths_are_measured(monkeypatch):
    """The warning says what a stopwatch says: here one by which odd widths take three times as long."""
    from secateur.measure import realised

    def stopwatch(calls, **_):
        return [tuple(3.0 if call().shape[-1] % 8 else 1.0 for call in calls)]

    monkeypatch.setattr(realised, "time_in_turn", stopwatch)
    deep = nn.Sequential(nn.Linear(8, 13), nn.ReLU(), nn.Linear(13, 13), nn.Linear(13, 8))
    texts = realised._odd_widths(deep, realised.trace(deep, torch.zeros(1, 8)), 1)
    assert texts[0].startswith("2 widths are no multiples of 8. Rounded up, the operators that read them would take")
    even = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))
    assert realised._odd_widths(even, realised.trace(even, torch.zeros(1, 8)), 1) == []
