"""Pictures: rendered in chunks, shown in the viewer, measured."""
