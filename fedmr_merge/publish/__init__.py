"""Describe a model with a card, and publish its folder on the Hub."""
