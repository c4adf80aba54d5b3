"""From pairs to M_{t+1}: DPO, merging, and how far merging moves a model."""
