"""YAML to a frozen, validated tree. No torch, no numpy."""
