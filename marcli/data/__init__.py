"""Images and cached latents as batches."""
