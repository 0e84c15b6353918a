"""The core: tokens to loss, tokens to z. Single-device code; knows no files, ranks or devices.

Training asks four things of a model, `AutoregressiveModel` or `DiT`: `num_known` of a step, `draw` of an image,
`forward` of a batch (one loss per token) and `head_parameters`. Generation has engines for each of the two.
"""
