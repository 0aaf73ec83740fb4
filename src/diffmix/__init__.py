"""diffmix: sequence models whose tokens exchange information by diffusion."""
