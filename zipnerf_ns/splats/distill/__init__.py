"""From a trained field to Gaussians: views of it, first points, and what fits them."""
