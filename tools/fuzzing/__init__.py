"""Fuzz targets: each feeds arbitrary input through one boundary of gpuhealth and checks what must hold for all of it.

`tools/fuzz` runs them. A target is a module in `fuzzing/targets/` with a class `Target`, and a line in
`fuzzing/registry.py`.
"""
