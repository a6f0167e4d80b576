#!/bin/sh
# The whole way of an experiment, rehearsed with a simulated participant: sh the-whole-way.sh, in an empty folder.
# At a scanner the same commands hold, with its own session file (rtevo init siemens) and pictures (rtevo localizer --folder PICTURES).
set -eu

# A session file. Then what this rehearsal sets in it: a participant whose runs are counted, the decoder and the latent space that are made
# below, areas of the brain for what the pictures show, and, so that it is short, few volumes of coarse voxels with little noise, short
# blocks, and six images that are painted quickly.
rtevo init simulate session.toml
sed -i -e 's/^participant = .*/participant = "01"/' -e 's/^source = .*/&\ntr_s = 2.0/' -e 's/^generations = .*/generations = 2\npopulation = 3\npca = "latent.npz"/' session.toml
printf 'areas = ["face", "flag", "food"]\nvoxel_mm = [8.0, 8.0, 8.8]\ntsnr = 90.0\n\n[decoder]\nfolder = "decoder"\nname = "animal"\n\n[localizer]\nblock_images = 6\nrest_s = 8.0\n\n[generator]\nsteps = 4\n' >> session.toml

# Pictures of known categories, and a decoder of that run: ./decoder, a map for each category.
rtevo localizer session.toml --speed max
rtevo decode fit sessions/sub-01_ses-01_task-localizer_run-01

# The space that evolution searches in, of pictures like those that it is to find: here, the localizer's.
rtevo latent fit sessions/sub-01_ses-01_task-localizer_run-01/pictures --components 12 --no-figure --out latent.npz

# Everything is looked at; then two runs, and all of it as BIDS.
rtevo run session.toml --check
rtevo run session.toml --speed max
rtevo run session.toml --speed max
rtevo export sessions/sub-01_ses-01_task-localizer_run-01 bids
rtevo export sessions/sub-01_ses-01_run-01 bids
rtevo export sessions/sub-01_ses-01_run-02 bids
