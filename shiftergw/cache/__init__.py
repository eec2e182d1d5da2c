"""What this machine keeps of images between pulls."""
