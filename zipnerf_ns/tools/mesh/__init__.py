"""What stands behind the export of meshes."""
