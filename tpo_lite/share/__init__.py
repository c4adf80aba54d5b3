"""What others get of a run: a repository on the Hugging Face Hub with a model or a dataset, and its card."""
