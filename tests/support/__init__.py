"""What tests share: worlds to play in, recorders, people on real VMs."""
