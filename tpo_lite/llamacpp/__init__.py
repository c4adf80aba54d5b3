"""llama.cpp: GGUF files, batched decoding, conversion."""
