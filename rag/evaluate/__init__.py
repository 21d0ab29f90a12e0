"""Labelled questions to measures with intervals."""
