"""Secure aggregation: to come; nothing in Fedveil claims it yet."""
