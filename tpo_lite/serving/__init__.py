"""Talking to a model: an OpenAI-compatible server and a chat in the terminal."""
