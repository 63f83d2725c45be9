"""An installation of gpuhealth in a cluster: checks of it, and its removal."""
