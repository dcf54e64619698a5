"""Evaluation: answers on a manifest, measured by the field's protocols, and shown."""
