"""Prompts: from messages to token ids, and replies back."""
