"""STUB."""
def same_voxels(decoder, grid):
    return None if decoder.grid.difference(grid) else decoder
def carry(decoder, placement, today, today_grid, *, volumes=(), fwhm_mm=4.0):
    return decoder
