"""A network of 8 billion parameters is analysed and planned without its weights."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import json, resource, time, torch
torch.set_num_threads(1)
import secateur, transformers
from secateur.frameworks.huggingface_model import build, example_inputs
from secateur.frameworks.huggingface_plan import prepare
data = dict(architectures=["Qwen3ForCausalLM"], model_type="qwen3", hidden_size=4096, intermediate_size=12288,
            num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8, head_dim=128, vocab_size=151936,
            tie_word_embeddings=False)
cls = transformers.Qwen3ForCausalLM
config = cls.config_class.from_dict(dict(data))
model = build(cls, config)
inputs = example_inputs(model, config)
start = time.process_time()
n_groups = len(secateur.trace(model, inputs).groups)
traced = time.process_time()
prepared = prepare(model, cls, data, inputs, per_layer=False)
ready = time.process_time()
generator = torch.Generator().manual_seed(0)
settings = secateur.PruneConfig()
scores = {g.name: torch.rand(g.size, generator=generator) for g in prepared.choose(settings)}
planned = prepared.plan(scores, secateur.Budget(params=0.5), settings)
plan, new = planned.plan, planned.data
print(json.dumps(dict(
    params=sum(p.numel() for p in model.parameters()), groups=n_groups, trace_s=traced - start,
    prepare_s=ready - traced, plan_s=time.process_time() - ready, hidden=new["hidden_size"],
    part=plan.cost_after.params / plan.cost_before.params,
    memory_gb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
)))
"""


@pytest.mark.slow
def test_eight_billion_parameters_on_the_meta_device() -> None:
    """Seconds are of one core, and generous: the machine may be busy."""
    pytest.importorskip("transformers")
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found["params"] == 8_190_735_360
    assert found["groups"] == 148
    assert found["memory_gb"] < 1.5, found
    assert found["trace_s"] < 10, found
    assert found["prepare_s"] + found["plan_s"] < 60, found
    assert found["part"] <= 0.5
    assert found["hidden"] < 4096
