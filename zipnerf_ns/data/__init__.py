"""What people bring: images, masks, poses; read, checked, and drawn from."""
