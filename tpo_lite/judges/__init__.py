"""Judges: models that compare two responses to one instruction."""
