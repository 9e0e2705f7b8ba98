"""What people bring: pictures, masks, poses; read, checked, and drawn from."""
