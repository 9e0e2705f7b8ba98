"""The networks of density and color, and the encoding of view directions."""
