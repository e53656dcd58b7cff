"""Nodes to look at what goes in and what comes out."""
