"""How far the policy that samples is from the policy that trains.

With `engine: gguf` both are M_t with the same adapter, but the base is rounded differently: Q4_K_M for sampling and NF4
for training, or whatever a GGUF that is M_0 holds, and the trained base's own type with `quantize: none`. DPO on
another policy's samples is still DPO, but its reference gives them probabilities other than those they were drawn with.
So the distance is measured in every iteration.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tpo_lite import base_weights
from tpo_lite.kinds import Precision
from tpo_lite.machine.device import Device
from tpo_lite.records import PromptSamples
from tpo_lite.sampling.engines.gguf import GgufSampler
from tpo_lite.sampling.policy import Policy

PROMPTS = 8
"""The first prompts of the phase, on whose first samples the distance is measured."""
POSITIONS = 32
"""Output tokens per prompt: 8 * 32 rows of a 128k vocabulary are 131 MB in float32."""


def sampling_shift(
    sampler: GgufSampler, policy: Policy, device: Device, precision: Precision, records: Sequence[PromptSamples]
) -> float:
    """Return the mean KL(sampler || trainer) in nats per token, over the beginnings of some samples.

    `records`: this iteration's samples. Closes the sampler, since there is room for one model at a time.
    """
    outputs = [(record.prompt_ids, record.samples[0].token_ids[:POSITIONS]) for record in records[:PROMPTS]]
    contexts = [prompt + output[:position] for prompt, output in outputs for position in range(len(output))]
    sampled = torch.from_numpy(sampler.log_probabilities(contexts)).double()
    sampler.close()
    model = base_weights.load(policy.model, policy.adapter, device, precision)
    with torch.inference_mode():
        rows = [
            model(input_ids=torch.tensor([prompt + output], device=device)).logits[0, len(prompt) - 1 : -1].cpu()
            for prompt, output in outputs
        ]
    trained = torch.cat(rows).double().log_softmax(-1)
    return (sampled.exp() * (sampled - trained)).sum(-1).mean().item()
