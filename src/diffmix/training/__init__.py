"""Recipes, the training loop, prediction with a trained folder, and the baselines that share them."""
