"""Building the images of all roles, with a Docker engine or without one."""
