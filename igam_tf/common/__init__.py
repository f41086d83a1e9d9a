"""What every room and madry_models stand on: errors, the frame of a program, files, locks, devices."""
